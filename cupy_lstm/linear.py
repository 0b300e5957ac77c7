"""A linear layer, as paddle.nn.Linear."""

from types import ModuleType
from typing import Any

import numpy

from cupy_lstm.backend import (
    Array,
    array_module,
    require_current_device,
    sum_dtype,
)
from cupy_lstm.buffer import Buffer
from cupy_lstm.checks import checked_array, checked_integer, checked_name, seeded_generator
from cupy_lstm.gemm import matmul
from cupy_lstm.initializer import Constant, Fans, Initializer, XavierUniform
from cupy_lstm.interchange import array_beside
from cupy_lstm.modes import is_recording
from cupy_lstm.parameter import ParamAttr, Parameter, drawn_value
from cupy_lstm.recorder import RecordedLayer


class Linear(RecordedLayer):
    """The affine map y = x W + b over the last axis, as `paddle.nn.Linear`.

    Parameters
    ----------
    in_features : int
        Size of the last axis of the input.
    out_features : int
        Size of the last axis of the output.
    weight_attr : None, True, str, Initializer, Regularizer or ParamAttr
        How the weight is made and trained; drawn by `XavierUniform` unless it says otherwise.
    bias_attr : None, bool, str, Initializer, Regularizer or ParamAttr
        The same for the bias, which is zero unless it says otherwise. False: no bias.
    name : str, optional
        Accepted as Paddle does; it names nothing.
    dtype : dtype-like
        float32 or float64, or float16 or bfloat16 on CuPy.
    xp : module or str
        ``numpy`` or ``cupy``, where the parameters live.
    seed : int, optional
        Seed of the first values; default: a fresh one from the operating system.

    Attributes
    ----------
    weight : Parameter [in_features, out_features]
        W.
    bias : Parameter [out_features] or None
        b.

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong type or an impossible value.
    ImportError
        If `xp` is CuPy and cannot be imported.

    Examples
    --------
    >>> import numpy
    >>> from cupy_lstm import Linear
    >>> linear = Linear(3, 2)
    >>> y = linear(numpy.ones((4, 3), "float32"))
    >>> dx = linear.backward(numpy.ones_like(y))
    """

    weight: Parameter
    bias: Parameter | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        weight_attr: Any = None,
        bias_attr: Any = None,
        name: str | None = None,
        *,
        dtype: Any = "float32",
        xp: str | ModuleType = "numpy",
        seed: int | None = None,
    ) -> None:
        super().__init__(dtype, xp)
        self.in_features = checked_integer("in_features", in_features)
        self.out_features = checked_integer("out_features", out_features)
        checked_name(name)
        generator = seeded_generator(seed)
        self.weight = self._parameter("weight", weight_attr, XavierUniform(), generator)
        self.bias = None
        if bias_attr is not False:
            self.bias = self._parameter("bias", bias_attr, Constant(0.0), generator)

    def _parameter(
        self, name: str, attr: Any, default: Initializer, generator: numpy.random.Generator
    ) -> Parameter:
        shape = (self.in_features, self.out_features)[0 if name == "weight" else 1 :]
        attr = ParamAttr.of(attr, f"{name}_attr")
        fans = Fans(self.in_features, self.out_features)
        values = drawn_value(name, attr, default, shape, fans, generator)
        return Parameter(Buffer.from_host([values], self.xp, self.dtype), 0, name, attr)

    def __call__(self, x: Array) -> Array:
        """Map the last axis of `x`.

        Parameters
        ----------
        x : array [..., in_features]
            Of the dtype and on the device of the weights; any leading axes, also none or empty
            ones. Kept by reference until `backward`, except under `no_grad`.

        Returns
        -------
        array [..., out_features]
            x W + b, a fresh array.

        Raises
        ------
        TypeError
            If `x` is no array or lives elsewhere than the weights.
        ValueError
            If its dtype or its last axis does not fit.
        """
        weight = self.weight.row
        require_current_device(weight, "the weights")
        x = array_beside("x", x, weight, "the weights")
        checked_array("x", x, weight, "the weights", (*x.shape[:-1], self.in_features))
        rows = x.reshape(-1, self.in_features)
        y = array_module(x).empty((len(rows), self.out_features), x.dtype)
        matmul(rows[None], weight[None], out=y[None])
        if self.bias is not None:
            y += self.bias.row
        self._recorder.keep(x if is_recording() else None, self.weight.buffer.version)
        return y.reshape(*x.shape[:-1], self.out_features)

    def backward(self, dy: Array) -> Array:
        """Return the gradient of the input, and add those of the parameters to their `grad`.

        Parameters
        ----------
        dy : array [..., out_features]
            Gradient of the last call's output; same shape, dtype and device.

        Returns
        -------
        array [..., in_features]
            Gradient of `x`.

        Raises
        ------
        RuntimeError
            If no call was recorded since the last backward, or a weight changed since.
        TypeError, ValueError
            If `dy` does not fit; nothing changes then and `backward` can be called again.
        """
        x = self._recorder.current(self.weight.buffer.version)
        weight = self.weight.row
        require_current_device(weight, "the weights")
        dy = checked_array("dy", dy, weight, "the weights", (*x.shape[:-1], self.out_features))
        xp, sums = array_module(x), sum_dtype(x.dtype)
        inputs = x.reshape(-1, self.in_features)
        gradients = dy.reshape(-1, self.out_features)
        with self._recorder.exclusive():
            if self.weight.trainable:
                product = xp.empty(weight.shape, sums)
                matmul(inputs.T[None], gradients[None], out=product[None])
                self.weight.add_gradient(product)
            if self.bias is not None and self.bias.trainable:
                self.bias.add_gradient(gradients.sum(axis=0, dtype=sums))
        self._recorder.clear()
        dx = xp.empty(inputs.shape, x.dtype)
        matmul(gradients[None], weight.T[None], out=dx[None])
        return dx.reshape(x.shape)

    def __repr__(self) -> str:
        bias = "" if self.bias is not None else ", bias_attr=False"
        return f"Linear({self.in_features}, {self.out_features}{bias}, dtype={str(self.dtype)!r})"
