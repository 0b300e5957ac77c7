"""Matrix products, one for each direction in a single call."""

from cupy_lstm.backend import Array, array_module


def matmul(a: Array, b: Array, out: Array) -> None:
    """Write ``out[d] = a[d] @ b[d]`` for a [D,M,K], b [D,K,N], out [D,M,N].

    The operands may be transposed views.
    """
    array_module(out).matmul(a, b, out=out)


def matmul_add(a: Array, b: Array, out: Array, product: Array) -> None:
    """Add ``a[d] @ b[d]`` to out [D,M,N]; `product` is scratch of the same shape."""
    xp = array_module(out)
    xp.matmul(a, b, out=product)
    xp.add(out, product, out=out)
