"""The LSTM as a layer: the interface of `paddle.nn.LSTM` over `cupy_lstm.functional`."""

import secrets
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy

from cupy_lstm.backend import Array
from cupy_lstm.checks import (
    checked_boolean,
    checked_direction,
    checked_integer,
    checked_name,
    checked_optional_integer,
    checked_probability,
    checked_projection,
    checked_word,
    seeded_generator,
)
from cupy_lstm.device import facts_for
from cupy_lstm.dropout import Dropout
from cupy_lstm.explain import explain_plan
from cupy_lstm.functional import checked_upstream, run_backward, run_forward
from cupy_lstm.modes import first_row, forced_engine, is_recording
from cupy_lstm.notation import LayerWeights
from cupy_lstm.parameter import Parameter
from cupy_lstm.recorder import RecordedLayer
from cupy_lstm.stream import LSTMStream
from cupy_lstm.weight_checks import checked_weights
from cupy_lstm.weights import LayerParameters, attributes, require_unique_names, versions

_NO_DROPOUT = nullcontext()


class LSTM(RecordedLayer):
    """A multi-layer LSTM with the interface of `paddle.nn.LSTM`.

    The equations are in `cupy_lstm.notation`; the notation T, B, I, H, P, D, L, too. Shapes of
    the weights, for layer k with suffix ``_l{k}``, and ``_l{k}_reverse`` for its reverse
    direction: weight_ih [4H,I] (I is D*P for k > 0), weight_hh [4H,P], bias_ih [4H], bias_hh
    [4H], and with a projection weight_ho [H,P]. Gate rows are in the order i, f, g, o.

    Parameters
    ----------
    input_size : int
        I, features of the input.
    hidden_size : int
        H, units of each layer and direction.
    num_layers : int
        L.
    direction : str
        ``"forward"``, or ``"bidirect"`` (``"bidirectional"``): a second set of cells reads
        every sequence from its end, the outputs are joined.
    time_major : bool
        Whether the first axis of inputs and outputs is time. States are [L*D,B,...] either way.
    dropout : float
        Probability of dropping an input element of every layer but the first, in training.
    weight_ih_attr, weight_hh_attr, bias_ih_attr, bias_hh_attr : optional
        How the weights are made and trained: None, an Initializer, a Regularizer, a name or a
        `ParamAttr`. ``bias_*_attr=False``: no such bias. ``weight_*_attr=False``: constant 1,
        frozen. weight_ho is made as weight_hh is.
    name : str, optional
        Accepted as Paddle does; it names nothing.
    proj_size : int
        P, size of a projection of the output; 0 for none (P = H).
    dtype : dtype-like
        float32 or float64, or float16 or bfloat16 on CuPy, of weights, inputs and states.
    xp : module or str
        ``numpy`` or ``cupy``: where the weights live.
    seed : int, optional
        Seed of the first weights and of dropout; default: fresh ones.
    checkpoint_every : int, optional
        For long sequences: a call remembers of each layer no more than its input, and h and c
        before every so many steps; `backward` makes the rest again, in the time of one more
        forward, and gives the same results to the last bit. Default: a call remembers all.

    Attributes
    ----------
    mode : str
        ``"LSTM"``.
    input_size, hidden_size, num_layers, num_directions, proj_size : int
        As constructed.
    state_components : int
        2: h and c.
    time_major, dropout, checkpoint_every, training
        Read at each call.
    dropout_seed, dropout_calls : int
        Key of the next dropout mask; set both to repeat one.

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong type or an impossible value.
    ImportError
        If `xp` is CuPy and cannot be imported.

    Examples
    --------
    >>> import numpy
    >>> from cupy_lstm import LSTM
    >>> lstm = LSTM(16, 32, num_layers=2)
    >>> x = numpy.random.default_rng(0).standard_normal((4, 23, 16), "float32")
    >>> y, (h, c) = lstm(x)
    >>> y.shape, h.shape, c.shape
    ((4, 23, 32), (2, 4, 32), (2, 4, 32))
    >>> dx, (dh0, dc0) = lstm.backward(numpy.ones_like(y))
    >>> lstm.weight_ih_l0.grad.shape
    (128, 16)
    """

    mode = "LSTM"
    state_components = 2

    if TYPE_CHECKING:
        # The parameters are attributes named by layer and direction, unknown to a type checker.
        def __getattr__(self, name: str) -> Parameter: ...

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        direction: str = "forward",
        time_major: bool = False,
        dropout: float = 0.0,
        weight_ih_attr: Any = None,
        weight_hh_attr: Any = None,
        bias_ih_attr: Any = None,
        bias_hh_attr: Any = None,
        name: str | None = None,
        *,
        proj_size: int = 0,
        dtype: Any = "float32",
        xp: str | ModuleType = "numpy",
        seed: int | None = None,
        checkpoint_every: int | None = None,
    ) -> None:
        super().__init__(dtype, xp)
        self.input_size = checked_integer("input_size", input_size, 1)
        self.hidden_size = checked_integer("hidden_size", hidden_size, 1)
        self.num_layers = checked_integer("num_layers", num_layers, 1)
        self.proj_size = checked_projection(proj_size, self.hidden_size)
        self._reverse = checked_direction(direction)
        self.num_directions = len(self._reverse)
        self.time_major = time_major
        self.dropout = dropout
        self.checkpoint_every = checkpoint_every
        checked_name(name)
        attrs = attributes(
            weight_ih_attr, weight_hh_attr, bias_ih_attr, bias_hh_attr, self.proj_size > 0
        )
        require_unique_names(attrs, self.num_layers * self.num_directions)
        generator = seeded_generator(seed)
        outputs = self.proj_size or self.hidden_size
        self._layers = [
            LayerParameters(
                self.input_size if k == 0 else self.num_directions * outputs,
                self.hidden_size,
                outputs,
                attrs,
                [f"_l{k}", f"_l{k}_reverse"][: self.num_directions],
                generator,
                self.xp,
                self.dtype,
            )
            for k in range(self.num_layers)
        ]
        self._checked_moves = [layer.moves() for layer in self._layers]
        self._absent: list[str] = []
        for layer in self._layers:
            vars(self).update(layer.named())
            self._absent += [name for name, value in layer.named().items() if value is None]
        self.dropout_seed = secrets.randbits(64) if seed is None else int(generator.integers(2**63))
        self.dropout_calls = 0

    @property
    def time_major(self) -> bool:
        """Whether the first axis of inputs and outputs is time."""
        return self._time_major

    @time_major.setter
    def time_major(self, value: bool) -> None:
        self._time_major = checked_boolean("time_major", value)

    @property
    def dropout(self) -> float:
        """Probability of dropping an input element of every layer but the first."""
        return self._dropout

    @dropout.setter
    def dropout(self, value: float) -> None:
        self._dropout = checked_probability("dropout", value)

    @property
    def checkpoint_every(self) -> int | None:
        """Steps between the states that a call remembers; None: it remembers everything."""
        return self._checkpoint_every

    @checkpoint_every.setter
    def checkpoint_every(self, value: int | None) -> None:
        self._checkpoint_every = checked_optional_integer("checkpoint_every", value)

    @property
    def dropout_seed(self) -> int:
        """Seed of the dropout masks."""
        return self._dropout_seed

    @dropout_seed.setter
    def dropout_seed(self, value: int) -> None:
        self._dropout_seed = checked_word("dropout_seed", value)

    @property
    def dropout_calls(self) -> int:
        """Number of the next call with dropout."""
        return self._dropout_calls

    @dropout_calls.setter
    def dropout_calls(self, value: int) -> None:
        self._dropout_calls = checked_word("dropout_calls", value)

    def __call__(
        self,
        inputs: Array,
        initial_states: tuple[Array, Array] | None = None,
        sequence_length: Any = None,
        *,
        return_cells: bool = False,
        check_lengths: bool = False,
    ) -> tuple[Any, ...]:
        """Run the LSTM over a batch of sequences, remembering what `backward` needs.

        One call is remembered, the last of each thread: call `backward` before the next one.

        Parameters
        ----------
        inputs : array [B,T,I], or [T,B,I] if `time_major`
            In the dtype and on the device of the weights, any strides. Kept by reference until
            `backward`, never written. Arrays of other libraries are taken in, here and in what
            follows.
        initial_states : tuple (h, c), optional
            h [L*D,B,P] and c [L*D,B,H]; index layer * D + direction. Default zeros.
        sequence_length : array-like of int [B], optional
            Valid steps of each row, 0 to T; may be on the host for a CuPy LSTM, too. Steps
            beyond are padding: never used, zero in the outputs, without gradient. A reverse
            direction starts at the last valid step.
        return_cells : bool
            Whether to return the cell states of all steps, too.
        check_lengths : bool
            Whether lengths on a GPU are read back and checked, which synchronises; unchecked
            ones act as if clamped to [0, T]. Lengths on the host are always checked.

        Returns
        -------
        outputs : array [B,T,D*P], or [T,B,D*P]
            h of the last layer at every step, the reverse direction's features last.
        final_states : tuple (h, c)
            h [L*D,B,P] and c [L*D,B,H].
        cells : array [B,T,D*H], or [T,B,D*H]
            Only with `return_cells`: c of the last layer at every step.

        Raises
        ------
        TypeError
            If an argument is no array, or is on another device than the weights.
        ValueError
            If shapes, dtypes or lengths do not fit.
        """
        keep = is_recording()
        if keep:
            for layer in self._layers:
                layer.prepared.drop_stale()
        with self._next_dropout() as dropout:
            *results, tape = run_forward(
                inputs,
                self._weights(),
                initial_states,
                sequence_length,
                reverse=self._reverse,
                time_major=self._time_major,
                dropout=dropout,
                return_cells=return_cells,
                check_lengths=check_lengths,
                checkpoint_every=self._checkpoint_every,
                keep=keep,
                prepared=None if keep else self._prepared,
            )
        if tape is None:
            self._recorder.clear()
        else:
            self._recorder.keep(tape, versions(self._layers))
        return tuple(results)

    def backward(
        self,
        doutputs: Array | None = None,
        dfinal_states: tuple[Array | None, Array | None] | None = None,
        dcells: Array | None = None,
    ) -> tuple[Array, tuple[Array, Array]]:
        """Backpropagate through the last call and add to the gradients of the parameters.

        Exact backpropagation through time, in training and evaluation mode alike. Frozen
        parameters are passed over.

        Parameters
        ----------
        doutputs : array like the outputs, optional
            Their gradient; what it holds in padding is ignored.
        dfinal_states : tuple (dh, dc), optional
            Gradients of the final states; either may be None.
        dcells : array like the cells, optional
            Gradient of the cell states of all steps of the last layer, whether the call
            returned them or not.

        Returns
        -------
        dinputs : array like the inputs
            Zero in padding.
        dinitial_states : tuple (dh0, dc0)
            Gradients of the initial states, whether they were given or not.

        Raises
        ------
        RuntimeError
            If there is no recorded call to go back through, or the weights changed since.
        TypeError, ValueError
            If a gradient has the wrong device, dtype or shape, or none is given. The call can
            still be gone back through then.
        """
        tape = self._recorder.current(versions(self._layers))
        upstream = checked_upstream(tape, doutputs, dfinal_states, dcells)
        with self._recorder.exclusive():
            dinputs, dinitial_states = run_backward(
                tape,
                upstream,
                wanted=[layer.wanted() for layer in self._layers],
                gradients=[layer.gradients_as_they_are() for layer in self._layers],
                unset=lambda k: self._layers[k].unset(),
                layer_done=lambda k: self._layers[k].mark_gradients(),
            )
        self._recorder.clear()
        return dinputs, dinitial_states

    def stream(self, batch: int) -> LSTMStream:
        """Return a stream for online inference: fed step by step, it keeps its state.

        It copies the weights; see `LSTMStream` for what happens when they change.

        Parameters
        ----------
        batch : int
            B, rows of every call of the stream.

        Returns
        -------
        LSTMStream
            With the state zero.

        Raises
        ------
        TypeError
            If `batch` is no integer.
        ValueError
            If `batch` is not positive, or this LSTM has a reverse direction: that one would
            begin at the end of the sequence, which a stream has not seen.
        """
        if self.num_directions != 1:
            raise ValueError(
                "a stream needs an LSTM with direction='forward', this one is bidirectional: its "
                "reverse direction begins at the end of the sequence"
            )
        return LSTMStream(self._layers, checked_integer("batch", batch), self.time_major)

    def _weights(self) -> Sequence[LayerWeights]:
        """Return the weights; they need a check only if one of them may have moved alone.

        It does so as a parameter of another layer, which shares it.
        """
        moves = [layer.moves() for layer in self._layers]
        weights = [layer.arrays() for layer in self._layers]
        if moves != self._checked_moves:
            checked_weights(weights, self.num_directions)
            self._checked_moves = moves
        return weights

    def _prepared(self, layer: int, engine: ModuleType) -> Any:
        """Return the weights of a layer as an engine takes them in inference."""
        parameters = self._layers[layer]
        return parameters.prepared.of(engine, parameters.arrays)

    def _next_dropout(self) -> AbstractContextManager[Dropout | None]:
        """Return a context that gives a call its mask; None where nothing is dropped."""
        drops = self.training and self._dropout > 0 and self.num_layers > 1
        return self._numbered_dropout() if drops else _NO_DROPOUT

    @contextmanager
    def _numbered_dropout(self) -> Iterator[Dropout]:
        """Give this call its mask; the number of a call that fails is taken back."""
        with self._recorder.exclusive():
            call = self.dropout_calls
            self.dropout_calls = call + 1
        try:
            yield Dropout(self.dropout, self.dropout_seed, call, first_row())
        except BaseException:
            with self._recorder.exclusive():
                if self.dropout_calls == call + 1:
                    self.dropout_calls = call
            raise

    def explain_plan(self, steps: int, batch: int) -> str:
        """Say which engine would run each layer, in which chunks, and why.

        Parameters
        ----------
        steps, batch : int
            T and B of the call.

        Returns
        -------
        str
            One line a layer; one more with `checkpoint_every`; two more for the engine persistent.
        """
        return explain_plan(
            steps,
            batch,
            self.input_size,
            self.hidden_size,
            self.num_layers,
            "forward" if self.num_directions == 1 else "bidirectional",
            proj_size=self.proj_size,
            dtype=self.dtype.name,
            module=self._module,
            device=facts_for(self._module),
            training=is_recording(),
            forced=forced_engine(),
            checkpoint_every=self.checkpoint_every,
        )

    def flatten_parameters(self) -> None:
        """Do nothing: the weights of a layer already lie in contiguous memory."""

    def _set_place(self, name: str, dtype: "numpy.dtype[Any]") -> None:
        super()._set_place(name, dtype)
        for layer in self._layers:
            layer.prepared.drop()

    def _aliases(self, prefix: str = "") -> dict[str, str]:
        cells = ["cell"] if self.num_directions == 1 else ["cell_fw", "cell_bw"]
        return {
            f"{prefix}{k}.{cells[d]}.{kind}": f"{prefix}{kind}{suffix}"
            for k, layer in enumerate(self._layers)
            for d, suffix in enumerate(layer.suffixes)
            for kind, parameters in zip(layer.kinds._fields, layer.kinds, strict=True)
            if parameters is not None
        }

    def __repr__(self) -> str:
        words = [f"{self.input_size}, {self.hidden_size}"]
        defaults = {
            **{"num_layers": 1, "time_major": False, "dropout": 0.0, "proj_size": 0},
            "checkpoint_every": None,
        }
        words += [
            f"{field}={getattr(self, field)!r}"
            for field, default in defaults.items()
            if getattr(self, field) != default
        ]
        if self.num_directions == 2:
            words.insert(1, "direction='bidirectional'")
        if self._module != "numpy":
            words.append(f"xp={self._module!r}")
        if self.dtype != "float32":
            words.append(f"dtype={str(self.dtype)!r}")
        return f"LSTM({', '.join(words)})"
