"""Parameters: named weights, each a row of the memory that `cupy_lstm.buffer` has."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy

from cupy_lstm.announcements import announce_gradients
from cupy_lstm.backend import (
    Array,
    HostArray,
    array_module,
    is_array,
    location,
    on_device_of,
    to_host,
)
from cupy_lstm.buffer import Buffer
from cupy_lstm.checks import checked_number
from cupy_lstm.initializer import Fans, Initializer
from cupy_lstm.regularizer import Regularizer


@dataclass(frozen=True)
class ParamAttr:
    """How a parameter is made and trained, as `paddle.ParamAttr`.

    Parameters
    ----------
    name : str, optional
        Name of the parameter. One attribute serves every layer and direction, so a name is
        accepted only where it serves a single parameter.
    initializer : Initializer, optional
        Draws the first values; default that of the layer, such as uniform in
        (-1/sqrt(H), 1/sqrt(H)) for an LSTM.
    learning_rate : float
        Factor on the optimiser's learning rate.
    regularizer : Regularizer, optional
        Added to the gradient by the optimiser; takes precedence over its weight decay.
    trainable : bool
        False freezes the parameter: no gradient is computed for it.
    do_model_average : bool
        Kept for code that averages weights; nothing here reads it.
    need_clip : bool
        Whether gradient clipping includes this parameter.

    Raises
    ------
    TypeError, ValueError
        If a field has the wrong type, or the learning rate is negative or not finite.
    """

    name: str | None = None
    initializer: Initializer | None = None
    learning_rate: float = 1.0
    regularizer: Regularizer | None = None
    trainable: bool = True
    do_model_average: bool = True
    need_clip: bool = True

    def __post_init__(self) -> None:
        for field, kind in (
            ("name", str),
            ("initializer", Initializer),
            ("regularizer", Regularizer),
        ):
            value = getattr(self, field)
            if value is not None and not isinstance(value, kind):
                raise TypeError(f"{field} must be {kind.__name__} or None, received {value!r}")
        for field in ("trainable", "do_model_average", "need_clip"):
            if not isinstance(getattr(self, field), bool):
                raise TypeError(f"{field} must be a bool, received {getattr(self, field)!r}")
        checked_number("learning_rate", self.learning_rate)

    @classmethod
    def of(cls, value: object, argument: str) -> "ParamAttr":
        """Return the attribute meant by one of Paddle's spellings.

        Parameters
        ----------
        value : None, True, str, Initializer, Regularizer or ParamAttr
            None and True mean the defaults, a string names the parameter.
        argument : str
            Name of the argument, for the message.

        Raises
        ------
        TypeError
            For anything else.
        """
        if value is None or value is True:
            return cls()
        if isinstance(value, cls):
            return value
        if isinstance(value, str):
            return cls(name=value)
        if isinstance(value, Initializer):
            return cls(initializer=value)
        if isinstance(value, Regularizer):
            return cls(regularizer=value)
        raise TypeError(
            f"{argument} must be None, a bool, a name, a ParamAttr, an Initializer or a "
            f"Regularizer, received {type(value).__name__}"
        )


class Parameter:
    """A weight: a view of one row of a `Buffer`, its gradient, and how it is trained.

    Attributes
    ----------
    name : str
        Name given by its `ParamAttr`, else its name in the layer.
    trainable : bool
        False freezes it: backward computes no gradient, `grad` is None, optimisers skip it.
    optimize_attr : dict
        ``{"learning_rate": factor}``.
    regularizer : Regularizer or None
        Added to the gradient by the optimiser.
    need_clip : bool
        Whether gradient clipping includes it.
    version : int
        Counts the changes made through this object.
    """

    def __init__(self, buffer: Buffer, index: int, name: str, attr: ParamAttr) -> None:
        self.buffer = buffer
        self.index = index
        self.name = attr.name or name
        self.trainable = attr.trainable
        self.optimize_attr = {"learning_rate": float(attr.learning_rate)}
        self.regularizer = attr.regularizer
        self.do_model_average = attr.do_model_average
        self.need_clip = attr.need_clip
        self.has_gradient = False
        self.version = 0

    @property
    def data(self) -> Array:
        """The weight itself, a live view.

        Assigning copies the values in (shape and dtype checked) and tells a kept tape that the
        weights changed. Writing into the view (``p.data[...] = 0``) is allowed: the next call sees
        it, a kept tape does not notice. On the host no call without a tape keeps what an engine
        makes of the weights while the view, or a view of it, exists; afterwards an address that
        was taken from it must not be written to.
        """
        return self.buffer.lend()[self.index]

    @data.setter
    def data(self, value: Array) -> None:
        self.set_value(value)

    @property
    def row(self) -> Array:
        """The weight itself, to be read and given to nobody."""
        return self.buffer.data[self.index]

    @property
    def grad(self) -> Array | None:
        """The gradient, a live view of the layer's gradient memory; None before a backward."""
        if not (self.has_gradient and self.trainable):
            return None
        return self.buffer.gradient_as_it_is()[self.index]

    @property
    def stop_gradient(self) -> bool:
        """The opposite of `trainable`, as Paddle calls it."""
        return not self.trainable

    @stop_gradient.setter
    def stop_gradient(self, value: bool) -> None:
        self.trainable = not value

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight."""
        shape: tuple[int, ...] = self.buffer.data.shape[1:]
        return shape

    @property
    def dtype(self) -> "numpy.dtype[Any]":
        """Dtype of the weight."""
        dtype: numpy.dtype[Any] = self.buffer.data.dtype
        return dtype

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        return int(numpy.prod(self.shape))

    def numpy(self) -> HostArray:
        """Return a host copy of the weight; synchronises on CuPy."""
        return to_host(self.row).copy()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> HostArray:
        """Let NumPy read a weight that is on the host; on a GPU it would move unseen."""
        if not isinstance(self.row, numpy.ndarray):
            raise TypeError(
                f"{self.name} is on {location(self.row)}: copy it to the host with .numpy()"
            )
        # A copy unless a view is asked for: a write into a view would go unnoticed.
        if copy is False:
            return numpy.array(self.data, dtype, copy=False)
        return numpy.array(self.row, dtype)

    def check_value(self, value: object) -> Array:
        """Return `value` as an array that `set_value` can copy in, or raise.

        Parameters
        ----------
        value : array or Parameter
            Same shape and dtype; on the same device as the weight, or on the host. Anything with
            ``__array__`` will do, such as a tensor of PyTorch or Paddle on the CPU.

        Raises
        ------
        TypeError
            If it is no array, or lives on a device the weight does not live on.
        ValueError
            If shape or dtype differ.
        """
        if isinstance(value, Parameter):
            value = value.data
        elif not is_array(value) and hasattr(value, "__array__"):
            value = numpy.asarray(value)
        if not is_array(value):
            raise TypeError(
                f"{self.name} must be set from an array, received {type(value).__name__}"
            )
        array: Array = value
        if tuple(array.shape) != self.shape:
            raise ValueError(
                f"{self.name} has shape {list(self.shape)}, received shape {list(array.shape)}"
            )
        if array.dtype != self.dtype:
            raise ValueError(
                f"{self.name} has dtype {self.dtype}, received {array.dtype}: "
                f"convert it with .astype({str(self.dtype)!r})"
            )
        if not isinstance(array, numpy.ndarray) and location(array) != location(self.row):
            raise TypeError(
                f"{self.name} is on {location(self.row)}, received an array on {location(array)}: "
                "copy it there first"
            )
        return array

    def set_value(self, value: object) -> None:
        """Copy new values in.

        Parameters
        ----------
        value : array or Parameter
            Same shape and dtype; on the same device as the weight, or on the host.

        Raises
        ------
        TypeError, ValueError
            As `check_value`; nothing is written then.
        """
        array = self.check_value(value)
        weight = self.data  # borrowed: a write that is interrupted does not go unnoticed
        with on_device_of(weight):
            weight[...] = array_module(weight).asarray(array)
        self.mark_changed()

    def mark_changed(self) -> None:
        """Tell a kept tape that this weight is no longer what its forward used."""
        self.version += 1
        self.buffer.version += 1

    def add_gradient(self, value: Array) -> None:
        """Add to the gradient; `value` is an array like the weight."""
        self.buffer.make_gradient()[self.index] += value
        self.has_gradient = True
        announce_gradients([self])

    def clear_gradient(self, set_to_zero: bool = True) -> None:
        """Forget the gradient.

        Parameters
        ----------
        set_to_zero : bool
            True leaves `grad` an array of zeros, False makes it None: this takes no time, and a
            backward pass sets the gradient anew. A view of the old one holds anything then.
        """
        if not set_to_zero:
            self.has_gradient = False
            self.buffer.forget_gradient(self.index)
        elif self.buffer.gradient is not None:
            with on_device_of(self.buffer.gradient):
                self.buffer.gradient[self.index] = 0
            self.buffer.unset -= {self.index}

    def __repr__(self) -> str:
        return (
            f"Parameter({self.name!r}, shape={self.shape}, dtype={self.dtype}, "
            f"{location(self.buffer.data)}, trainable={self.trainable})"
        )


def drawn_value(
    name: str,
    attr: ParamAttr,
    default: Initializer,
    shape: tuple[int, ...],
    fans: Fans,
    generator: numpy.random.Generator,
) -> HostArray:
    """Return the first values of a parameter; an initializer that cannot serve it is an error.

    Raises
    ------
    ValueError
        With the name of the parameter.
    """
    try:
        return (attr.initializer or default).draw(shape, fans, generator)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def unique_buffers(parameters: Iterable[Parameter]) -> list[Buffer]:
    """Return the buffers behind the parameters, each once, in order."""
    return list({id(p.buffer): p.buffer for p in parameters}.values())
