"""What all optimisers share: the order of a step, what they remember, and its saving.

A step is what Paddle's is: clip all gradients, add the gradient of a regularizer, then update
each parameter in place with its own factor on the learning rate. Parameters that are frozen or
have no gradient are left alone, and so is what is remembered of them. Nothing synchronises.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

import numpy

from cupy_lstm.backend import Array, array_module, is_array, location, sum_dtype
from cupy_lstm.checks import checked_integer, checked_number
from cupy_lstm.clip import GradientClip, ParameterGradients
from cupy_lstm.parameter import Parameter
from cupy_lstm.ranges import stage
from cupy_lstm.regularizer import L2Decay, Regularizer
from cupy_lstm.schedule import Schedule, rate_at

StateDict: TypeAlias = dict[str, Array | float]
"""Flat state of an optimiser: arrays and numbers by name."""


class Memory:
    """What an optimiser remembers of one parameter.

    Attributes
    ----------
    updates : int
        Updates made to it.
    arrays : dict of str to array
        Running averages like the weight, by name, float32 for half types; zeros before the
        first update. For half types also the master: the weight in float32, where updates that
        are small beside it do not vanish.
    """

    def __init__(self, parameter: Parameter, names: tuple[str, ...]) -> None:
        self.parameter = parameter
        self.updates = 0
        weight = parameter.row
        xp, sums = array_module(weight), sum_dtype(weight.dtype)
        self.arrays = {name: xp.zeros(weight.shape, sums) for name in names}
        if weight.dtype != sums:
            self.arrays["master"] = weight.astype(sums)
        self._version = parameter.version

    def weight(self) -> Array:
        """Return what an update changes: the master where there is one, else the weight.

        The weight is borrowed, so that an update that is interrupted does not go unnoticed.
        """
        master = self.arrays.get("master")
        if master is None:
            return self.parameter.data
        if self._version != self.parameter.version:
            # Somebody has set the weight since the last update.
            master[...] = self.parameter.row
        return master

    def updated(self) -> None:
        """Round the master to the weight, and note the change."""
        if "master" in self.arrays:
            self.parameter.data[...] = self.arrays["master"]
        self.updates += 1
        self.parameter.mark_changed()
        self.note_weight()

    def note_weight(self) -> None:
        """Take the weight as it is now for the master rounded: the master stays."""
        self._version = self.parameter.version

    def check_place(self) -> None:
        """Raise unless the weight still is where the averages are."""
        weight = self.parameter.row
        for array in self.arrays.values():
            if array.dtype != sum_dtype(weight.dtype) or location(array) != location(weight):
                raise RuntimeError(
                    f"{self.parameter.name} is {weight.dtype} on {location(weight)}, but was "
                    f"{array.dtype} on {location(array)} when the optimiser was made: "
                    "make the optimiser after .to(...)"
                )


class Optimizer(ABC):
    """The base of the optimisers: everything but the update of one parameter.

    Parameters
    ----------
    learning_rate : float or Schedule
        A number, or a function from the number of steps made so far to a number.
    parameters : iterable of Parameter
        What to train, usually ``layer.parameters()``. Make the optimiser after ``layer.to(...)``.
    weight_decay : float or Regularizer, optional
        Regularizer of the parameters that have none of their own; a number means `L2Decay`.
    grad_clip : callable, optional
        One of `cupy_lstm.clip`, or any function of (parameter, gradient) pairs.
    loss_scale : float
        What the gradients were multiplied by, so that those of a half type do not vanish; they
        are divided by it first.

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong type or an impossible value.
    """

    memory_names: tuple[str, ...] = ()
    """Names of the arrays remembered for each parameter."""

    def __init__(
        self,
        learning_rate: float | Schedule,
        parameters: Iterable[Parameter],
        weight_decay: float | Regularizer | None,
        grad_clip: GradientClip | None,
        loss_scale: float,
    ) -> None:
        if not callable(learning_rate):
            learning_rate = checked_number("learning_rate", learning_rate)
        if weight_decay is not None and not isinstance(weight_decay, Regularizer):
            weight_decay = L2Decay(checked_number("weight_decay", weight_decay))
        if grad_clip is not None and not callable(grad_clip):
            raise TypeError(f"grad_clip must be callable or None, received {grad_clip!r}")
        self._learning_rate = learning_rate
        self._regularizer = weight_decay
        self._grad_clip = grad_clip
        self.loss_scale = checked_number("loss_scale", loss_scale, low_included=False)
        self._steps = 0
        self._memories = [Memory(p, self.memory_names) for p in _checked_parameters(parameters)]
        self._scratches: dict[object, Array] = {}

    @property
    def parameters(self) -> list[Parameter]:
        """The parameters it trains, in the order given."""
        return [memory.parameter for memory in self._memories]

    @property
    def learning_rate(self) -> float:
        """Learning rate of the next step; can be set where it is a number.

        Raises
        ------
        RuntimeError
            On setting it while a schedule decides.
        TypeError, ValueError
            If it is no number, or negative or not finite.
        """
        return rate_at(self._learning_rate, self._steps)

    @learning_rate.setter
    def learning_rate(self, value: float) -> None:
        if callable(self._learning_rate):
            raise RuntimeError(
                f"the learning rate follows {self._learning_rate!r}, it cannot be set"
            )
        self._learning_rate = checked_number("learning_rate", value)

    def step(self) -> None:
        """Update every parameter that is trainable and has a gradient.

        Raises
        ------
        RuntimeError
            If a parameter has moved since the optimiser was made. Nothing is updated then, and
            neither if clipping or the schedule raises.
        """
        with stage("optimizer step"):
            self._step()

    def _step(self) -> None:
        due = {id(m.parameter): m for m in self._memories if m.parameter.grad is not None}
        for memory in due.values():
            memory.check_place()
        rate = self.learning_rate
        pairs: ParameterGradients = [(m.parameter, self._gradient(m)) for m in due.values()]
        if self._grad_clip is not None:
            pairs = self._grad_clip(pairs)
        for parameter, gradient in pairs:
            memory = due[id(parameter)]
            weight = memory.weight()
            regularizer = parameter.regularizer or self._regularizer
            if regularizer is not None:
                gradient = gradient + regularizer.gradient(weight)
            self._update(
                weight,
                gradient,
                memory,
                rate * parameter.optimize_attr["learning_rate"],
                self._scratch(weight),
            )
            memory.updated()
        self._steps += 1

    def _gradient(self, memory: Memory) -> Array:
        gradient: Array = memory.parameter.grad
        return gradient if self.loss_scale == 1 else gradient / self.loss_scale

    @abstractmethod
    def _update(
        self, weight: Array, gradient: Array, memory: Memory, rate: float, scratch: Array
    ) -> None:
        """Update one weight and what is remembered of it, in place; `scratch` is like it."""

    def clear_grad(self, set_to_zero: bool = True) -> None:
        """Forget the gradients of all parameters.

        Parameters
        ----------
        set_to_zero : bool
            True leaves gradients arrays of zeros, False makes them None.
        """
        for parameter in self.parameters:
            parameter.clear_gradient(set_to_zero)

    def settings(self) -> dict[str, Any]:
        """Return what was chosen when it was made, by name; what `state_dict` has is left out."""
        changing = ("_steps", "_memories", "_scratches")
        return {
            name.removeprefix("_"): value
            for name, value in vars(self).items()
            if name not in changing
        }

    def state_dict(self) -> StateDict:
        """Return what it takes to go on later: live arrays, not copies, and numbers.

        Returns
        -------
        dict of str to array or number
            ``"steps"``, ``"learning_rate"`` unless a schedule decides, and for each parameter
            ``"{position}.{name}.{what}"``: the number of its updates, and the running averages.
        """
        state: StateDict = {"steps": self._steps}
        if not callable(self._learning_rate):
            state["learning_rate"] = self._learning_rate
        for key, memory in self._keyed():
            memory.weight()  # a master that is older than its weight is made anew
            state[f"{key}.updates"] = memory.updates
            state |= {f"{key}.{name}": array for name, array in memory.arrays.items()}
        return state

    def set_state_dict(self, state_dict: Mapping[str, Array | float]) -> None:
        """Go on from a saved state: all of it is checked first, then all is written.

        Set the weights first: a master that is in the state then stays as exact as it was.

        Parameters
        ----------
        state_dict : mapping of str to array or number
            As `state_dict` of an optimiser of the same kind for the same parameters. Arrays are
            copied; they may be on the host or on the device of the weights.

        Raises
        ------
        TypeError
            If it is no mapping, a value has the wrong type, or an array is on another device.
        ValueError
            If names are missing or unknown, or a shape, dtype or number does not fit. Nothing is
            written then.
        """
        if not isinstance(state_dict, Mapping):
            raise TypeError(
                "state_dict must be a mapping of names to arrays and numbers, "
                f"received {type(state_dict).__name__}"
            )
        current = self.state_dict()
        if current.keys() != state_dict.keys():
            raise ValueError(
                f"state_dict does not fit this {type(self).__name__}: missing "
                f"{sorted(current.keys() - state_dict.keys())}, unknown "
                f"{sorted(state_dict.keys() - current.keys(), key=str)}; nothing was loaded"
            )
        for key, value in current.items():
            _check_state(f"state_dict[{key!r}]", state_dict[key], value)
        self._steps = int(state_dict["steps"])
        if not callable(self._learning_rate):
            self._learning_rate = float(state_dict["learning_rate"])
        for key, memory in self._keyed():
            memory.updates = int(state_dict[f"{key}.updates"])
            for name, array in memory.arrays.items():
                array[...] = array_module(array).asarray(state_dict[f"{key}.{name}"])
            memory.note_weight()

    def _keyed(self) -> list[tuple[str, Memory]]:
        # Two layers may name their parameters alike: the position makes a name unique.
        return [(f"{index}.{m.parameter.name}", m) for index, m in enumerate(self._memories)]

    def _scratch(self, like: Array) -> Array:
        """Return an array like `like` that stays allocated; all of a shape share one."""
        key = (like.shape, like.dtype, location(like))
        if key not in self._scratches:
            self._scratches[key] = _zeros_like(like)
        return self._scratches[key]


def _zeros_like(array: Array) -> Array:
    return array_module(array).zeros_like(array)


def _checked_parameters(parameters: Iterable[Parameter]) -> list[Parameter]:
    if not isinstance(parameters, Iterable):
        raise TypeError(
            f"parameters must be an iterable of Parameter, received {type(parameters).__name__}: "
            "give layer.parameters()"
        )
    found = list(parameters)
    for index, parameter in enumerate(found):
        if not isinstance(parameter, Parameter):
            raise TypeError(
                f"parameters[{index}] must be a Parameter, received {type(parameter).__name__}: "
                "give layer.parameters()"
            )
    if not found:
        raise ValueError("parameters is empty: give layer.parameters()")
    if len({id(p) for p in found}) < len(found):
        raise ValueError("parameters holds a parameter twice")
    return found


def _check_state(name: str, value: Any, current: Array | float) -> None:
    """Raise unless `value` can take the place of `current` in a state."""
    if isinstance(current, int):
        checked_integer(name, value, minimum=0)
    elif isinstance(current, float):
        checked_number(name, value)
    elif not is_array(value):
        raise TypeError(f"{name} must be an array, received {type(value).__name__}")
    elif value.shape != current.shape or value.dtype != current.dtype:
        raise ValueError(
            f"{name} has shape {value.shape} and dtype {value.dtype}, "
            f"but must have {current.shape} and {current.dtype}"
        )
    elif not isinstance(value, numpy.ndarray) and location(value) != location(current):
        raise TypeError(f"{name} is on {location(value)}, but must be on {location(current)}")
