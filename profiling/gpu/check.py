"""Whether an LSTM on the GPU is right, before anybody times it.

Truth is this package on NumPy arrays in float64. The yardstick is a naive loop, below, of the dtype
that is checked: for a half type it computes in float32 and rounds x and every h to that type. A
result may be twice as far from the truth as that loop, and 4 eps of the largest magnitude.
"""

from collections.abc import Mapping

import numpy as np

from cupy_lstm import LSTM, engine
from cupy_lstm.backend import HostArray

Arrays = Mapping[str, HostArray]

EPS = {"float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}


def dtype_of(name: str) -> "np.dtype":
    """Return a dtype by its name; bfloat16 is that of ml_dtypes."""
    if name == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)


def made_arrays(
    steps: int, batch: int, inputs: int, hidden: int, dtype: str
) -> dict[str, HostArray]:
    """Return an input, weights and a gradient of the outputs, rounded to a dtype."""
    rng = np.random.default_rng(steps + batch + inputs + hidden)
    bound = hidden**-0.5

    def uniform(*shape: int) -> HostArray:
        return rng.uniform(-bound, bound, shape).astype("float32").astype(dtype_of(dtype))

    return {
        "x": rng.standard_normal((steps, batch, inputs), "float32").astype(dtype_of(dtype)),
        "dy": rng.standard_normal((steps, batch, hidden), "float32").astype(dtype_of(dtype)),
        "weight_ih": uniform(4 * hidden, inputs),
        "weight_hh": uniform(4 * hidden, hidden),
        "bias_ih": uniform(4 * hidden),
        "bias_hh": uniform(4 * hidden),
    }


WEIGHTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


def layer(arrays: Arrays, dtype: str, xp: str) -> LSTM:
    """Return an LSTM with these weights, time first."""
    gates, inputs = arrays["weight_ih"].shape
    lstm = LSTM(inputs, gates // 4, time_major=True, dtype=dtype, xp=xp, seed=0)
    state = {f"{name}_l0": arrays[name].astype(dtype_of(dtype)) for name in WEIGHTS}
    lstm.set_state_dict(state)
    return lstm


def truth(arrays: Arrays) -> dict[str, HostArray]:
    """Return outputs and gradients in float64 on the host."""
    lstm = layer(arrays, "float64", "numpy")
    with engine("stepwise"):
        y, _ = lstm(arrays["x"].astype("float64"))
        dx, _ = lstm.backward(arrays["dy"].astype("float64"))
    return {"y": y, "dx": dx, **{f"d{n}": getattr(lstm, f"{n}_l0").grad for n in WEIGHTS}}


def naive(arrays: Arrays, dtype: str) -> dict[str, HostArray]:
    """Return outputs and gradients of a plain loop, in float32 with h rounded to a dtype."""
    x, dy, w_ih, w_hh, b_ih, b_hh = (
        arrays[name].astype("float32") for name in ("x", "dy", *WEIGHTS)
    )
    (T, B, _), H = x.shape, w_hh.shape[1]
    h, c = np.zeros((T + 1, B, H), "float32"), np.zeros((T + 1, B, H), "float32")
    gates = np.empty((T, 4, B, H), "float32")
    for t in range(T):
        z = x[t] @ w_ih.T + b_ih + h[t] @ w_hh.T + b_hh
        i, f, g, o = np.split(z, 4, axis=1)
        gates[t] = sigmoid(i), sigmoid(f), np.tanh(g), sigmoid(o)
        i, f, g, o = gates[t]
        c[t + 1] = f * c[t] + i * g
        h[t + 1] = (o * np.tanh(c[t + 1])).astype(dtype_of(dtype))
    dz = np.empty((T, B, 4 * H), "float32")
    dh, dc = np.zeros((B, H), "float32"), np.zeros((B, H), "float32")
    for t in reversed(range(T)):
        i, f, g, o = gates[t]
        dh, tanh_c = dh + dy[t], np.tanh(c[t + 1])
        dc = dc + dh * o * (1 - tanh_c**2)
        parts = dc * g * i * (1 - i), dc * c[t] * f * (1 - f), dc * i * (1 - g**2)
        dz[t] = np.concatenate([*parts, dh * tanh_c * o * (1 - o)], axis=1)
        dh, dc = dz[t] @ w_hh, dc * f
    bias = dz.sum((0, 1))
    return {
        "y": h[1:],
        "dx": dz @ w_ih,
        "dweight_ih": np.tensordot(dz, x, ((0, 1), (0, 1))),
        "dweight_hh": np.tensordot(dz, h[:-1], ((0, 1), (0, 1))),
        "dbias_ih": bias,
        "dbias_hh": bias,
    }


def sigmoid(z: HostArray) -> HostArray:
    """Return 1 / (1 + exp(-z))."""
    with np.errstate(over="ignore"):
        return np.asarray(1 / (1 + np.exp(-z)))


class Check:
    """What a call must give for a few of its rows, the first, the last and one between.

    Rows do not depend on each other, and where the gradient of the outputs is zero in all others,
    those of the weights are theirs alone: so the very call that is timed can be checked, whatever
    its batch, for the price of these rows on the host.

    Attributes
    ----------
    dy : array [T,B,H]
        The gradient of the outputs to check with.
    """

    def __init__(self, arrays: Arrays, dtype: str, tf32: bool = False) -> None:
        """`tf32`: products are of operands rounded to 10 bits, as those of float16."""
        batch, like = arrays["x"].shape[1], "float16" if tf32 else dtype
        self._rows = sorted({0, batch // 2, batch - 1})
        some = {**arrays, "x": arrays["x"][:, self._rows], "dy": arrays["dy"][:, self._rows]}
        self._truth, self._yardstick, self._eps = truth(some), naive(some, like), EPS[like]
        self.dy = np.zeros_like(arrays["dy"])
        self.dy[:, self._rows] = some["dy"]

    def found_wrong(self, results: Arrays) -> list[str]:
        """Return a sentence for each result that breaks the error rule; none if all are right."""
        wrong = []
        for name, result in results.items():
            if name in ("y", "dx"):
                if name == "dx" and np.delete(result, self._rows, axis=1).any():
                    wrong.append("dx: not zero where dy is")
                result = result[:, self._rows]
            reference, naive_result = self._truth[name], self._yardstick[name]
            error = abs(result.astype("float64") - reference).max()
            allowed = 2 * abs(naive_result - reference).max()
            allowed += 4 * self._eps * abs(reference).max()
            if not error <= allowed:
                wrong.append(f"{name}: error {error:.3g}, the rule allows {allowed:.3g}")
        return wrong
