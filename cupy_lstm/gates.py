"""The gates of the LSTM cell and their derivatives, on whole batches, in place.

The equations are those of `cupy_lstm.notation`. The sigmoid is 1 / (1 + exp(-z)), which keeps
its relative accuracy where a gate is nearly closed; the cheaper tanh(z/2) would not. Where
exp(-z) overflows the quotient is the right zero: callers silence that one warning.
"""

from cupy_lstm.backend import Array, array_module


def split(gates: Array) -> tuple[Array, Array, Array, Array]:
    """Return views of the blocks i, f, g, o of an array [...,4H], each [...,H]."""
    H = gates.shape[-1] // 4
    return gates[..., :H], gates[..., H : 2 * H], gates[..., 2 * H : 3 * H], gates[..., 3 * H :]


def forward(z: Array, c_prev: Array, c: Array, m: Array, scratch: Array) -> None:
    """Run the cell of one step from its pre-activations.

    Parameters
    ----------
    z : array [D,B,4H]
        Pre-activations; become the activated gates.
    c_prev : array [D,B,H]
        Cell state before the step.
    c : array [D,B,H]
        Receives the cell state after it.
    m : array [D,B,H]
        Receives the cell output o * tanh(c).
    scratch : array [D,B,H]
        Overwritten.
    """
    xp = array_module(z)
    i, f, g, o = split(z)
    # The exponential runs over whole rows, which is faster than over the blocks that need it.
    xp.tanh(g, out=scratch)
    xp.negative(z, out=z)
    xp.exp(z, out=z)
    xp.add(z, 1, out=z)
    xp.divide(1, z, out=z)
    g[...] = scratch
    xp.multiply(i, scratch, out=scratch)
    xp.multiply(f, c_prev, out=c)
    xp.add(c, scratch, out=c)
    xp.tanh(c, out=scratch)
    xp.multiply(o, scratch, out=m)


def backward_factors(
    gates: Array, c_prev: Array, c: Array, m: Array, forget: Array, dc_factor: Array
) -> None:
    """Prepare a chunk of steps: everything in their derivatives that depends on no gradient.

    With tanh'(c) = 1 - tanh(c)^2 and dc the whole gradient of c, the chain rule gives::

        dz_i = dc * g * i * (1 - i)          dz_g = dc * i * (1 - g^2)
        dz_f = dc * c_prev * f * (1 - f)     dz_o = dm * tanh(c) * o * (1 - o)
        dc  += dm * o * (1 - tanh(c)^2)      dc_prev = dc * f

    Parameters
    ----------
    gates : array [D,n,B,4H]
        Activated gates; become the factors of dc and dm in dz.
    c_prev, c : array [D,n,B,H]
        Cell states before and after each step.
    m : array [D,n,B,H]
        Receives the cell output o * tanh(c).
    forget : array [D,n,B,H]
        Receives the forget gate, the factor of dc in dc_prev.
    dc_factor : array [D,n,B,H]
        Receives o * (1 - tanh(c)^2), the factor of dm in dc.
    """
    xp = array_module(gates)
    i, f, g, o = split(gates)
    product = m
    xp.multiply(i, g, out=product)
    xp.multiply(g, g, out=g)
    xp.subtract(1, g, out=g)
    xp.multiply(g, i, out=g)
    xp.subtract(1, i, out=i)
    xp.multiply(i, product, out=i)

    forget[...] = f
    xp.subtract(1, f, out=f)
    xp.multiply(f, forget, out=f)
    xp.multiply(f, c_prev, out=f)

    tanh_c = dc_factor
    xp.tanh(c, out=tanh_c)
    xp.multiply(o, tanh_c, out=m)
    xp.multiply(tanh_c, tanh_c, out=dc_factor)
    xp.subtract(1, dc_factor, out=dc_factor)
    xp.multiply(dc_factor, o, out=dc_factor)
    xp.subtract(1, o, out=o)
    xp.multiply(o, m, out=o)


def backward(
    factors: Array, forget: Array, dc_factor: Array, dm: Array, dc: Array, scratch: Array
) -> None:
    """Go one step back through the cell.

    Parameters
    ----------
    factors : array [D,B,4H]
        As `backward_factors` left them; become dz, the gradient of the pre-activations.
    forget, dc_factor : array [D,B,H]
        As `backward_factors` left them.
    dm : array [D,B,H]
        Gradient of the cell output.
    dc : array [D,B,H]
        Gradient of the cell state after the step; becomes that of the state before it.
    scratch : array [D,B,H]
        Overwritten.
    """
    xp = array_module(factors)
    xp.multiply(dm, dc_factor, out=scratch)
    xp.add(dc, scratch, out=dc)
    blocks = factors.reshape(*dc.shape[:-1], 4, dc.shape[-1])
    by_dc, by_dm = blocks[..., :3, :], blocks[..., 3, :]
    xp.multiply(by_dc, dc[..., None, :], out=by_dc)
    xp.multiply(by_dm, dm, out=by_dm)
    xp.multiply(dc, forget, out=dc)
