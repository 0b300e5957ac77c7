"""Memory of the devices and of the host, and who may touch which bytes of it.

Every allocation is host memory between two guards. Fresh memory is all ones: NaN in every
floating-point type, -1 in every integer. A guard holds another NaN, and must hold it still when the
allocation is used or freed. Freed memory keeps its place for a while, filled with a third NaN, so
that a use after free is found instead of reading what came next.

Under AddressSanitizer (libasan loaded before Python) the guards and the freed bytes are forbidden
ground instead, and the kernel's line is reported at once.
"""

import bisect
import ctypes
from collections import deque
from dataclasses import dataclass

from gpu_on_cpu.driver import devices
from gpu_on_cpu.driver.errors import DeviceMisuseError, Status, runtime_error

ALIGNMENT = 512
GUARD_BYTES = 512  # before and after
FRESH = b"\xff"
GUARD = b"\xa5\xff" * (GUARD_BYTES // 2)  # NaN in float16, bfloat16, float32 and float64
FREED = b"\xde\xff"
QUARANTINE_BYTES = 64 << 20

_libc = ctypes.CDLL(None)
_libc.posix_memalign.argtypes = [ctypes.POINTER(ctypes.c_void_p), ctypes.c_size_t, ctypes.c_size_t]
_libc.free.argtypes = [ctypes.c_void_p]
_libc.free.restype = None
ADDRESS_SANITIZER = hasattr(_libc, "__asan_poison_memory_region")


@dataclass(eq=False)
class Block:
    """A stretch of memory; `device` is None where it belongs to the host."""

    address: int
    bytes: int
    device: int | None
    kind: str
    guarded: bool = True
    live: bool = True

    @property
    def end(self) -> int:
        """First address behind the block."""
        return self.address + self.bytes

    def __str__(self) -> str:
        place = "of the host" if self.device is None else f"of device {self.device}"
        freed = "" if self.live else ", freed"
        return f"{self.bytes} bytes {self.kind} memory {place} at {self.address:#x}{freed}"

    def check_guards(self, culprit: str) -> None:
        """Raise unless both guards are as they were; put them right, so that it is said once."""
        if not self.guarded or ADDRESS_SANITIZER:
            return
        for side, start in (("in front of", self.address - GUARD_BYTES), ("behind", self.end)):
            found = ctypes.string_at(start, GUARD_BYTES)
            if found != GUARD:
                touched = [n for n in range(GUARD_BYTES) if found[n] != GUARD[n]]
                ctypes.memmove(start, GUARD, GUARD_BYTES)
                distance = GUARD_BYTES - 1 - touched[-1] if side == "in front of" else touched[0]
                raise DeviceMisuseError(
                    f"{culprit} wrote {len(touched)} bytes {side} {self}, the nearest "
                    f"{distance} bytes away from it"
                )


class AddressSpace:
    """All blocks by address, the freed ones too as long as they keep their place."""

    def __init__(self) -> None:
        self._starts: list[int] = []  # sorted, of the bytes with their guards
        self._blocks: dict[int, Block] = {}
        self._quarantine: deque[Block] = deque()
        self._quarantined_bytes = 0
        self.live_bytes: dict[int | None, int] = {}

    def allocate(self, size: int, device: int | None, kind: str) -> Block:
        """Return `size` fresh bytes."""
        pointer = ctypes.c_void_p()
        if self.live_bytes.get(device, 0) + size > devices.MEMORY_BYTES or _libc.posix_memalign(
            ctypes.byref(pointer), ALIGNMENT, size + 2 * GUARD_BYTES
        ):
            raise runtime_error(Status.OUT_OF_MEMORY, f"{size} bytes were asked for")
        assert pointer.value is not None
        block = Block(pointer.value + GUARD_BYTES, size, device, kind)
        ctypes.memset(block.address, FRESH[0], size)
        for start in (block.address - GUARD_BYTES, block.end):
            ctypes.memmove(start, GUARD, GUARD_BYTES)
            _forbid(start, GUARD_BYTES)
        self._enter(block)
        return block

    def adopt(self, address: int, size: int, device: int | None, kind: str) -> Block:
        """Enter memory that somebody else owns, such as a variable of a module."""
        known = self._blocks.get(address)
        if known is not None and known.live and not known.guarded:
            return known
        block = Block(address, size, device, kind, guarded=False)
        self._enter(block)
        return block

    def _enter(self, block: Block) -> None:
        start = block.address - GUARD_BYTES * block.guarded
        bisect.insort(self._starts, start)
        self._blocks[start] = block
        self.live_bytes[block.device] = self.live_bytes.get(block.device, 0) + block.bytes

    def _forget(self, block: Block) -> None:
        start = block.address - GUARD_BYTES * block.guarded
        del self._starts[bisect.bisect_left(self._starts, start)]
        del self._blocks[start]

    def find(self, address: int) -> Block | None:
        """Return the block that holds this address, in its guards or right behind it too."""
        index = bisect.bisect_right(self._starts, address) - 1
        if index < 0:
            return None
        block = self._blocks[self._starts[index]]
        return block if address <= block.end + GUARD_BYTES * block.guarded else None

    def release(self, address: int, kinds: tuple[str, ...]) -> Block:
        """Free the block that begins at `address` and return it."""
        block = self.find(address)
        if block is None or block.address != address or block.kind not in kinds:
            raise runtime_error(
                Status.INVALID_VALUE,
                f"{address:#x} is not the start of {' or '.join(kinds)} memory, but {block}",
            )
        if not block.live:
            raise DeviceMisuseError(f"freed twice: {block}")
        block.live = False
        self.live_bytes[block.device] -= block.bytes
        if not block.guarded:
            self._forget(block)
            return block
        _fill(block.address, block.bytes, FREED)
        _forbid(block.address, block.bytes)
        self._quarantine.append(block)
        self._quarantined_bytes += block.bytes
        while self._quarantined_bytes > QUARANTINE_BYTES:
            self._drop(self._quarantine.popleft())
        block.check_guards("somebody")
        return block

    def _drop(self, block: Block) -> None:
        self._quarantined_bytes -= block.bytes
        _permit(block.address - GUARD_BYTES, block.bytes + 2 * GUARD_BYTES)
        intact = not written_since_free(block)
        self._forget(block)
        _libc.free(block.address - GUARD_BYTES)
        if not intact:
            raise DeviceMisuseError(f"somebody wrote to memory after it was freed: {block}")

    def check(self, address: int, size: int, what: str, device: int | None = None) -> Block | None:
        """Return the block these bytes are in; None where they are the host's own, unknown here.

        Raises
        ------
        DeviceMisuseError
            If they are only partly in a block or the block was freed, or if `device` is given and
            they are not that device's (host memory that is mapped is everybody's).
        """
        block = self.find(address)
        if block is None:
            if device is not None:
                raise DeviceMisuseError(f"{what}: {address:#x} is no memory of any device")
            return None
        if not block.live:
            raise DeviceMisuseError(f"{what}: use after free of {block}")
        if address < block.address or address + size > block.end:
            raise DeviceMisuseError(
                f"{what}: {size} bytes at {address:#x} are not inside of {block}, "
                f"which ends at {block.end:#x}"
            )
        if (
            None not in (device, block.device)
            and block.device != device
            and block.kind != "managed"
        ):
            raise DeviceMisuseError(f"{what}: device {device} was given {block}")
        return block

    def check_freed(self) -> None:
        """Raise if anybody wrote to freed memory that still keeps its place."""
        for block in self._quarantine:
            if written_since_free(block):
                _fill(block.address, block.bytes, FREED)
                raise DeviceMisuseError(f"somebody wrote to memory after it was freed: {block}")


def written_since_free(block: Block) -> bool:
    """Say whether a freed block holds anything else than what freeing left in it."""
    if ADDRESS_SANITIZER:
        return False
    expected = FREED * (block.bytes // 2 + 1)
    return ctypes.string_at(block.address, block.bytes) != expected[: block.bytes]


def _fill(address: int, size: int, pattern: bytes) -> None:
    ctypes.memmove(address, pattern * (size // len(pattern) + 1), size)


def _forbid(address: int, size: int) -> None:
    if ADDRESS_SANITIZER:
        _libc.__asan_poison_memory_region(ctypes.c_void_p(address), ctypes.c_size_t(size))


def _permit(address: int, size: int) -> None:
    if ADDRESS_SANITIZER:
        _libc.__asan_unpoison_memory_region(ctypes.c_void_p(address), ctypes.c_size_t(size))


SPACE = AddressSpace()
"""The one address space that host and devices share."""


def check_freed_memory() -> None:
    """Raise `DeviceMisuseError` if anybody wrote to memory after it was freed."""
    SPACE.check_freed()
