"""Processes played by threads: a communicator for tests that need no MPI."""

import threading

import numpy as np

SECONDS = 30
"""After which a thread that waits for another is taken to hang."""


class Team:
    """What the members share: for each operation, the arrays that were handed in."""

    def __init__(self, size):
        self.size = size
        self.arrived = threading.Condition()
        self.operations = {}
        self.aborted = False

    def hand_in(self, number, rank, array):
        with self.arrived:
            self.operations.setdefault(number, {})[rank] = array.copy()
            self.arrived.notify_all()

    def wait_for(self, number):
        with self.arrived:
            self.arrived.wait_for(lambda: self.aborted or self.is_full(number), SECONDS)
            assert self.is_full(number), (
                f"operation {number} was not called by all: {self.operations[number]}"
            )
            return [self.operations[number][rank] for rank in range(self.size)]

    def is_full(self, number):
        return len(self.operations[number]) == self.size

    def abort(self):
        """Release those who wait."""
        with self.arrived:
            self.aborted = True
            self.arrived.notify_all()


class Member:
    """A communicator of a thread; `log` holds what was started and waited for, in order."""

    xp = np

    def __init__(self, team, rank):
        self.team, self.rank, self.size = team, rank, team.size
        self.number = 0
        self.log = []

    def start_sum(self, array):
        number, self.number = self.number, self.number + 1
        self.team.hand_in(number, self.rank, array)
        self.log.append(("start", array.size))

        def wait():
            arrays = self.team.wait_for(number)
            array[...] = sum(arrays[1:], start=arrays[0])
            self.log.append(("wait", array.size))

        return wait

    def broadcast(self, array):
        number, self.number = self.number, self.number + 1
        self.team.hand_in(number, self.rank, array)
        array[...] = self.team.wait_for(number)[0]

    def abort(self):
        self.log.append("abort")
        self.team.abort()


def on_threads(size, function):
    """Call `function(communicator)` in so many threads; return results and errors by rank."""
    team, results = Team(size), [None] * size

    def run(rank):
        try:
            results[rank] = function(Member(team, rank))
        except Exception as error:
            results[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results
