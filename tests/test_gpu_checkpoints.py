"""Checkpoints of a training on CuPy arrays: bit for bit there, too; read back only to write."""

import pytest
from checkpoint_cases import BATCHES, Training, interrupted, whole
from full import only_in_full
from gpu_on_cpu import record
from gpu_on_cpu.driver.recorder import Copy, Synchronisation

pytest.importorskip("safetensors", reason="safetensors is not installed: no checkpoints")
pytestmark = pytest.mark.gpu_on_cpu

EPOCHS = 2


@pytest.mark.parametrize(
    "dtype",
    [
        "float32",
        "bfloat16",  # with masters
        pytest.param("float16", marks=only_in_full),
        pytest.param("float64", marks=only_in_full),
    ],
)
def test_goes_on_bit_for_bit(cupy, tmp_path, dtype):
    expected = Training(xp=cupy, dtype=dtype).fit(epochs=EPOCHS)
    interrupted(Training(xp=cupy, dtype=dtype), tmp_path, BATCHES + 3, every=1, epochs=EPOCHS)
    found = Training(xp=cupy, dtype=dtype).fit(tmp_path, every=1, epochs=EPOCHS)
    assert found == expected


def test_what_began_on_the_host_goes_on_on_the_gpu(cupy, tmp_path):
    interrupted(Training(), tmp_path, BATCHES + 3)
    training = Training(xp=cupy)
    found = training.fit(tmp_path, epochs=EPOCHS)["history"]
    assert isinstance(training.model.head.weight.data, cupy.ndarray)
    assert found["loss"][0] == whole()["history"]["loss"][0]
    assert len(found["loss"]) == EPOCHS


def read_back(cupy, folder, every):
    """Return how many parameters a training has, and how often it has read back and waited."""
    training = Training(xp=cupy)
    with record() as log:
        training.fit(folder, every=every, epochs=EPOCHS)
    copies = [entry for entry in log.of(Copy) if entry.kind == "device 0 to host"]
    return len(training.model.parameters()), len(copies), len(log.of(Synchronisation))


def test_arrays_are_read_back_only_to_write_them(cupy, tmp_path):
    read_back(cupy, None, None)  # what is loaded the first time
    number, before, waits = read_back(cupy, None, None)
    # Of each parameter the weight, two averages, and the best weight after the first epoch.
    _, after, more_waits = read_back(cupy, tmp_path / "epochs", None)
    assert after - before == 4 * number * EPOCHS
    assert more_waits - waits <= after - before
    # Two in each epoch and one at the end, without a best weight in the first epoch. The sum of the
    # loss, too, where the epoch is not over.
    _, after, more_waits = read_back(cupy, tmp_path / "steps", BATCHES // 2)
    assert after - before == (4 * (2 * EPOCHS + 1) - 2) * number + EPOCHS
    assert more_waits - waits <= after - before
