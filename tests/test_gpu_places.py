"""Devices: the second one works, and arrays at the wrong place are errors that name the fix."""

import numpy as np
import pytest
from cases import CASES, backward, forward, make_lstm
from gpu_cases import arrays_of, assert_device_case, call, each_dtype, on_device, on_host
from gpu_on_cpu import record

from cupy_lstm import LSTM, RNN, SGD, Adam, Batches, BiRNN, Linear, LSTMCell, mse_loss
from cupy_lstm.dropout import Dropout

pytestmark = pytest.mark.gpu_on_cpu

CHOSEN = [case for case in CASES if case.id in ("cells-bidirectional", "dropout", "projection")]


@pytest.fixture
def second(cupy):
    return cupy.cuda.Device(1)


def raised(error, call):
    with pytest.raises(error) as caught:
        call()
    return str(caught.value)


@each_dtype
@pytest.mark.parametrize("case", CHOSEN, ids=lambda case: case.id)
def test_the_second_device_works(cupy, second, case, dtype):
    arrays = arrays_of(case, dtype)
    with second, record() as log:
        lstm = make_lstm(case, arrays.weights, dtype, xp="cupy")
        result = on_host(call(lstm, case, on_device(cupy, arrays)))
    assert_device_case(case, dtype, result)
    used = [*log.launches, *log.gemms, *(e for e in log.allocations if e.kind != "pinned")]
    assert {entry.device for entry in used} == {1}


def test_both_devices_give_the_same_bits(cupy, second):
    case = CHOSEN[0]
    arrays, bits = arrays_of(case, "float32"), []
    for device in (cupy.cuda.Device(0), second):
        with device:
            lstm = make_lstm(case, arrays.weights, "float32", xp="cupy")
            given = on_device(cupy, arrays)
            result = backward(lstm, case, given, forward(lstm, case, given))
            bits.append([array.get().tobytes() for array in (result.y, result.dx, result.dc0)])
    assert bits[0] == bits[1]


ELSEWHERE = "is on cupy, device 0, but the {} are on cupy, device 1: copy it to that device first"


def test_arrays_on_another_device(cupy, second):
    here = {
        "x": cupy.ones((2, 5, 3), "float32"),
        "h": cupy.ones((1, 2, 4), "float32"),
        "n": cupy.array([5, 1]),
        "y": cupy.ones((2, 5, 4), "float32"),
    }
    with second:
        lstm = LSTM(3, 4, xp="cupy", seed=0)
        x, h = cupy.ones((2, 5, 3), "float32"), cupy.ones((1, 2, 4), "float32")
        wrong = {
            "inputs": lambda: lstm(here["x"]),
            "initial_states[0] (h)": lambda: lstm(x, (here["h"], h)),
            "initial_states[1] (c)": lambda: lstm(x, (h, here["h"])),
            "sequence_length": lambda: lstm(x, None, here["n"]),
        }
        for argument, function in wrong.items():
            owner = "inputs" if argument == "sequence_length" else "weights"
            with record() as log:
                assert raised(TypeError, function) == f"{argument} {ELSEWHERE.format(owner)}"
            assert not log.launches
        y, _ = lstm(x)
        wrong = {
            "doutputs": lambda: lstm.backward(here["y"]),
            "dfinal_states[0] (dh)": lambda: lstm.backward(y, (here["h"], None)),
            "dfinal_states[1] (dc)": lambda: lstm.backward(y, (None, here["h"])),
            "dcells": lambda: lstm.backward(y, None, here["y"]),
        }
        for argument, function in wrong.items():
            assert raised(TypeError, function) == f"{argument} {ELSEWHERE.format('inputs')}"
        lstm.backward(y)  # the call can still be gone back through


def test_arrays_of_the_other_module(cupy):
    on_gpu, on_host_ = LSTM(3, 4, xp="cupy", seed=0), LSTM(3, 4, seed=0)
    x = np.ones((2, 5, 3), "float32")
    assert raised(TypeError, lambda: on_gpu(x)) == (
        "inputs is on numpy, but the weights are on cupy, device 0: move one of them, "
        "for example with .to('numpy')"
    )
    assert raised(TypeError, lambda: on_host_(cupy.asarray(x))) == (
        "inputs is on cupy, device 0, but the weights are on numpy: move one of them, "
        "for example with .to('cupy')"
    )
    assert raised(TypeError, lambda: on_gpu(cupy.asarray(x), (x, x))).startswith(
        "initial_states[0] (h) is on numpy, but the weights are on cupy, device 0"
    )
    assert raised(TypeError, lambda: mse_loss(x, cupy.asarray(x))).startswith(
        "target is on cupy, device 0, but the predictions are on numpy"
    )


