"""The runtime's structures, and what the loader knows of a compiled module."""

import ctypes

from .build import source_line


class SharedSlot(ctypes.Structure):
    _fields_ = (("bytes", ctypes.c_size_t), ("alignment", ctypes.c_size_t))


class LaunchRequest(ctypes.Structure):
    """The same fields, in the same order, as LaunchRequest in runtime/state.h."""

    _fields_ = (
        ("function", ctypes.c_void_p),
        ("invoke", ctypes.c_void_p),
        ("arguments", ctypes.POINTER(ctypes.c_void_p)),
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("cluster", ctypes.c_uint * 3),
        ("dynamic_shared", ctypes.c_uint64),
        ("cooperative", ctypes.c_int),
        ("order", ctypes.c_int),
        ("seed", ctypes.c_uint64),
        ("blocks_in_flight", ctypes.c_uint),
        ("slots", ctypes.POINTER(SharedSlot)),
        ("slot_count", ctypes.c_uint),
        ("flush_to_zero", ctypes.c_int),
        ("hang_seconds", ctypes.c_double),
        ("fault_address", ctypes.c_uint64),
        ("switches", ctypes.c_uint64),
    )


class _DlInfo(ctypes.Structure):
    _fields_ = (
        ("file", ctypes.c_char_p),
        ("base", ctypes.c_void_p),
        ("symbol", ctypes.c_char_p),
        ("address", ctypes.c_void_p),
    )


class _ElfSymbol(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_uint32),
        ("info", ctypes.c_uint8),
        ("other", ctypes.c_uint8),
        ("section", ctypes.c_uint16),
        ("value", ctypes.c_uint64),
        ("size", ctypes.c_uint64),
    )


_libc = ctypes.CDLL(None)
_libc.dladdr.argtypes = (ctypes.c_void_p, ctypes.POINTER(_DlInfo))
_libc.dladdr1.argtypes = (
    ctypes.c_void_p,
    ctypes.POINTER(_DlInfo),
    ctypes.POINTER(ctypes.POINTER(_ElfSymbol)),
    ctypes.c_int,
)


def symbol_at(address: int) -> str | None:
    """Return the name of the function that begins there; a static one has none."""
    info = _DlInfo()
    found = _libc.dladdr(address, ctypes.byref(info)) and info.address == address
    return info.symbol.decode() if found else None


def size_at(address: int) -> int:
    """Return the bytes of the global variable that begins there."""
    info, symbol = _DlInfo(), ctypes.POINTER(_ElfSymbol)()
    _libc.dladdr1(address, ctypes.byref(info), ctypes.byref(symbol), 1)  # 1: RTLD_DL_SYMENT
    return symbol.contents.size


def line_at(address: int) -> str:
    """Return file:line of an instruction."""
    info = _DlInfo()
    if not _libc.dladdr(address, ctypes.byref(info)):
        return f"address {address:#x}"
    return source_line(info.file.decode(), hex(address - info.base))


class Aligned:
    """Memory for the value of one parameter, aligned as its type needs."""

    def __init__(self, size: int, alignment: int) -> None:
        self._memory = ctypes.create_string_buffer(size + alignment)
        start = ctypes.addressof(self._memory)
        self.address = -(-start // alignment) * alignment
