"""Gradients summed over processes, while the backward pass is still running."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from cupy_lstm.announcements import watching_gradients
from cupy_lstm.backend import Array, array_module
from cupy_lstm.distributed.communicator import Communicator, Wait
from cupy_lstm.parameter import Parameter
from cupy_lstm.ranges import stage

BUCKET_BYTES = 2**20
"""Smaller gradients wait for company: a sum costs a latency, however small it is."""


@contextmanager
def summed_gradients(
    communicator: Communicator, parameters: Iterable[Parameter], bucket_bytes: int = BUCKET_BYTES
) -> Iterator[None]:
    """Sum gradients over processes: put it around one backward pass, after gradients are cleared.

    The sum of a layer's gradients starts when they are complete, while the layers below it are
    still in backward; small ones start together. At the end all sums are waited for and copied back
    into the gradients. A gradient that grows after its sum has started (weights that two layers
    share) is summed again. A backward of your own adds by `Parameter.add_gradient`, which announces
    it: what is written into ``p.grad`` after the sum has started is overwritten by the sum.

    Parameters
    ----------
    communicator : Communicator
        The processes; all make the same model go through the same backward pass.
    parameters : iterable of Parameter
        Whose gradients to sum, in the same order everywhere.
    bucket_bytes : int
        Gradients whose sum is started together are at least so large.

    Examples
    --------
    >>> import numpy
    >>> from cupy_lstm import LSTM, Adam
    >>> from cupy_lstm.distributed import launched, summed_gradients
    >>> lstm, communicator = LSTM(3, 4), launched()
    >>> optimizer = Adam(0.01, lstm.parameters())
    >>> y, _ = lstm(numpy.ones((2, 5, 3), "float32"))
    >>> with summed_gradients(communicator, optimizer.parameters):
    ...     _ = lstm.backward(y)
    >>> optimizer.step()
    """
    if communicator.size == 1:
        yield
        return
    sums = _Sums(communicator, parameters, bucket_bytes)
    with watching_gradients(sums.take):
        yield
    with stage("gradient sums"):
        sums.finish()


class _Sums:
    """Sums of gradients, started one after another."""

    def __init__(
        self, communicator: Communicator, parameters: Iterable[Parameter], bucket_bytes: int
    ) -> None:
        self._communicator = communicator
        self._parameters = {id(p): p for p in parameters}
        self._bucket_bytes = bucket_bytes
        self._waiting: dict[int, Parameter] = {}
        self._started: list[tuple[list[Parameter], Array, Wait]] = []
        self._taken: set[int] = set()

    def take(self, parameters: Sequence[Parameter]) -> None:
        """Take in parameters whose gradients are complete."""
        for parameter in parameters:
            if id(parameter) in self._parameters and parameter.grad is not None:
                self._append(parameter)
        if sum(_gradient(p).nbytes for p in self._waiting.values()) >= self._bucket_bytes:
            self._start()

    def finish(self) -> None:
        """Sum all that is left, and put every sum where its gradient is."""
        for key, parameter in self._parameters.items():
            if parameter.grad is not None and key not in self._taken:
                self._append(parameter)
        self._start()
        # A gradient that grew after its sum had been started was taken again: the last one counts.
        for parameters, flat, wait in self._started:
            wait()
            start = 0
            for parameter in parameters:
                gradient = _gradient(parameter)
                gradient[...] = flat[start : start + gradient.size].reshape(gradient.shape)
                start += gradient.size

    def _append(self, parameter: Parameter) -> None:
        if any(_gradient(p).dtype != _gradient(parameter).dtype for p in self._waiting.values()):
            self._start()
        self._waiting[id(parameter)] = parameter
        self._taken.add(id(parameter))

    def _start(self) -> None:
        """Start the sum of all that is waiting, in one piece of memory."""
        parameters = list(self._waiting.values())
        self._waiting = {}
        if parameters:
            gradients = [_gradient(p).reshape(-1) for p in parameters]
            flat = array_module(gradients[0]).concatenate(gradients)
            self._started.append((parameters, flat, self._communicator.start_sum(flat)))


def _gradient(parameter: Parameter) -> Array:
    gradient: Array = parameter.grad
    return gradient
