"""A training with checkpoints whose rank 1 may be killed: ``python mpi_resume.py OUT STEP``.

It writes OUT/checkpoints, and OUT/RANK.npz at its end, which there is none of if rank 1 is killed
before its step number STEP (0: never).
"""

import os
import signal
import sys
from pathlib import Path

import numpy as np
from distributed_cases import curve, train, weights

from cupy_lstm import Adam, Checkpoints
from cupy_lstm.distributed import launched

communicator = launched()
out, fatal = Path(sys.argv[1]), int(sys.argv[2])
step, made = Adam.step, 0


def mortal_step(optimizer):
    global made
    made += 1
    if communicator.rank == 1 and made == fatal:
        os.kill(os.getpid(), signal.SIGKILL)
    step(optimizer)


Adam.step = mortal_step
history, model = train(communicator, checkpoints=Checkpoints(out / "checkpoints", every=3))
np.savez(out / f"{communicator.rank}.npz", curve=curve(history), steps=made, **weights(model))
