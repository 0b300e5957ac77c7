"""The truth the tests hold every engine against: an LSTM written from its equations only.

It shares no code with the package. One Python loop runs per layer, direction, batch row and step,
so a sequence length is trivial: a row is run unpadded over its own ``x[:n]``. The gradients are
backpropagation through time, derived by hand. ``dtype`` chooses the arithmetic: an extended or
double precision run is the reference, and the same loop in the dtype of an engine is the naive
implementation whose rounding error that engine is measured against.

Notation: T steps, B batch, I input size, H hidden size, P output size (H without a projection),
D directions, L layers. The rows of every 4H array are the gates i, f, g, o:

    z = W_ih x + b_ih + W_hh h_prev + b_hh
    c = sigmoid(z_f) c_prev + sigmoid(z_i) tanh(z_g)
    h = sigmoid(z_o) tanh(c), with a projection times W_ho [H, P]
"""

from dataclasses import dataclass, field

import numpy as np


@dataclass
class Result:
    """Everything an LSTM returns; the gradients stay None without an upstream gradient."""

    y: np.ndarray  # [B, T, D*P] or [T, B, D*P]
    h: np.ndarray  # [L*D, B, P]
    c: np.ndarray  # [L*D, B, H]
    cells: np.ndarray  # [B, T, D*H] or [T, B, D*H]: c of the last layer at every step
    dx: np.ndarray | None = None
    dh0: np.ndarray | None = None
    dc0: np.ndarray | None = None
    grads: dict[str, np.ndarray] = field(default_factory=dict)


@dataclass
class Step:
    """What one step of one row leaves behind for its backward step."""

    x: np.ndarray
    h_prev: np.ndarray
    c_prev: np.ndarray
    i: np.ndarray
    f: np.ndarray
    g: np.ndarray
    o: np.ndarray
    c: np.ndarray
    h: np.ndarray


def sigmoid(z):
    """1 / (1 + exp(-z)) without overflow on either side."""
    e = np.exp(-np.abs(z))
    return np.where(z >= 0, 1 / (1 + e), e / (1 + e))


def dot(matrix, vector):
    """Return ``matrix @ vector``, adding one product after the other as a naive loop does.

    A BLAS would add in an order, and so with an error, that differs from machine to machine.
    """
    return np.cumsum(matrix * vector, axis=1)[:, -1]


def step_forward(x, h_prev, c_prev, w):
    """Equations of one step of one row: ``x [I]``, ``h_prev [P]``, ``c_prev [H]``."""
    z = dot(w["weight_ih"], x) + dot(w["weight_hh"], h_prev)
    for bias in ("bias_ih", "bias_hh"):
        if bias in w:
            z = z + w[bias]
    z_i, z_f, z_g, z_o = np.split(z, 4)
    i, f, g, o = sigmoid(z_i), sigmoid(z_f), np.tanh(z_g), sigmoid(z_o)
    c = f * c_prev + i * g
    m = o * np.tanh(c)
    h = dot(w["weight_ho"].T, m) if "weight_ho" in w else m
    return Step(x, h_prev, c_prev, i, f, g, o, c, h)


def step_backward(s, dh, dc, w, dw):
    """Gradients of one step, from those of its h and c; adds the weights' own into ``dw``."""
    tanh_c = np.tanh(s.c)
    dm = dh
    if "weight_ho" in w:
        dw["weight_ho"] += np.outer(s.o * tanh_c, dh)
        dm = dot(w["weight_ho"], dh)
    dc = dc + dm * s.o * (1 - tanh_c**2)
    di, df, dg, do = dc * s.g, dc * s.c_prev, dc * s.i, dm * tanh_c
    dz = np.concatenate(
        [
            di * s.i * (1 - s.i),
            df * s.f * (1 - s.f),
            dg * (1 - s.g**2),
            do * s.o * (1 - s.o),
        ]
    )
    dw["weight_ih"] += np.outer(dz, s.x)
    dw["weight_hh"] += np.outer(dz, s.h_prev)
    for bias in ("bias_ih", "bias_hh"):
        if bias in w:
            dw[bias] += dz
    return dot(w["weight_ih"].T, dz), dot(w["weight_hh"].T, dz), dc * s.f


def row_forward(x, h, c, w):
    """Run one unpadded row ``x [n, I]``; return its n steps and the final states."""
    tape = []
    for x_t in x:
        tape.append(step_forward(x_t, h, c, w))
        h, c = tape[-1].h, tape[-1].c
    return tape, h, c


def row_backward(tape, dy, dcells, dh, dc, w, dw):
    """Backward of `row_forward`: ``dy [n, P]``, ``dcells [n, H]``, final dh and dc."""
    dx = [None] * len(tape)
    for t in reversed(range(len(tape))):
        dx[t], dh, dc = step_backward(tape[t], dh + dy[t], dc + dcells[t], w, dw)
    return dx, dh, dc


