"""The base of everything with parameters: modes, names, states, gradients, moving."""

from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any, Self

import numpy

from cupy_lstm.backend import (
    Array,
    checked_dtype,
    import_module,
    module_name,
    on_device_of,
    require_device,
)
from cupy_lstm.parameter import Parameter, unique_buffers


class Layer:
    """A function of arrays with parameters, a mode, and a backward pass.

    Parameters and sub-layers are attributes, or lie in lists, tuples or dicts that are; their
    names are the attribute names, indices and keys, joined by dots. Attributes that begin with
    an underscore are left out.

    Parameters
    ----------
    dtype : dtype-like
        float32 or float64, on CuPy float16 or bfloat16 too; what the parameters hold and the
        inputs must have.
    xp : module or str
        ``numpy`` or ``cupy``, where the parameters live.

    Examples
    --------
    A model for `fit` is a layer that returns one array and takes its gradient back:

    >>> from cupy_lstm import LSTM, Layer, Linear
    >>> class LastStep(Layer):
    ...     def __init__(self, features, hidden_size, outputs):
    ...         super().__init__()
    ...         self.lstm = LSTM(features, hidden_size)
    ...         self.head = Linear(hidden_size, outputs)
    ...
    ...     def __call__(self, x):
    ...         _, (h, _) = self.lstm(x)
    ...         return self.head(h[-1])
    ...
    ...     def backward(self, gradient):
    ...         dh = self.head.backward(gradient)
    ...         return self.lstm.backward(dfinal_states=(dh[None], None))

    Attributes
    ----------
    training : bool
        True after construction and `train`, False after `eval`.
    """

    training = True
    _module = "numpy"
    _dtype = numpy.dtype("float32")

    def __init__(self, dtype: Any = "float32", xp: str | ModuleType = "numpy") -> None:
        self.training = True
        self._module = module_name(xp)
        self._dtype = checked_dtype(dtype, self._module)
        require_device(self._module)

    def __setattr__(self, name: str, value: object) -> None:
        if isinstance(vars(self).get(name), Parameter):
            raise TypeError(
                f"{name} is a parameter and cannot be rebound to {type(value).__name__}: "
                f"copy values in with {name}.set_value(...)"
            )
        if name in vars(self).get("_absent", ()):
            raise TypeError(f"this layer was made without {name}, it cannot be set")
        super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        if isinstance(vars(self).get(name), Parameter):
            raise TypeError(f"{name} is a parameter and cannot be deleted")
        super().__delattr__(name)

    @property
    def dtype(self) -> "numpy.dtype[Any]":
        """Dtype of the parameters and of the arrays taken and given."""
        return self._dtype

    @property
    def xp(self) -> ModuleType:
        """The array module the parameters live in."""
        return import_module(self._module)

    def train(self) -> Self:
        """Switch dropout on, here and in every sub-layer; return the layer."""
        return self._set_training(True)

    def eval(self) -> Self:
        """Switch dropout off, here and in every sub-layer; return the layer."""
        return self._set_training(False)

    def _set_training(self, training: bool) -> Self:
        self.training = training
        for _, child in self.named_children():
            child._set_training(training)
        return self

    def named_children(self) -> Iterator[tuple[str, "Layer"]]:
        """Yield the direct sub-layers with their names."""
        for name, value in self._members():
            if isinstance(value, Layer):
                yield name, value

    def named_parameters(self, prefix: str = "") -> Iterator[tuple[str, Parameter]]:
        """Yield every parameter once, with its name, in the order of construction.

        Parameters
        ----------
        prefix : str
            Put in front of every name, with a dot.
        """
        seen: set[int] = set()
        for name, parameter in self._walk(f"{prefix}." if prefix else ""):
            if id(parameter) not in seen:
                seen.add(id(parameter))
                yield name, parameter

    def _walk(self, prefix: str) -> Iterator[tuple[str, Parameter]]:
        for name, value in self._members():
            if isinstance(value, Layer):
                yield from value._walk(f"{prefix}{name}.")
            else:
                yield prefix + name, value

    def _members(self) -> Iterator[tuple[str, "Layer | Parameter"]]:
        waiting = [(name, value) for name, value in vars(self).items() if name[0] != "_"]
        while waiting:
            name, value = waiting.pop(0)
            if isinstance(value, Layer | Parameter):
                yield name, value
            elif isinstance(value, list | tuple):
                waiting[:0] = [(f"{name}.{index}", item) for index, item in enumerate(value)]
            elif isinstance(value, dict):
                waiting[:0] = [(f"{name}.{key}", item) for key, item in value.items()]

    def parameters(self) -> list[Parameter]:
        """Return every parameter once, in the order of construction."""
        return [parameter for _, parameter in self.named_parameters()]

    def clear_gradients(self, set_to_zero: bool = True) -> None:
        """Forget every gradient.

        Parameters
        ----------
        set_to_zero : bool
            True leaves gradients arrays of zeros, False makes them None.
        """
        for parameter in self.parameters():
            parameter.clear_gradient(set_to_zero)

    def state_dict(self) -> dict[str, Array]:
        """Return the weights by name: live arrays, not copies."""
        return {name: parameter.data for name, parameter in self.named_parameters()}

    def set_state_dict(
        self, state_dict: Mapping[str, Array | Parameter]
    ) -> tuple[list[str], list[str]]:
        """Copy weights in by name: all of them are checked first, then all are written.

        Parameters
        ----------
        state_dict : mapping of str to array
            Names as in `state_dict`, or Paddle's names by cell (``0.cell.weight_ih``,
            ``1.cell_bw.bias_hh``), which win where both are given. Arrays on the host or on the
            device of the weights.

        Returns
        -------
        missing : list of str
            Parameters that `state_dict` does not hold; they keep their values.
        unexpected : list of str
            Names that mean no parameter of this layer.

        Raises
        ------
        TypeError
            If `state_dict` is no mapping, or a value is no array, or is on another device.
        ValueError
            If a shape or dtype differs. Nothing is written then.
        """
        if not isinstance(state_dict, Mapping):
            raise TypeError(
                f"state_dict must be a mapping of names to arrays, "
                f"received {type(state_dict).__name__}"
            )
        parameters = dict(self.named_parameters())
        aliases = self._aliases()
        keys = {name: name for name in parameters if name in state_dict}
        keys |= {aliases[key]: key for key in state_dict if key in aliases}
        values = {}
        for name, key in keys.items():
            try:
                value = parameters[name].check_value(state_dict[key])
            except (TypeError, ValueError) as error:
                raise type(error)(f"state_dict[{key!r}]: {error}; nothing was loaded") from None
            with on_device_of(value):
                # A copy: the values may be views of the very weights that are written.
                values[name] = value.copy()
        for name, value in values.items():
            parameters[name].set_value(value)
        missing = [name for name in parameters if name not in keys]
        unexpected = [key for key in state_dict if key not in parameters and key not in aliases]
        return missing, unexpected

    def _aliases(self, prefix: str = "") -> dict[str, str]:
        """Return other spellings of parameter names, each with the name it means."""
        aliases: dict[str, str] = {}
        for name, child in self.named_children():
            aliases |= child._aliases(f"{prefix}{name}.")
        return aliases

    def to(self, xp: str | ModuleType | None = None, dtype: Any = None) -> Self:
        """Move the parameters and their gradients, in place.

        Parameters
        ----------
        xp : module or str, optional
            ``numpy`` or ``cupy``; default: stay.
        dtype : dtype-like, optional
            As of the constructor; default: keep.

        Returns
        -------
        Layer
            The layer itself.

        Raises
        ------
        ImportError, RuntimeError
            If CuPy is asked for and cannot be imported, or finds no GPU.
        TypeError, ValueError
            If `xp` or `dtype` is none of those.
        """
        name = self._module if xp is None else module_name(xp)
        wanted = checked_dtype(self._dtype if dtype is None else dtype, name)
        require_device(name)
        module = import_module(name)
        buffers = unique_buffers(self.parameters())
        # All copies are made before the first one is used: a failure leaves everything in place.
        copies = [buffer.moved(module, wanted) for buffer in buffers]
        for buffer, copy in zip(buffers, copies, strict=True):
            buffer.take(copy)
        self._set_place(name, wanted)
        return self

    def _set_place(self, name: str, dtype: "numpy.dtype[Any]") -> None:
        self._module, self._dtype = name, dtype
        for _, child in self.named_children():
            child._set_place(name, dtype)
