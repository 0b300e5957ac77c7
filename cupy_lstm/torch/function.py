"""The LSTM as a function that PyTorch's autograd goes through, over `cupy_lstm.functional`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor

from cupy_lstm.backend import Array, HostArray, array_module, sum_dtype
from cupy_lstm.dropout import Dropout
from cupy_lstm.functional import Tape, lstm_backward, lstm_forward
from cupy_lstm.notation import LayerGradients
from cupy_lstm.torch.tensors import array_of, beside, tensor_of
from cupy_lstm.torch.weights import Order

Results = tuple[Tensor, Tensor, Tensor]
"""The outputs, and h and c after the last step."""


@dataclass(frozen=True)
class Call:
    """A call of the LSTM, apart from its tensors.

    Attributes
    ----------
    order : Order
        Of the weights.
    time_major : bool
        Whether the first axis of inputs and outputs is time.
    lengths : array [B] of int, or None
        Valid steps of each row, on the host.
    dropout : Dropout or None
        Applied to the input of every layer but the first.
    """

    order: Order
    time_major: bool
    lengths: HostArray | None
    dropout: Dropout | None

    def forward(
        self, x: Tensor, h: Tensor | None, c: Tensor | None, *weights: Tensor
    ) -> tuple[Results, Tape | None]:
        """Run forward; the tape is None inside `cupy_lstm.no_grad`."""
        with beside(x):
            inputs, initial = array_of(x), None
            if h is not None and c is not None:
                initial = array_of(h), _summed(c)
            outputs, (h_array, c_array), tape = lstm_forward(
                inputs,
                self.order.layers(weights),
                initial,
                self.lengths,
                reverse=(False, True)[: self.order.directions],
                time_major=self.time_major,
                dropout=self.dropout,
            )
            # The cell states of half types are float32 here, and like all else in PyTorch.
            results = tensor_of(outputs), tensor_of(h_array), tensor_of(c_array).to(x.dtype)
        return results, tape

    def backward(
        self, tape: Tape, upstream: Sequence[Tensor | None], needed: Sequence[bool], x: Tensor
    ) -> list[Tensor | None]:
        """Run backward; return the gradients that are needed, in the order of `forward`."""
        dy, dh, dc = upstream
        with beside(x):
            wanted = self.order.wanted(needed[3:])
            dx, (dh0, dc0), gradients = lstm_backward(
                tape,
                None if dy is None else array_of(dy),
                (None if dh is None else array_of(dh), None if dc is None else _summed(dc)),
                wanted=wanted,
                inputs_wanted=needed[0],
                gradients=list(map(_zeros, tape.weights, wanted)),
            )
            arrays = dx, dh0, dc0, *self.order.pieces(gradients)
            return [
                tensor_of(array).to(x.dtype) if some else None
                for array, some in zip(arrays, needed, strict=True)
            ]


class SequenceFunction(torch.autograd.Function):
    """A call with all tensors that gradients may be wanted of."""

    @staticmethod
    def forward(ctx: Any, call: Call, *tensors: Tensor | None) -> Results:
        """Run forward and keep the tape."""
        ctx.set_materialize_grads(False)
        # PyTorch finds out whether one of them is written before the backward pass.
        ctx.save_for_backward(*tensors)
        ctx.call = call
        results, ctx.tape = call.forward(*tensors)
        return results

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
        """Run backward; a second time, where the graph was retained, forward again before it."""
        return None, *_Backward.apply(ctx, *upstream, *ctx.saved_tensors)


class _Backward(torch.autograd.Function):
    """The backward pass as a function, which depends on all tensors and has no derivative."""

    @staticmethod
    def forward(ctx: Any, outer: Any, *tensors: Tensor | None) -> tuple[Tensor | None, ...]:
        """Run the backward pass of `SequenceFunction`."""
        upstream, saved, needed = tensors[:3], tensors[3:], outer.needs_input_grad[1:]
        if all(gradient is None for gradient in upstream):
            return (None,) * len(needed)
        tape, outer.tape = outer.tape, None
        if tape is None:
            _, tape = outer.call.forward(*saved)
        return tuple(outer.call.backward(tape, upstream, needed, saved[0]))

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor | None) -> NoReturn:
        """Raise: there is no second derivative."""
        raise NotImplementedError(
            "cupy_lstm.torch.LSTM cannot be differentiated twice: where a gradient of a gradient "
            "is needed (create_graph=True), use torch.nn.LSTM, on CUDA with cuDNN switched off"
        )


def _summed(c: Tensor) -> Array:
    """Return cell states, or their gradient, in the dtype in which they are kept here."""
    array = array_of(c)
    return array.astype(sum_dtype(array.dtype), copy=False)


def _zeros(weights: Any, wanted: Any) -> LayerGradients:
    """Return arrays of zeros for the gradients that are wanted."""
    return LayerGradients(
        *(
            None if some is None else array_module(w).zeros(w.shape, sum_dtype(w.dtype))
            for w, some in zip(weights, wanted, strict=True)
        )
    )