def lstm_oracle(
    x,
    weights,
    *,
    bidirectional=False,
    is_reverse=False,
    time_major=False,
    states=None,
    lengths=None,
    masks=None,
    upstream=None,
    dtype=np.float64,
):
    """Forward pass and, given an upstream gradient, exact backward pass of a whole LSTM.

    Parameters
    ----------
    x : array [B, T, I], or [T, B, I] if time_major
    weights : dict of arrays
        ``weight_ih_l0`` [4H, I], ``weight_hh_l0`` [4H, P], ``bias_ih_l0``, ``bias_hh_l0`` [4H],
        ``weight_ho_l0`` [H, P], with ``_reverse`` appended for the second direction and so on for
        each layer. A missing bias or ``weight_ho`` means there is none.
    bidirectional, is_reverse : bool
        Both directions, or the only direction running backward in time.
    states : (h0 [L*D, B, P], c0 [L*D, B, H]), zero without
    lengths : B integers from 0 to T, T without
    masks : list of L-1 arrays
        What the input of layer 1, 2, ... is multiplied by, laid out as y.
    upstream : dict
        Gradient of the loss for any of ``y``, ``h``, ``c``, ``cells``; a missing one is zero.
    """
    batch_major = (lambda a: np.swapaxes(a, 0, 1)) if time_major else (lambda a: a)
    convert = lambda a: np.asarray(a).astype(dtype)  # noqa: E731
    weights = {name: convert(w) for name, w in weights.items()}
    directions = [("", is_reverse), ("_reverse", True)][: 1 + bidirectional]
    D = len(directions)
    L = sum(name.startswith("weight_ih") for name in weights) // D
    H, P = weights["weight_hh_l0"].shape[0] // 4, weights["weight_hh_l0"].shape[1]
    x = batch_major(convert(x))
    B, T, _ = x.shape
    lengths = [T] * B if lengths is None else [int(n) for n in lengths]
    h0 = np.zeros((L * D, B, P), dtype) if states is None else convert(states[0])
    c0 = np.zeros((L * D, B, H), dtype) if states is None else convert(states[1])
    masks = [None, *([None] * (L - 1) if masks is None else map(batch_major, map(convert, masks)))]

    def cell_weights(table, layer, suffix):
        end = f"_l{layer}{suffix}"
        return {n.removesuffix(end): w for n, w in table.items() if n.endswith(end)}

    h, c = h0.copy(), c0.copy()
    tapes = {}
    inputs = x
    for layer in range(L):
        if masks[layer] is not None:
            inputs = inputs * masks[layer]
        y, cells = np.zeros((B, T, D * P), dtype), np.zeros((B, T, D * H), dtype)
        for d, (suffix, flipped) in enumerate(directions):
            w = cell_weights(weights, layer, suffix)
            order, k = (-1 if flipped else 1), layer * D + d
            for b, n in enumerate(lengths):
                tape, h[k, b], c[k, b] = row_forward(inputs[b, :n][::order], h0[k, b], c0[k, b], w)
                for t, step in zip(range(n)[::order], tape, strict=True):
                    y[b, t, d * P : (d + 1) * P] = step.h
                    cells[b, t, d * H : (d + 1) * H] = step.c
                tapes[layer, d, b] = tape
        inputs = y
    result = Result(batch_major(y), h, c, batch_major(cells))
    if upstream is None:
        return result

    def given(name, shape):
        return convert(upstream[name]) if name in upstream else np.zeros(shape, dtype)

    dy = batch_major(given("y", result.y.shape))
    dcells = batch_major(given("cells", result.cells.shape))
    dh0, dc0 = given("h", h.shape).copy(), given("c", c.shape).copy()
    grads = {name: np.zeros_like(w) for name, w in weights.items()}
    for layer in reversed(range(L)):
        width = weights[f"weight_ih_l{layer}"].shape[1]
        dx = np.zeros((B, T, width), dtype)
        for d, (suffix, flipped) in enumerate(directions):
            w, dw = cell_weights(weights, layer, suffix), cell_weights(grads, layer, suffix)
            order, k = (-1 if flipped else 1), layer * D + d
            for b, n in enumerate(lengths):
                dx_row, dh0[k, b], dc0[k, b] = row_backward(
                    tapes[layer, d, b],
                    dy[b, :n, d * P : (d + 1) * P][::order],
                    dcells[b, :n, d * H : (d + 1) * H][::order],
                    dh0[k, b],
                    dc0[k, b],
                    w,
                    dw,
                )
                for t, dx_t in zip(range(n)[::order], dx_row, strict=True):
                    dx[b, t] += dx_t
        if masks[layer] is not None:
            dx = dx * masks[layer]
        dy, dcells = dx, np.zeros((B, T, D * H), dtype)
    result.dx, result.dh0, result.dc0, result.grads = batch_major(dx), dh0, dc0, grads
    return result


def philox(counter, key):
    """Return the four 64-bit words of one Philox4x64-10 block (Salmon et al., 2011)."""
    M, W = (0xD2E7470EE14C6C93, 0xCA5A826395121157), (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)
    word = 2**64
    (c0, c1, c2, c3), (k0, k1) = counter, key
    for _ in range(10):
        first, second = M[0] * c0, M[1] * c2
        c0, c1, c2, c3 = (
            second // word ^ c1 ^ k0,
            second % word,
            first // word ^ c3 ^ k1,
            first % word,
        )
        k0, k1 = (k0 + W[0]) % word, (k1 + W[1]) % word
    return c0, c1, c2, c3


def dropout_mask(T, B, F, *, layer, probability, seed, call):
    """Return the factors [T, B, F] on the input of a layer: 0, or 1 / (1 - probability).

    Eight neighbouring features share a block of random bits, with the key (seed, call) and the
    counter (row * ceil(F / 8) + feature // 8, t, layer, 0). Each takes 32 bits of it, the lowest
    first, and is dropped where they are below probability * 2^32.
    """
    mask = np.zeros((T, B, F))
    if probability == 1:
        return mask
    for t, row, feature in np.ndindex(T, B, F):
        block = row * -(-F // 8) + feature // 8
        words = philox((block, t, layer, 0), (seed, call))
        bits = words[feature % 8 // 2] >> 32 * (feature % 2) & 0xFFFFFFFF
        mask[t, row, feature] = (bits >= probability * 2**32) / (1 - probability)
    return mask