def on_the_second(cupy, second):
    """Everything that can be called, with its arrays, on device 1; weights and a call made."""
    with second:
        options = {"xp": "cupy", "seed": 0}
        x, row = cupy.ones((2, 5, 3), "float32"), cupy.ones((2, 3), "float32")
        cell = LSTMCell(3, 4, **options)
        layers = {
            "LSTM": (LSTM(3, 4, **options), x),
            "Linear": (Linear(3, 4, **options), x),
            "LSTMCell": (LSTMCell(3, 4, **options), row),
            "RNN": (RNN(LSTMCell(3, 4, **options)), x),
            "BiRNN": (BiRNN(cell, LSTMCell(3, 4, **options)), x),
        }
        outputs = {name: layer(given) for name, (layer, given) in layers.items()}
    return layers, outputs


@pytest.mark.parametrize("name", ["LSTM", "Linear", "LSTMCell", "RNN", "BiRNN"])
def test_another_device_is_current(cupy, second, name):
    layers, outputs = on_the_second(cupy, second)
    layer, x = layers[name]
    y = outputs[name][0] if isinstance(outputs[name], tuple) else outputs[name]
    said = "but the current device is 0: call inside `with cupy.cuda.Device(1):`"
    with record() as log:
        assert said in raised(ValueError, lambda: layer(x))
        assert said in raised(ValueError, lambda: layer.backward(y))
    assert not [*log.launches, *log.gemms, *log.allocations]
    with second:
        layer.backward(y)
        assert all(p.grad is not None for p in layer.parameters())


def test_weights_can_be_set_and_read_from_anywhere(cupy, second):
    layers, _ = on_the_second(cupy, second)
    lstm, _ = layers["LSTM"]
    state = {name: array.get() for name, array in lstm.state_dict().items()}
    with record() as log:
        assert lstm.set_state_dict(state) == ([], [])
        assert lstm.set_state_dict(lstm.state_dict()) == ([], [])
        assert lstm.weight_ih_l0.buffer.make_gradient().device == second
        lstm.clear_gradients()
    # The current device is the other one, and nothing is put there.
    assert {entry.device for entry in log.allocations if entry.kind != "pinned"} == {1}
    for name, p in lstm.named_parameters():
        assert p.data.device == second
        assert p.numpy().tobytes() == state[name].tobytes()
    other = {name: cupy.asarray(array) for name, array in state.items()}
    said = "weight_ih_l0 is on cupy, device 1, received an array on cupy, device 0: copy it there"
    assert said in raised(TypeError, lambda: lstm.set_state_dict(other))


def test_moving_goes_to_the_current_device(cupy, second):
    lstm = LSTM(3, 4, xp="cupy", seed=0)
    with second:
        lstm.to("cupy")
        lstm(cupy.ones((2, 5, 3), "float32"))
    assert {p.data.device.id for p in lstm.parameters()} == {1}


def test_what_is_cupys_own_says_so_in_its_words(cupy, second):
    layers, _ = on_the_second(cupy, second)
    linear, x = layers["Linear"]
    with second:
        linear.backward(linear(x))
        optimizers = [SGD(0.1, linear.parameters()), Adam(0.1, linear.parameters())]
    before = linear.weight.numpy()
    said = "The device where the array resides (1) is different from the current device (0)"
    for optimizer in optimizers:
        assert said in raised(ValueError, optimizer.step)
    assert said in raised(ValueError, lambda: mse_loss(x, x))
    assert said in raised(ValueError, lambda: next(iter(Batches(x, x, 2))))
    assert linear.weight.numpy().tobytes() == before.tobytes()


def test_kernels_refuse_memory_of_another_device(cupy, second):
    with second:
        array = cupy.ones((2, 3, 4), "float32")
    assert raised(ValueError, lambda: Dropout(0.5, 1, 2).apply(array, 1)) == (
        "argument x of dropout<float, 4> is on device 1, but the current device is 0"
    )
