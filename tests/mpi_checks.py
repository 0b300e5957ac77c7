"""What a job of several processes computes for `test_mpi.py`: a folder of arrays by rank.

Run under mpiexec: ``python mpi_checks.py FOLDER``.
"""

import json
import sys
from pathlib import Path

import numpy as np
from distributed_cases import Forecaster, curve, data, train, weights

from cupy_lstm.distributed import launched, on_first, summed_gradients
from cupy_lstm.distributed.agreement import summed

communicator = launched()
assert launched() is communicator


def gradients(bucket_bytes):
    """Sum gradients that differ between ranks."""
    model = Forecaster(dropout=0.0)
    model(data()[0])
    with summed_gradients(communicator, model.parameters(), bucket_bytes):
        model.backward(np.full((23, 2), 1.0 + communicator.rank, "float32"))
    return {name: p.grad for name, p in model.named_parameters()}


def failure_of_the_first():
    try:
        on_first(communicator, lambda: 1 / 0)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def refusal_of_other_arrays():
    class OnGpu:
        pass

    try:
        communicator.start_sum(OnGpu())
    except TypeError as error:
        return str(error)


def large_sum():
    """More than one message, in the rounding of whatever order MPI has."""
    array = np.random.default_rng(communicator.rank).standard_normal(300_001)
    communicator.start_sum(array)()
    return array


def main(folder):
    arrays = {}
    for attempt in ("first", "second"):
        history, model = train(communicator, seed=communicator.rank)
        arrays[f"{attempt}/curve"] = curve(history)
        arrays |= {f"{attempt}/weights/{k}": v for k, v in weights(model).items()}
    for bucket_bytes in (1, 2**20):
        arrays |= {f"gradients/{bucket_bytes}/{k}": v for k, v in gradients(bucket_bytes).items()}
    arrays |= {"sum/first": large_sum(), "sum/second": large_sum()}
    said = on_first(communicator, lambda: {"rank": communicator.rank, "text": "µ"})
    facts = {
        "rank": communicator.rank,
        "size": communicator.size,
        "local_rank": communicator.local_rank,
        "kind": type(communicator).__name__,
        "said": said,
        "summed": summed(communicator, [communicator.rank, 0.5]),
        "failure": failure_of_the_first(),
        "refusal": refusal_of_other_arrays(),
    }
    np.savez(folder / f"{communicator.rank}.npz", **arrays)
    (folder / f"{communicator.rank}.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
