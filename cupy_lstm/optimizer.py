"""The optimisers: SGD, Adam and AdamW."""

from collections.abc import Iterable
from math import sqrt

from cupy_lstm.backend import Array, array_module
from cupy_lstm.checks import checked_boolean, checked_number
from cupy_lstm.clip import GradientClip
from cupy_lstm.optimizer_base import Memory, Optimizer
from cupy_lstm.parameter import Parameter
from cupy_lstm.regularizer import Regularizer
from cupy_lstm.schedule import Schedule


class SGD(Optimizer):
    """Stochastic gradient descent, with momentum if wanted.

    With gradient g, rate r and momentum m: v = m v + g; w = w - r v, or with Nesterov's
    look-ahead w = w - r (g + m v). As `paddle.optimizer.SGD` and `Momentum`.

    Parameters
    ----------
    learning_rate : float or Schedule
        r, a number or a function of the number of steps made so far.
    parameters : iterable of Parameter
        What to train.
    momentum : float
        m, in [0, 1); 0 remembers nothing.
    nesterov : bool
        Whether to look ahead; needs momentum.
    weight_decay : float or Regularizer, optional
        Regularizer of the parameters that have none of their own; a number means `L2Decay`.
    grad_clip : callable, optional
        One of `cupy_lstm.clip`.
    loss_scale : float
        What the gradients were multiplied by, for half types; they are divided by it first.

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong type or an impossible value.
    """

    def __init__(
        self,
        learning_rate: float | Schedule = 0.001,
        parameters: Iterable[Parameter] = (),
        *,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float | Regularizer | None = None,
        grad_clip: GradientClip | None = None,
        loss_scale: float = 1.0,
    ) -> None:
        self._momentum = checked_number("momentum", momentum, high=1)
        self._nesterov = checked_boolean("nesterov", nesterov)
        if nesterov and not self._momentum:
            raise ValueError("nesterov=True needs momentum, received momentum=0")
        self.memory_names = ("velocity",) if self._momentum else ()
        super().__init__(learning_rate, parameters, weight_decay, grad_clip, loss_scale)

    def _update(
        self, weight: Array, gradient: Array, memory: Memory, rate: float, scratch: Array
    ) -> None:
        xp = array_module(weight)
        if self._momentum:
            velocity = memory.arrays["velocity"]
            velocity *= self._momentum
            velocity += gradient
            if self._nesterov:
                xp.multiply(velocity, self._momentum, out=scratch)
                scratch += gradient
                gradient = scratch
            else:
                gradient = velocity
        xp.multiply(gradient, rate, out=scratch)
        weight -= scratch


class Adam(Optimizer):
    """Adam (Kingma and Ba, 2015), as `paddle.optimizer.Adam`.

    With gradient g, rate r and the parameter's update number t: m = beta1 m + (1 - beta1) g;
    v = beta2 v + (1 - beta2) g^2;
    w = w - r m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + epsilon).

    Parameters
    ----------
    learning_rate : float or Schedule
        r, a number or a function of the number of steps made so far.
    parameters : iterable of Parameter
        What to train.
    beta1, beta2 : float
        How much of the running averages of g and g^2 a step keeps, in [0, 1).
    epsilon : float
        Keeps the division finite, positive.
    weight_decay : float or Regularizer, optional
        Regularizer of the parameters that have none of their own; a number means `L2Decay`.
    grad_clip : callable, optional
        One of `cupy_lstm.clip`.
    loss_scale : float
        What the gradients were multiplied by, for half types; they are divided by it first.

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong type or an impossible value.
    """

    memory_names = ("moment1", "moment2")

    def __init__(
        self,
        learning_rate: float | Schedule = 0.001,
        parameters: Iterable[Parameter] = (),
        *,
        beta1: float = 0.9,
        beta2: float = 0.999,
        epsilon: float = 1e-8,
        weight_decay: float | Regularizer | None = None,
        grad_clip: GradientClip | None = None,
        loss_scale: float = 1.0,
    ) -> None:
        self._beta1 = checked_number("beta1", beta1, high=1)
        self._beta2 = checked_number("beta2", beta2, high=1)
        self._epsilon = checked_number("epsilon", epsilon, low_included=False)
        super().__init__(learning_rate, parameters, weight_decay, grad_clip, loss_scale)

    def _update(
        self, weight: Array, gradient: Array, memory: Memory, rate: float, scratch: Array
    ) -> None:
        xp = array_module(weight)
        mean, mean_square = memory.arrays["moment1"], memory.arrays["moment2"]
        mean *= self._beta1
        xp.multiply(gradient, 1 - self._beta1, out=scratch)
        mean += scratch
        mean_square *= self._beta2
        xp.multiply(gradient, gradient, out=scratch)
        scratch *= 1 - self._beta2
        mean_square += scratch
        # The averages begin at zero; these two factors undo the bias that gives them.
        update = memory.updates + 1
        bias1 = 1 - self._beta1**update
        bias2 = 1 - self._beta2**update
        xp.sqrt(mean_square, out=scratch)
        scratch /= sqrt(bias2)
        scratch += self._epsilon
        xp.divide(mean, scratch, out=scratch)
        scratch *= rate / bias1
        weight -= scratch


class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov and Hutter, 2019).

    Before Adam's update, w = w (1 - r weight_decay). A regularizer of the parameter's own is
    added to its gradient as well. As `paddle.optimizer.AdamW`.

    Parameters
    ----------
    learning_rate : float or Schedule
        r, a number or a function of the number of steps made so far.
    parameters : iterable of Parameter
        What to train.
    beta1, beta2 : float
        How much of the running averages of g and g^2 a step keeps, in [0, 1).
    epsilon : float
        Keeps the division finite, positive.
    weight_decay : float
        Share of the weight that a step takes away, in units of the learning rate.
    grad_clip : callable, optional
        One of `cupy_lstm.clip`.
    loss_scale : float
        What the gradients were multiplied by, for half types; they are divided by it first.

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong type or an impossible value.
    """

    def __init__(
        self,
        learning_rate: float | Schedule = 0.001,
        parameters: Iterable[Parameter] = (),
        *,
        beta1: float = 0.9,
        beta2: float = 0.999,
        epsilon: float = 1e-8,
        weight_decay: float = 0.01,
        grad_clip: GradientClip | None = None,
        loss_scale: float = 1.0,
    ) -> None:
        self._decay = checked_number("weight_decay", weight_decay)
        super().__init__(
            learning_rate,
            parameters,
            beta1=beta1,
            beta2=beta2,
            epsilon=epsilon,
            grad_clip=grad_clip,
            loss_scale=loss_scale,
        )

    def _update(
        self, weight: Array, gradient: Array, memory: Memory, rate: float, scratch: Array
    ) -> None:
        weight *= 1 - rate * self._decay
        super()._update(weight, gradient, memory, rate, scratch)
