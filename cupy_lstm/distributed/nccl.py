"""Processes with a GPU each that talk through NCCL, by `cupyx.distributed`."""

from typing import Any

from cupy_lstm.backend import Array, import_module
from cupy_lstm.distributed.communicator import Wait
from cupy_lstm.distributed.mpi import MpiCommunicator


class NcclCommunicator:
    """Processes with a GPU each that talk through NCCL; for CuPy arrays.

    MPI starts the processes, numbers them and ends them; the arrays go from GPU to GPU. This has
    not been run on a card yet.

    Parameters
    ----------
    stream : cupy.cuda.Stream, optional
        Where sums run beside what the current stream still computes; events order the two.
        Default: the current stream itself, where a sum comes after all that was asked for before.

    Attributes
    ----------
    rank, size, xp, local_rank
        As of `MpiCommunicator`; `xp` is CuPy.

    Raises
    ------
    ImportError
        If mpi4py, MPI, CuPy or NCCL (``pip install nvidia-nccl-cu12``) is missing.
    """

    def __init__(self, stream: Any = None) -> None:
        self._processes = MpiCommunicator()
        self.rank, self.size = self._processes.rank, self._processes.size
        self.local_rank = self._processes.local_rank
        self.xp, self._stream = import_module("cupy"), stream
        if not self.xp.cuda.nccl.available:
            raise ImportError(
                "CuPy arrays on several processes need NCCL: pip install nvidia-nccl-cu12 (cu13 "
                "for CUDA 13), or train on NumPy arrays"
            )
        from cupyx.distributed import init_process_group

        self._nccl = init_process_group(self.size, self.rank, use_mpi=True)

    def start_sum(self, array: Array) -> Wait:
        """Begin to put the sum over all processes into `array`; waiting is the stream's part."""
        computing = self.xp.cuda.get_current_stream()
        stream = self._stream or computing
        stream.wait_event(computing.record())
        self._nccl.all_reduce(array, array, stream=stream)
        done = stream.record()
        return lambda: computing.wait_event(done)

    def broadcast(self, array: Array) -> None:
        """Overwrite `array` by that of rank 0, in the current stream."""
        self._nccl.broadcast(array)

    def abort(self) -> None:
        """End all processes that MPI has started."""
        self._processes.abort()
