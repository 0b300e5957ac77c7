"""Learning-rate schedules: pure functions of the number of steps an optimiser has made.

Any callable of an int that returns a float serves; these are the usual ones. Each step of the
optimiser is one step of the schedule: for one that counts epochs, multiply its lengths by the
batches of an epoch.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import cos, pi
from typing import TypeAlias

from cupy_lstm.checks import checked_integer, checked_number

Schedule: TypeAlias = Callable[[int], float]
"""Learning rate by the number of steps made so far."""


@dataclass(frozen=True)
class StepDecay:
    """Multiply the rate by `gamma` after every `step_size` steps.

    Parameters
    ----------
    learning_rate : float
        Rate of the first step.
    step_size : int
        Steps between two changes.
    gamma : float
        Factor, not negative.

    Raises
    ------
    TypeError, ValueError
        If a field has the wrong type or an impossible value.
    """

    learning_rate: float
    step_size: int
    gamma: float = 0.1

    def __post_init__(self) -> None:
        checked_number("learning_rate", self.learning_rate)
        checked_integer("step_size", self.step_size)
        checked_number("gamma", self.gamma)

    def __call__(self, step: int) -> float:
        """Return the rate after `step` steps."""
        return float(self.learning_rate * self.gamma ** (step // self.step_size))


@dataclass(frozen=True)
class CosineAnnealingDecay:
    """Move the rate to `eta_min` along half a cosine (Loshchilov and Hutter, 2017).

    It has the period 2 T_max: after T_max steps it rises again.

    Parameters
    ----------
    learning_rate : float
        Rate of the first step.
    T_max : int
        Steps until `eta_min` is reached.
    eta_min : float
        The rate there.

    Raises
    ------
    TypeError, ValueError
        If a field has the wrong type or an impossible value.
    """

    learning_rate: float
    T_max: int
    eta_min: float = 0.0

    def __post_init__(self) -> None:
        checked_number("learning_rate", self.learning_rate)
        checked_integer("T_max", self.T_max)
        checked_number("eta_min", self.eta_min)

    def __call__(self, step: int) -> float:
        """Return the rate after `step` steps."""
        share = (1 + cos(pi * step / self.T_max)) / 2
        return self.eta_min + (self.learning_rate - self.eta_min) * share


@dataclass(frozen=True)
class LinearWarmup:
    """Move the rate from `start_lr` to `end_lr` on a line, then follow another schedule.

    Parameters
    ----------
    learning_rate : float or Schedule
        What follows; a schedule begins with its own step 0.
    warmup_steps : int
        Steps of the line.
    start_lr : float
        Rate of the first step.
    end_lr : float, optional
        Where the line ends; default: where `learning_rate` begins.

    Raises
    ------
    TypeError, ValueError
        If a field has the wrong type or an impossible value.
    """

    learning_rate: float | Schedule
    warmup_steps: int
    start_lr: float = 0.0
    end_lr: float | None = None

    def __post_init__(self) -> None:
        if not callable(self.learning_rate):
            checked_number("learning_rate", self.learning_rate)
        checked_integer("warmup_steps", self.warmup_steps)
        checked_number("start_lr", self.start_lr)
        if self.end_lr is not None:
            checked_number("end_lr", self.end_lr)

    def __call__(self, step: int) -> float:
        """Return the rate after `step` steps."""
        if step >= self.warmup_steps:
            return rate_at(self.learning_rate, step - self.warmup_steps)
        end = rate_at(self.learning_rate, 0) if self.end_lr is None else self.end_lr
        return self.start_lr + (end - self.start_lr) * step / self.warmup_steps


def rate_at(learning_rate: float | Schedule, step: int) -> float:
    """Return a learning rate, given as a number or a schedule, after `step` steps.

    Raises
    ------
    TypeError, ValueError
        If a schedule returned no number, or one that is negative or not finite.
    """
    if callable(learning_rate):
        return checked_number(f"learning_rate({step})", learning_rate(step))
    return float(learning_rate)
