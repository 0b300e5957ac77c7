"""Kill trainings in many ways, let them go on, and print as JSON what came of each.

Run as a program, with a folder to work in and the number of tries of each kind: it imports once,
and forks for every training. Nothing but the kernel ends the children, and nothing of theirs runs
after it.
"""

import json
import os
import random
import resource
import signal
import sys
import time
import traceback
from pathlib import Path

from checkpoint_cases import STEPS, Training

from cupy_lstm import mse_loss
from cupy_lstm.optimizer_base import Memory

PARAMETERS = 10
"""Updates of a step."""


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def kill_at_step(folder, chance):
    """Before, in or after the backward of a step, or between two updates of its weights."""
    deadline = chance.randrange(STEPS * PARAMETERS)
    updated = Memory.updated

    def counted(memory):
        nonlocal deadline
        deadline -= 1
        if deadline < 0:
            die()
        updated(memory)

    Memory.updated = counted
    return mse_loss


def kill_at_file_operation(folder, chance):
    """Before one of the operations that Python asks the system for in the folder."""
    deadline = chance.randrange(60)

    def hook(event, arguments):
        nonlocal deadline
        if any(str(folder) in str(argument) for argument in arguments):
            deadline -= 1
            if deadline < 0:
                die()

    sys.addaudithook(hook)
    return mse_loss


def kill_in_write(folder, chance):
    """After some bytes of a file: the system's limit ends the process in the middle of a write."""
    deadline, size = chance.randrange(STEPS), chance.randrange(1, 8000)

    def loss(prediction, target):
        nonlocal deadline
        deadline -= 1
        if deadline < 0:
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
        return mse_loss(prediction, target)

    # What a checkpoint takes the loss for is its name.
    loss.__qualname__ = mse_loss.__qualname__
    return loss


def kill_at_moment(folder, chance):
    """Wherever it is, in the kernel, too: by a timer, within about the time of a step."""
    deadline, part = chance.randrange(1, STEPS), chance.random()
    begin, calls = time.monotonic(), 0

    def loss(prediction, target):
        nonlocal calls
        calls += 1
        if calls == deadline:
            # Of this very run, for how fast it goes depends on what else the machine does.
            seconds = part * (time.monotonic() - begin) / calls
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-6))
        return mse_loss(prediction, target)

    loss.__qualname__ = mse_loss.__qualname__
    return loss


KINDS = {
    "step": kill_at_step,
    "file operation": kill_at_file_operation,
    "write": kill_in_write,
    "moment": kill_at_moment,
}


def child(action):
    """Fork, and return the child's number and where to read what `action` returns there."""
    reader, writer = os.pipe()
    number = os.fork()
    if number == 0:
        try:
            os.write(writer, json.dumps(action()).encode())
        except BaseException:
            traceback.print_exc()
        os._exit(0)
    os.close(writer)
    return number, reader


def ended(number, reader):
    """Wait for a child; return what it wrote, None if it was killed."""
    _, status = os.waitpid(number, 0)
    with os.fdopen(reader, "rb") as pipe:
        text = pipe.read()
    return None if os.WIFSIGNALED(status) else json.loads(text)


def killed(kind, folder, every, chance):
    """Train until it is killed; return whether it was, for it may have come to its end."""

    def train():
        return Training().fit(folder, every=every, keep=2, loss=KINDS[kind](folder, chance))

    return ended(*child(train)) is None


def attempt(kind, folder, expected, chance):
    """Kill a training, and perhaps again after it went on; then let it end."""
    every = chance.choice([None, 1, 2, 3])
    chances = [random.Random(chance.random()) for _ in range(chance.choice([1, 2]))]
    kills = sum(killed(kind, folder, every, one) for one in chances)
    left = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
    found = ended(*child(lambda: Training().fit(folder, every=every, keep=2)))
    stays = sorted(path.name for path in folder.iterdir())
    return {
        "kind": kind,
        "every": every,
        "kills": kills,
        "had begun to write": any(name.startswith(".cupy_lstm-") for name in left),
        "had checkpoints": any(name.startswith("epoch-") for name in left),
        "equal": found == expected,
        "stays": stays,
    }


def main(folder, tries):
    chance = random.Random(0)
    expected = ended(*child(lambda: Training().fit()))
    assert ended(*child(lambda: Training().fit(Path(folder, "whole"), every=1))) == expected
    results = [
        attempt(kind, Path(folder, f"{kind} {number}"), expected, chance)
        for number in range(int(tries))
        for kind in KINDS
    ]
    print(json.dumps(results))


if __name__ == "__main__":
    main(*sys.argv[1:])
