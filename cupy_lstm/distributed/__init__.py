"""Training on several processes: each has all weights and a part of every batch.

``fit(..., communicator=launched())`` is data-parallel where the process was started by mpiexec or
srun, and ordinary elsewhere. The pieces, for a loop of one's own: `share_of` a batch,
`cupy_lstm.modes.rows_from` for its dropout, `summed_gradients` around the backward pass.
"""

from cupy_lstm.distributed.agreement import on_first
from cupy_lstm.distributed.communicator import Communicator, SingleProcess, aborting
from cupy_lstm.distributed.gradients import summed_gradients
from cupy_lstm.distributed.launcher import launched
from cupy_lstm.distributed.mpi import MpiCommunicator
from cupy_lstm.distributed.nccl import NcclCommunicator
from cupy_lstm.distributed.scaling import linear_scaling
from cupy_lstm.distributed.shares import Share, share_of

__all__ = [
    "Communicator",
    "MpiCommunicator",
    "NcclCommunicator",
    "Share",
    "SingleProcess",
    "aborting",
    "launched",
    "linear_scaling",
    "on_first",
    "share_of",
    "summed_gradients",
]
