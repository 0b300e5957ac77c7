"""The LSTM as a module of PyTorch: a `torch.nn.LSTM` whose sweeps run here."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from cupy_lstm.backend import HostArray
from cupy_lstm.dropout import Dropout
from cupy_lstm.modes import no_grad
from cupy_lstm.torch.function import Call, Results, SequenceFunction
from cupy_lstm.torch.tensors import require_supported
from cupy_lstm.torch.weights import Order, lay_side_by_side

States = tuple[Tensor, Tensor]


class LSTM(torch.nn.LSTM):
    """A `torch.nn.LSTM` that runs in the engines of this package.

    Constructor, parameters and their names, inputs and outputs are those of `torch.nn.LSTM`, and
    so is everything a module can do: state dicts load both ways, optimisers, `to`, `deepcopy`
    and `torch.save` work as they do there. On the CPU it computes in float32 and float64, on CUDA,
    in PyTorch's current stream, in float16 and bfloat16 too.

    Parameters
    ----------
    input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, proj_size, \
device, dtype
        As of `torch.nn.LSTM`.

    Notes
    -----
    Differences from `torch.nn.LSTM`:

    - The masks of dropout are drawn here, from a seed that PyTorch's generator of the CPU gives at
      each call: `torch.manual_seed` repeats them, but they are not those of `torch.nn.LSTM`.
    - A second derivative is an error.
    - A sequence may have no steps: its final states are the initial ones.
    - `torch.jit.script`, `torch.onnx.export` and the transforms of `torch.func` cannot look inside;
      load the state dict into a `torch.nn.LSTM` for these.
    - `torch.compile` leaves it out: what is before it and behind it is compiled.
    - Under autocast it computes in the dtype of autocast on CUDA, and in that of its weights on
      the CPU.

    Where a weight is written between a call and its backward pass, PyTorch raises, as ever. The
    weights are read anew at each call, whatever was done to them. Those of the two directions of
    a layer lie side by side in memory, which saves a copy of them at each call; where one of them
    has been replaced, `flatten_parameters` restores that.

    Examples
    --------
    >>> import torch
    >>> from cupy_lstm.torch import LSTM
    >>> lstm = LSTM(16, 32, num_layers=2, batch_first=True)
    >>> y, (h, c) = lstm(torch.randn(4, 23, 16))
    >>> y.sum().backward()
    >>> lstm.weight_ih_l0.grad.shape
    torch.Size([128, 16])
    """

    def forward(
        self, input: Tensor | PackedSequence, hx: States | None = None
    ) -> tuple[Any, States]:
        """Run the LSTM over a batch of sequences, over one sequence, or over packed ones.

        Parameters
        ----------
        input : tensor [T,B,I], or [B,T,I] if `batch_first`, or [T,I], or PackedSequence
            In the dtype and on the device of the weights.
        hx : tuple (h, c), optional
            h [L*D,B,P] and c [L*D,B,H], without B for an input [T,I]. Default zeros.

        Returns
        -------
        output : like the input
            h of the last layer at every step, D*P features.
        states : tuple (h, c)
            After the last step of each sequence, like `hx`.

        Raises
        ------
        ValueError
            If shapes, dtypes or devices do not fit, or there is no engine for the device or
            the dtype of the weights.
        """
        if torch.compiler.is_dynamo_compiling():
            # torch.compile ends its graph here and begins another one behind the call.
            return torch.compiler.disable(LSTM.forward)(self, input, hx)  # type: ignore[no-any-return]
        if isinstance(input, PackedSequence):
            return self._forward_packed(input, hx)
        if input.dim() == 2:  # one sequence: a batch of one, the time first whatever batch_first
            hx = None if hx is None else (hx[0].unsqueeze(1), hx[1].unsqueeze(1))
            y, h, c = self._run(input.unsqueeze(1), hx, True)
            return y.squeeze(1), (h.squeeze(1), c.squeeze(1))
        y, h, c = self._run(input, hx, not self.batch_first)
        return y, (h, c)

    def _forward_packed(
        self, sequences: PackedSequence, hx: States | None
    ) -> tuple[PackedSequence, States]:
        """Run over packed sequences: a row each, the longest first, and no work for padding."""
        data, batch_sizes, order, back = sequences
        if hx is not None:
            hx = self.permute_hidden(hx, order)
        if batch_sizes[0] == batch_sizes[-1]:  # as many rows at every step: a batch as it is
            y, h, c = self._run(data.unflatten(0, (len(batch_sizes), -1)), hx, True)
            data = y.flatten(0, 1)
        else:
            padded, lengths = pad_packed_sequence(PackedSequence(data, batch_sizes))
            y, h, c = self._run(padded, hx, True, lengths.numpy())
            data = pack_padded_sequence(y, lengths).data
        return PackedSequence(data, batch_sizes, order, back), self.permute_hidden((h, c), back)

    def _run(
        self, x: Tensor, hx: States | None, time_major: bool, lengths: HostArray | None = None
    ) -> Results:
        """Run over a batch; return the outputs, h and c."""
        # Asked for by name: what a parametrization or a functional call has put there is used.
        weights = [getattr(self, name) for name in self._flat_weights_names]
        require_supported(weights[0])
        tensors = [x, *((None, None) if hx is None else hx), *weights]
        device = weights[0].device.type
        if torch.is_autocast_enabled(device):
            # Half types have no engine on the CPU.
            on_gpu = device == "cuda"
            dtype = torch.get_autocast_dtype(device) if on_gpu else weights[0].dtype
            tensors = [None if tensor is None else tensor.to(dtype) for tensor in tensors]
        x, h, c, *weights = tensors
        self._check(x, h, c, weights[0], time_major)
        call = Call(self._order(), time_major, lengths, self._next_dropout())
        if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
            results: Results = SequenceFunction.apply(call, *tensors)
            return results
        with no_grad():
            return call.forward(x, h, c, *weights)[0]

    def _check(
        self, x: Tensor, h: Tensor | None, c: Tensor | None, weight: Tensor, time_major: bool
    ) -> None:
        """Raise unless the input and the states fit a weight, and each other."""
        if x.dim() != 3 or x.shape[2] != self.input_size:
            raise ValueError(
                f"input has shape {list(x.shape)}, but must have three axes (two for a sequence "
                f"alone or packed ones), the last of size input_size {self.input_size}"
            )
        rows = self.num_layers * (1 + self.bidirectional), x.shape[1 if time_major else 0]
        shapes = (*rows, self.proj_size or self.hidden_size), (*rows, self.hidden_size)
        for argument, tensor, shape in (
            ("input", x, x.shape),
            ("hx[0]", h, shapes[0]),
            ("hx[1]", c, shapes[1]),
        ):
            if tensor is None:
                continue
            if tensor.shape != shape:
                raise ValueError(
                    f"{argument} has shape {list(tensor.shape)}, but must have {list(shape)}"
                )
            if tensor.dtype != weight.dtype or tensor.device != weight.device:
                raise ValueError(
                    f"{argument} is {tensor.dtype} on {str(tensor.device)!r}, but the weights are "
                    f"{weight.dtype} on {str(weight.device)!r}: convert one of them with .to(...)"
                )

    def _order(self) -> Order:
        biases = ("bias_ih", "bias_hh") if self.bias else ()
        projection = ("weight_ho",) if self.proj_size else ()
        return Order(("weight_ih", "weight_hh", *biases, *projection), 1 + self.bidirectional)

    def _next_dropout(self) -> Dropout | None:
        """Return the dropout of the next call, its seed drawn from PyTorch's generator."""
        if not (self.training and self.dropout and self.num_layers > 1):
            return None
        return Dropout(self.dropout, int(torch.randint(2**63 - 1, (), device="cpu")), 0)

    def flatten_parameters(self) -> None:
        """Lay the weights of both directions of each layer side by side in memory.

        Done by the constructor and whenever the module is moved, converted or copied; never needed
        for right results. The parameters stay the same objects, in new memory: a tensor over their
        old memory is no longer written with them.
        """
        parameters = dict(self.named_parameters(recurse=False))
        for name, first in parameters.items():
            second = parameters.get(f"{name}_reverse")
            if second is not None:
                lay_side_by_side(first, second)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.flatten_parameters()  # a copy has every parameter in memory of its own
