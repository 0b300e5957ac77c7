"""Which array module a run uses."""

from cupy_lstm.forecast.errors import DataError
from cupy_lstm.info import find_cupy, find_gpus, first_line


def choose_module(wanted: str) -> tuple[str, str]:
    """Return the name of the array module to use, and words for the user about it.

    Parameters
    ----------
    wanted : {"auto", "numpy", "cupy"}
        ``"auto"``: CuPy if it can compute something on a GPU, else NumPy.

    Raises
    ------
    DataError
        If CuPy is wanted and does not work; the message says why.
    """
    if wanted == "numpy":
        return "numpy", "NumPy"
    cupy, version = find_cupy()
    gpus, why_none = find_gpus(cupy) if cupy else ([], f"CuPy is {version}")
    if cupy and gpus:
        try:
            cupy.arange(2).sum().get()
            return "cupy", f"CuPy on {gpus[0]}"
        except Exception as error:  # a GPU that is listed and broken fails in many ways
            why_none = first_line(error)
    if wanted == "cupy":
        raise DataError(f"--xp cupy does not work here: {why_none}")
    return "numpy", "NumPy (no usable GPU: python -m cupy_lstm info says why)"
