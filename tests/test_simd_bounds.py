"""The kernels of the engine simd stay within the arrays of the caller, and within their memory.

Each piece of memory lies between two pages that nobody may touch, at the end of its own pages or at
their begin, and what is not set holds NaN. So a kernel that goes astray ends its process, and one
that needs a number nobody wrote gives another result than on arrays as they are.
"""

import sys

import pytest
from simd_bed import run_script

from cupy_lstm import warmup

GUARDED = """
import ctypes, math, mmap, resource, sys
import numpy as np
from cases import CASES, Arrays, Case, build
from simd_bed import run
from cupy_lstm.buffer import Buffer
from cupy_lstm.simd import ready, reserve, threads

END, DTYPE = sys.argv[1] == "end", sys.argv[2]
MORE = [
    Case("many-rows", T=3, B=29, I=17, H=33, bidirectional=True),
    Case("one-row", T=140, B=1, I=3, H=65),
    Case("many-steps", T=140, B=5, I=2, H=9, lengths=(140, 131, 7, 0, 128)),
    Case("projected", T=7, B=13, I=5, H=47, P=31, lengths=(7, 0, *range(7), 7, 1, 6, 5)),
    Case("two-layers", T=4, B=7, I=31, H=18, L=2, bidirectional=True, time_major=True),
    Case("matrix-unit", T=3, B=19, I=130, H=131, states=True),
    Case("matrix-unit-lengths", T=5, B=33, I=65, H=129, lengths=(5, 4, 1) * 11, time_major=True),
]
PAGE = mmap.PAGESIZE
protect = ctypes.CDLL(None, use_errno=True).mprotect
protect.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
empty = np.empty


def guarded(shape, dtype=float):
    sizes, dtype = shape if isinstance(shape, tuple) else (int(shape),), np.dtype(dtype)
    count = math.prod(sizes)
    if count == 0:
        return empty(shape, dtype)
    size = count * dtype.itemsize
    pages = -(-size // PAGE) * PAGE
    memory = mmap.mmap(-1, pages + 2 * PAGE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    assert protect(start, PAGE, 0) == 0 == protect(start + PAGE + pages, PAGE, 0)
    first = PAGE + (pages - size if END else 0)
    found = np.frombuffer(memory, dtype, count, first)
    found.view("uint8").fill(255)  # NaN
    return found.reshape(sizes)


def filled(shape, dtype=float, value=0):
    array = guarded(shape, dtype)
    array.fill(value)
    return array


def copied(value):
    if isinstance(value, dict):
        return {name: copied(one) for name, one in value.items()}
    if isinstance(value, tuple):
        return tuple(map(copied, value))
    if not isinstance(value, np.ndarray):
        return value
    array = guarded(value.shape, value.dtype)
    array[...] = value
    return array


def results(case, copies=False):
    arrays = build(case, DTYPE)
    if copies:
        arrays = Arrays(**{name: copied(value) for name, value in vars(arrays).items()})
    found = vars(run(case, DTYPE, arrays))
    return found | found.pop("grads")


if sys.argv[3] == "astray":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # no file of what is meant
    found = guarded((3,), DTYPE)
    size = found.itemsize
    place = ctypes.addressof(ctypes.c_char.from_buffer(found)) + (3 * size if END else -size)
    ctypes.string_at(place, size)
cases = [case for case in [*CASES, *MORE] if not case.dropout]
expected = [results(case) for case in cases]
threads.thread_count = lambda: int(sys.argv[3])
threads.WORTH_WAKING = threads.WORTH_A_THREAD = 1
ready.SHARED.waiting.clear()  # what comes now is made of guarded memory
reserve.release()
np.empty, np.zeros, np.ones = guarded, filled, lambda *given: filled(*given, value=1)
np.empty_like = lambda like, dtype=None: guarded(like.shape, dtype or like.dtype)
np.zeros_like = lambda like, dtype=None: filled(like.shape, dtype or like.dtype)
made = Buffer.__init__
Buffer.__init__ = lambda self, data: made(self, copied(data))
for case, one in zip(cases, expected, strict=True):
    found = results(case, copies=True)
    for name in one:
        assert np.array_equal(found[name], one[name]), f"{name} of {case.id}"
print(len(cases))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="forbids pages as Linux does")
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("place", ["end", "begin"])
def test_kernels_stay_within_their_arrays(place, dtype, count):
    warmup([dtype])  # to compile may take longer than a script has
    printed, _ = run_script(GUARDED, place, dtype, count)
    assert int(printed.split()[-1]) > 40


@pytest.mark.skipif(sys.platform != "linux", reason="forbids pages as Linux does")
@pytest.mark.parametrize("place", ["end", "begin"])
def test_what_lies_beyond_an_array_is_forbidden_indeed(place):
    with pytest.raises(AssertionError, match="exit status -11"):
        run_script(GUARDED, place, "float32", "astray")
