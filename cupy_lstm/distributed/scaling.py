"""The learning rate of a batch that grows with the number of processes."""

from cupy_lstm.distributed.communicator import Communicator
from cupy_lstm.schedule import Schedule


def linear_scaling(learning_rate: float | Schedule, communicator: Communicator) -> float | Schedule:
    """Return a learning rate times the number of processes (Goyal et al., 2017).

    For those who make the batch larger by that number, too; `fit` divides the batch that it is
    given, and the same batch wants the same rate. Large rates want a `LinearWarmup` besides.

    Parameters
    ----------
    learning_rate : float or Schedule
        What an `Optimizer` takes, right for the batch of one process.
    communicator : Communicator
        The processes.
    """
    if not callable(learning_rate):
        return learning_rate * communicator.size
    return lambda step: learning_rate(step) * communicator.size
