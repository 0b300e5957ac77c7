"""Training on several processes with CuPy arrays, as far as it goes without NCCL or a second GPU.

NCCL is a fake that knows one other process, whose arrays are the same as ours.
"""

import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from cupy_lstm import LSTM, SGD, ClipGradByGlobalNorm, Layer, fit, mse_loss
from cupy_lstm.distributed import NcclCommunicator, nccl, summed_gradients
from cupy_lstm.distributed.mpi import MpiCommunicator

pytestmark = pytest.mark.gpu_on_cpu


class Processes:
    """Stands for `MpiCommunicator`: of two processes this is the first."""

    rank, size, local_rank = 0, 2, 0

    def abort(self):
        raise SystemExit("aborted")


class FakeNccl:
    def __init__(self, calls):
        self.calls = calls

    def all_reduce(self, source, target, op="sum", stream=None):
        self.calls.append(("all_reduce", source.size, stream))
        assert source is target and source.flags.c_contiguous and op == "sum"
        with stream:
            target *= 2

    def broadcast(self, array):
        self.calls.append(("broadcast", array.size))
        assert array.flags.c_contiguous


@pytest.fixture
def calls(cupy, monkeypatch):
    """Put the fakes in place, and return what NCCL is asked for."""
    calls = []

    def init_process_group(size, rank, use_mpi):
        assert (size, rank, use_mpi) == (2, 0, True)
        return FakeNccl(calls)

    module = ModuleType("cupyx.distributed")
    module.init_process_group = init_process_group
    monkeypatch.setitem(sys.modules, "cupyx.distributed", module)
    monkeypatch.setattr(cupy.cuda, "nccl", SimpleNamespace(available=True), raising=False)
    monkeypatch.setattr(nccl, "MpiCommunicator", Processes)
    return calls


@pytest.mark.parametrize("own_stream", [False, True])
def test_gradients_are_summed_by_nccl(cupy, calls, own_stream):
    class Watched(cupy.cuda.Stream):
        def wait_event(self, event):
            calls.append(("wait_event",))
            super().wait_event(event)

    stream = Watched(non_blocking=True) if own_stream else None
    communicator = NcclCommunicator(stream)
    assert (communicator.rank, communicator.size, communicator.xp) == (0, 2, cupy)
    grads = []
    for sums in (None, communicator):
        lstm = LSTM(3, 4, 2, xp="cupy", seed=0)
        y, _ = lstm(cupy.ones((2, 5, 3), "float32"))
        if sums is None:
            lstm.backward(y)
        else:
            with summed_gradients(sums, lstm.parameters(), bucket_bytes=1):
                lstm.backward(y)
        grads.append([p.grad.get() for p in lstm.parameters()])
    # A stream of its own must not run ahead of the backward pass that makes the gradients.
    a_sum = ["wait_event", "all_reduce"] if own_stream else ["all_reduce"]
    assert [call[0] for call in calls] == a_sum * 2
    expected = stream if own_stream else cupy.cuda.get_current_stream()
    assert all(call[2] == expected for call in calls if call[0] == "all_reduce")
    for single, summed in zip(*grads, strict=True):
        assert np.array_equal(summed, 2 * single)


class LastStep(Layer):
    def __init__(self):
        super().__init__(xp="cupy")
        self.lstm = LSTM(3, 4, 2, xp="cupy", seed=0)

    def __call__(self, x):
        return self.lstm(x)[1][0][-1]

    def backward(self, gradient):
        zeros = self.xp.zeros_like(gradient)
        self.lstm.backward(None, (self.xp.stack([zeros, gradient]), None))


def test_a_training_through_nccl(cupy, calls):
    """The other process has half of every batch, and what it has is the same as our half."""
    rng = np.random.default_rng(0)
    x = cupy.asarray(rng.standard_normal((2, 5, 3)).astype("float32"))
    y = cupy.asarray(rng.standard_normal((2, 4)).astype("float32"))
    twice = cupy.concatenate([x, x]), cupy.concatenate([y, y])
    found = []
    for communicator, batch in ((NcclCommunicator(), twice), (None, (x, y))):
        model = LastStep()
        optimizer = SGD(0.1, model.parameters(), grad_clip=ClipGradByGlobalNorm(0.01))
        options = {"epochs": 3, "progress": False, "communicator": communicator}
        history = fit(model, mse_loss, optimizer, [batch], [batch], **options)
        found.append((history, [p.numpy() for p in model.parameters()]))
    (history, trained), (alone, expected) = found
    assert history == alone
    for weight, single in zip(trained, expected, strict=True):
        assert np.array_equal(weight, single)
    assert {call[0] for call in calls} == {"all_reduce", "broadcast"}


def test_abort_is_that_of_mpi(calls):
    with pytest.raises(SystemExit, match="aborted"):
        NcclCommunicator().abort()


def test_without_nccl_it_says_what_to_install(cupy, calls, monkeypatch):
    monkeypatch.setattr(cupy.cuda, "nccl", SimpleNamespace(available=False), raising=False)
    with pytest.raises(ImportError, match="pip install nvidia-nccl-cu12"):
        NcclCommunicator()


class Request:
    Wait = staticmethod(lambda: None)
    Testall = staticmethod(lambda requests: None)


class FakeMpi(SimpleNamespace):
    """One process that calls itself two."""

    rank, size = 0, 2
    IN_PLACE, REQUEST_NULL, COMM_TYPE_SHARED = "in place", "null", "shared"

    def __init__(self):
        super().__init__(taken=[], COMM_WORLD=self, Request=Request)

    def Dup(self):  # noqa: N802 - as MPI has it
        return self

    def Split_type(self, kind):  # noqa: N802
        return self

    def Free(self):  # noqa: N802
        pass

    def Iallreduce(self, place, array):  # noqa: N802
        self.taken.append(array)
        return Request()

    def Bcast(self, array):  # noqa: N802
        self.taken.append(array)


@pytest.mark.parametrize("cuda_aware", [False, True])
def test_mpi_takes_cupy_arrays_if_it_is_said_to_be_made_for_them(cupy, cuda_aware, monkeypatch):
    from cupy_lstm.distributed import mpi

    fake = FakeMpi()
    monkeypatch.setattr(mpi, "imported_mpi", lambda: fake)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    communicator, array = MpiCommunicator(cuda_aware=cuda_aware), cupy.ones(3)
    if not cuda_aware:
        for method in (communicator.start_sum, communicator.broadcast):
            with pytest.raises(TypeError, match=r"received one on a GPU: use NcclCommunicator"):
                method(array)
        assert fake.taken == []
        return
    waited = []
    monkeypatch.setattr(
        cupy.cuda, "get_current_stream",
        lambda: SimpleNamespace(synchronize=lambda: waited.append(len(fake.taken))),
    )  # fmt: skip
    communicator.start_sum(array)()
    communicator.broadcast(array)
    assert waited == [0, 1], "MPI knows no streams: each time the array must be there first"
    assert fake.taken[0] is array is fake.taken[1]
