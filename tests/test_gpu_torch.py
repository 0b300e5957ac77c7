"""The bridge on CUDA, as far as it can be tried without a GPU.

PyTorch has no tensors on the fake device. So tensors of the host stand for them: what is exchanged
is copied by the tests, all between is what would run on a card. The exchange itself is tried with
stand-ins for one tensor and one stream. None of this has run on a card.
"""

from types import SimpleNamespace

import numpy as np
import pytest
from exchange import DLPack
from gpu_cases import HALF, each_dtype, storage
from gpu_on_cpu import record
from torch_cases import assert_as_oracle, imported, normal

from cupy_lstm import LSTM as OwnLSTM  # noqa: N811 - a class under another name

pytestmark = [pytest.mark.gpu_on_cpu, pytest.mark.filterwarnings("ignore:.*torch.*")]


@pytest.fixture
def torch(cupy):
    return imported("torch", "the bridge is not tried")


@pytest.fixture(params=[True, False], ids=["a stream of its own", "the default stream"])
def stream(cupy, torch, monkeypatch, request):
    """A stream that is PyTorch's current one, and not CuPy's."""
    cuda = cupy.cuda
    stream = cuda.Stream(non_blocking=True) if request.param else cuda.Stream.null
    theirs = SimpleNamespace(cuda_stream=stream.ptr)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: theirs)
    with cuda.Stream(non_blocking=True):
        yield stream


def on_gpu(torch, array, index=0):
    """Return a stand-in for a tensor on a GPU that has the memory of a CuPy array."""
    value = DLPack(array)
    value.device, value.detach = torch.device("cuda", index), lambda: value
    return value


def test_tensors_become_arrays_without_a_copy_in_the_stream_of_torch(cupy, torch, stream):
    from cupy_lstm.torch.tensors import array_of, beside

    tensor = on_gpu(torch, cupy.arange(4.0))
    with beside(tensor):
        assert cupy.cuda.get_current_stream().ptr == stream.ptr
        array = array_of(tensor)
    assert array.data.ptr == tensor._array.data.ptr
    assert tensor.streams == [stream.ptr or 1]  # DLPack numbers the default stream so
    assert cupy.cuda.get_current_stream().ptr != stream.ptr


def test_the_device_is_the_tensor_s(cupy, torch, stream):
    from cupy_lstm.torch.tensors import beside

    with cupy.cuda.Device(1):
        tensor = on_gpu(torch, cupy.arange(4.0), 1)
    with beside(tensor):
        assert cupy.cuda.Device().id == 1
    assert cupy.cuda.Device().id == 0


def test_arrays_become_tensors_by_dlpack(cupy, torch, monkeypatch):
    from cupy_lstm.torch.tensors import tensor_of

    monkeypatch.setattr(torch, "from_dlpack", lambda array: ("tensor of", array))
    array = cupy.arange(4.0)
    assert tensor_of(array) == ("tensor of", array)


def test_half_types_are_for_cuda(cupy, torch):
    from cupy_lstm.torch.tensors import require_supported

    for dtype in ("float16", "bfloat16", "float32", "float64"):
        device = torch.device("cuda", 0)
        require_supported(SimpleNamespace(device=device, dtype=getattr(torch, dtype)))


@pytest.fixture
def exchanged(cupy, torch, stream, monkeypatch):
    """Let tensors of the host stand for those of a GPU."""
    from cupy_lstm.torch import function, tensors, weights

    def array_of(tensor):
        tensor = tensor.detach()
        if tensor.dtype == torch.bfloat16:
            return cupy.asarray(tensor.view(torch.int16).numpy().view(storage("bfloat16")))
        return cupy.asarray(tensor.numpy())

    def tensor_of(array):
        host = cupy.asnumpy(array)
        if host.dtype == storage("bfloat16"):
            return torch.from_numpy(np.ascontiguousarray(host).view("int16")).view(torch.bfloat16)
        return torch.from_numpy(host)

    place = SimpleNamespace(device=torch.device("cuda", 0))
    monkeypatch.setitem(tensors.ARRAY_MODULES, "cpu", "cupy")
    monkeypatch.setattr(function, "beside", lambda tensor: tensors.beside(place))
    monkeypatch.setattr(function, "tensor_of", tensor_of)
    for module in (function, weights):
        monkeypatch.setattr(module, "array_of", array_of)
    return SimpleNamespace(array_of=array_of, tensor_of=tensor_of)


@each_dtype
@pytest.mark.parametrize("bidirectional", [False, True])
def test_forward_and_backward(cupy, torch, exchanged, stream, dtype, bidirectional):
    """Bit for bit what the package's own LSTM gives, all of it launched in PyTorch's stream."""
    from cupy_lstm.torch import LSTM

    kind = getattr(torch, dtype)
    lstm = LSTM(3, 4, 2, bidirectional=bidirectional, dtype=kind)
    x, states = normal(torch, 5, 2, 3).to(kind).requires_grad_(), (2 + 2 * bidirectional, 2, 4)
    h, c = (normal(torch, *states, seed=s).to(kind).requires_grad_() for s in (1, 2))
    dy = normal(torch, 5, 2, 4 + 4 * bidirectional, seed=3).to(kind)
    with record() as log:
        y, (hn, cn) = lstm(x, (h, c))
        torch.autograd.backward([y, cn], [dy, c.detach()])
    assert {launch.stream for launch in log.launches} == {stream.ptr}
    assert {t.dtype for t in (y, hn, cn, x.grad, h.grad, c.grad)} == {kind}
    assert {p.grad.dtype for p in lstm.parameters()} == {kind}

    direction = "bidirect" if bidirectional else "forward"
    own = OwnLSTM(3, 4, 2, direction, time_major=True, dtype=dtype, xp="cupy")
    own.set_state_dict(
        {name: exchanged.array_of(weight) for name, weight in lstm.named_parameters()}
    )
    sums = "float32" if dtype in HALF else dtype
    initial, given = [exchanged.array_of(tensor) for tensor in (h, c)], exchanged.array_of(dy)
    initial[1] = initial[1].astype(sums)
    y_own, (h_own, c_own) = own(exchanged.array_of(x), tuple(initial))
    dx, (dh, dc) = own.backward(given, (None, initial[1]))
    pairs = [(y, y_own), (hn, h_own), (cn, c_own), (x.grad, dx), (h.grad, dh), (c.grad, dc)]
    pairs += [(p.grad, getattr(own, name).grad) for name, p in lstm.named_parameters()]
    for tensor, array in pairs:
        assert torch.equal(tensor, exchanged.tensor_of(array).to(kind))


def test_packed_sequences_and_inference(cupy, torch, exchanged, stream):
    from cupy_lstm.torch import LSTM

    lstm, x = LSTM(3, 4, bidirectional=True), normal(torch, 5, 3, 3)
    rnn = torch.nn.utils.rnn
    lengths = [2, 5, 1]
    packed = rnn.pack_padded_sequence(x, torch.tensor(lengths), enforce_sorted=False)
    with torch.inference_mode(), record() as log:
        y, (h, _) = lstm(packed)
    assert {launch.stream for launch in log.launches} == {stream.ptr}
    found = {"y": rnn.pad_packed_sequence(y)[0], "h": h}
    assert_as_oracle(lstm, found, x, lengths=lengths)
