"""The progress bar of a training, where tqdm is installed."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from cupy_lstm.history import EpochRecord


@contextmanager
def progress_bar(
    epochs: int, wanted: bool, done: int = 0
) -> Iterator[Callable[[EpochRecord], None]]:
    """Yield a function that shows a record; it does nothing where no bar can be had.

    `done` epochs were over before.
    """
    try:
        if not wanted:
            raise ImportError
        from tqdm.auto import tqdm
    except ImportError:
        yield lambda record: None
        return
    with tqdm(total=epochs, initial=done, unit="epoch") as bar:

        def show(record: EpochRecord) -> None:
            losses = {"loss": record.loss, "validation": record.validation_loss}
            bar.set_postfix({name: f"{x:.4g}" for name, x in losses.items() if x is not None})
            bar.update()

        yield show
