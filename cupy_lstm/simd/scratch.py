"""The memory of a pass as its jobs see it: what it owns, and what it is given when it runs.

A pass runs again and again, each time on other arrays. Until it does, an address in memory that it
will be given stands as a number of that memory, in bits that no address uses, and the distance from
where the memory begins, which is negative where strides are.
"""

from array import array
from collections.abc import Mapping
from ctypes import addressof, c_char
from math import prod
from typing import Any

import numpy

from cupy_lstm.backend import HostArray
from cupy_lstm.simd import programs
from cupy_lstm.simd.compiled import routine
from cupy_lstm.simd.reserve import take

CACHE_LINE = 64

APART = 2**19
"""Bytes from which memory is a piece of the reserve by itself, which fits other passes, too."""

_NUMBER = 2**52
"""From the begin of one memory to that of the next, of 2047. They are numbered from 1: addresses of
a process are smaller."""


class Given:
    """Memory that a pass is given when it runs: an array of which only the numbers are missing.

    Attributes
    ----------
    place : int
        Stands for its address.
    shape, strides : tuple of int
    itemsize : int
    """

    __slots__ = ("itemsize", "place", "shape", "strides")

    def __init__(
        self, place: int, shape: tuple[int, ...], strides: tuple[int, ...], itemsize: int
    ) -> None:
        self.place, self.shape, self.strides, self.itemsize = place, shape, strides, itemsize

    def __getitem__(self, index: int) -> "Given":
        """Return a part of it, as an array of arrays has them."""
        place = self.place + index * self.strides[0]
        return Given(place, self.shape[1:], self.strides[1:], self.itemsize)

    def part(self, first: int, *sizes: int) -> "Given":
        """Return some of its numbers, which are in order, as an array of its own."""
        return in_order_from(self.place + first * self.itemsize, sizes, self.itemsize)

    @property
    def size(self) -> int:
        """How many numbers there are."""
        return prod(self.shape)


Memory = HostArray | Given
"""An array, or what will be one."""


def in_order_from(place: int, sizes: tuple[int, ...], itemsize: int) -> Given:
    """Return numbers from a place on as an array of these sizes."""
    step, strides = itemsize, []
    for count in reversed(sizes):
        strides.append(step)
        step *= count
    return Given(place, sizes, tuple(reversed(strides)), itemsize)


class Scratch:
    """The memory of a pass and the jobs of its kernels; both live as long as this object.

    Parameters
    ----------
    itemsize : int
        Bytes of a number.
    own : int
        Bytes up to which it owns memory that lasts no longer than a run. What is larger comes from
        the reserve, in each run anew: all of it in one piece, but for large parts.

    Attributes
    ----------
    zeros : list of tuple of int
        Addresses of words that are zero whenever the pass begins, and how many.
    """

    def __init__(self, itemsize: int, own: int) -> None:
        self._itemsize, self._own = itemsize, own
        self.zeros: list[tuple[int, int]] = []
        self._owned: list[HostArray] = []
        self._jobs: list[array[int]] = []
        # What is given: its name, or bytes of a piece of the reserve, in the order of its numbers.
        self._given: list[str | int] = [0]
        self._gaps = array("q", [0])  # as `programs.fill` takes them
        self._fill = routine(programs.fill)

    @property
    def nbytes(self) -> int:
        """Bytes of what it owns."""
        jobs = sum(8 * len(job) for job in self._jobs)
        return jobs + sum(owned.nbytes for owned in self._owned)

    def given(self, name: str, like: HostArray) -> Given:
        """Return memory of which `fill` is given the address, of an array's shape and strides."""
        return Given(self._place_of(name), like.shape, like.strides, like.itemsize)

    def room(self, name: str, *sizes: int) -> Given:
        """Return the same of these sizes, the numbers in order."""
        return in_order_from(self._place_of(name), sizes, self._itemsize)

    def _place_of(self, name: str) -> int:
        self._given.append(name)
        return len(self._given) * _NUMBER

    def numbers(self, *sizes: int) -> int:
        """Return the address of some numbers of any value, at the begin of a cache line."""
        return self.memory(*sizes).place

    def memory(self, *sizes: int) -> Given:
        """Return such numbers as an array. They do not last from one run to the next."""
        size = self._itemsize * prod(sizes)
        if size > max(self._own, APART):
            self._given.append(size)
            place = len(self._given) * _NUMBER
        elif size > self._own:
            begin = int(self._given[0])
            place = _NUMBER + begin
            self._given[0] = begin + next_line(size)
        else:
            memory = numpy.empty(size + CACHE_LINE, "uint8")
            self._owned.append(memory)
            place = next_line(address(memory))
        return in_order_from(place, sizes, self._itemsize)

    def table(self, entries: int) -> int:
        """Return the address of some 64-bit integers."""
        return self.keep(numpy.empty(entries, "int64"))

    def keep(self, owned: HostArray) -> int:
        """Return the address of an array, which lives as long as this object."""
        self._owned.append(owned)
        return address(owned)

    def counters(self, count: int) -> HostArray:
        """Return 64-bit integers that are zero whenever the pass begins."""
        counters = numpy.zeros(count, "int64")
        self.zeros.append((self.keep(counters), count))
        return counters

    def job(self, words: tuple[int, ...]) -> int:
        """Return the address of a job."""
        job = array("q", words)  # made in half the time of one of NumPy's
        self._jobs.append(job)
        if max(words) >= _NUMBER // 2:
            for index, word in enumerate(words):
                number = (word + _NUMBER // 2) // _NUMBER
                if number > 0:
                    place = job.buffer_info()[0] + 8 * index
                    self._gaps.extend((place, number - 1, word - number * _NUMBER))
                    self._gaps[0] += 1
        return job.buffer_info()[0]

    def fill(self, places: Mapping[str, int]) -> list[HostArray]:
        """Make everything ready for a run on memory at these addresses.

        Returns
        -------
        list of array
            What else must live as long as the run takes, and is for the reserve then.
        """
        alive, found = [], []
        for given in self._given:
            if isinstance(given, str):
                found.append(places[given])
            elif given:
                alive.append(take(given + CACHE_LINE))
                found.append(next_line(address(alive[-1])))
            else:
                found.append(0)
        begins = array("q", found)
        self._fill(self._gaps.buffer_info()[0], begins.buffer_info()[0])
        return alive


class Shared:
    """Memory of one sweep that several of its threads ask for by the same key."""

    def __init__(self, scratch: Scratch) -> None:
        self._scratch = scratch
        self._places: dict[object, int] = {}

    def numbers(self, key: object, *sizes: int) -> int:
        """Return the address of some numbers, the same for the same key."""
        if key not in self._places:
            self._places[key] = self._scratch.numbers(*sizes)
        return self._places[key]


def address(memory: Memory | None) -> int:
    """Return where the numbers of an array begin; 0 for none."""
    if memory is None:
        return 0
    if type(memory) is Given:
        return memory.place
    try:
        buffer: Any = memory
        return addressof(c_char.from_buffer(buffer))
    except (TypeError, ValueError, BufferError):  # read-only, empty, or not in one piece
        place: int = buffer.__array_interface__["data"][0]
        return place


def next_line(place: int) -> int:
    """Return the address of the first cache line that begins here or behind."""
    return -(-place // CACHE_LINE) * CACHE_LINE
