"""What can go wrong between a .cu file and its results."""


class DeviceError(RuntimeError):
    """Anything the test bed reports."""


class CompileError(DeviceError):
    """g++ refused the source; the message holds its text, with the lines of the .cu."""


class LaunchError(DeviceError):
    """The launch failed, or was refused: the device of the profile could not run it."""


class DeadlockError(LaunchError):
    """Every thread that is left waits; the message names each waiting place."""


class DivergenceError(LaunchError):
    """Threads that must meet in one barrier or warp operation did not."""


class OutOfBoundsError(LaunchError):
    """An array index past its bound, or a write past the end of shared memory."""


class MisalignedError(LaunchError):
    """A load or store at an address its type cannot have."""


class ScopeError(LaunchError):
    """A thread read a word that was stored at a scope which does not hold it."""


class MemoryFaultError(LaunchError):
    """An access to memory that does not exist, or an integer division by zero."""


class HangError(LaunchError):
    """A thread ran for long without any operation through which another could run."""


class KernelError(LaunchError):
    """The kernel itself gave up: a failed assert, or a trap."""
