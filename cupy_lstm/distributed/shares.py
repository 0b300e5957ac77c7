"""The rows of a batch that each process computes."""

from typing import Any, NamedTuple

from cupy_lstm.distributed.communicator import Communicator


class Share(NamedTuple):
    """A process's part of a batch.

    Attributes
    ----------
    batch : tuple
        Like the whole batch, with the rows of this process: views.
    first_row : int
        Which row of the whole batch is its first.
    weight : float
        Its rows over those of the whole batch: what a gradient of a mean over its rows is
        multiplied by, so that the sum over all processes is the gradient of the whole mean.
    """

    batch: Any
    first_row: int
    weight: float


def share_of(batch: Any, communicator: Communicator) -> Share:
    """Return this process's share of a batch: successive rows, as many as others have or one more.

    Where there are fewer rows than processes, the last ones get the first row with weight 0: they
    run what the others run, and add nothing.

    Parameters
    ----------
    batch : tuple (inputs, targets, ...)
        The same on every process. Arrays, or tuples of them, with the rows along their first
        axis; what has no axes, such as a flag for the model, goes to all.
    communicator : Communicator
        The processes.

    Raises
    ------
    ValueError
        If the targets have no first axis, or an array another number of rows than they have.
    """
    if communicator.size == 1 or not isinstance(batch, tuple | list) or len(batch) < 2:
        return Share(batch, 0, 1.0)
    rows = _rows_of(batch[1])
    if rows is None:
        raise ValueError(
            "targets must be an array with rows along its first axis to be divided over "
            f"processes, received {type(batch[1]).__name__}"
        )
    first, stop = _range(rows, communicator.rank, communicator.size)
    if first == stop:
        return Share(_chosen(tuple(batch), slice(0, 1), rows), 0, 0.0)
    return Share(_chosen(tuple(batch), slice(first, stop), rows), first, (stop - first) / rows)


def _range(rows: int, rank: int, size: int) -> tuple[int, int]:
    each, more = divmod(rows, size)
    first = rank * each + min(rank, more)
    return first, first + each + (rank < more)


def _chosen(part: Any, chosen: slice, rows: int) -> Any:
    if isinstance(part, tuple):
        return tuple(_chosen(inner, chosen, rows) for inner in part)
    found = _rows_of(part)
    if found is None:
        return part
    if found != rows:
        raise ValueError(
            f"an array of the batch has {found} rows, but the targets have {rows}: a batch is "
            "divided over processes along the first axis of its arrays"
        )
    return part[chosen]


def _rows_of(part: Any) -> int | None:
    """Return the length of an array or list; None for what has no axes."""
    shape = getattr(part, "shape", None)
    if shape is None:
        return len(part) if isinstance(part, list) else None
    return int(shape[0]) if shape else None
