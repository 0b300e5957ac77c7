"""Stand-ins for arrays of other libraries: an array seen through one protocol alone."""


class Wrapped:
    """An object with an array that nobody may look at but through its protocol."""

    def __init__(self, array):
        self._array = array


class DLPack(Wrapped):
    """It has DLPack alone; it remembers the streams it was asked for."""

    def __init__(self, array):
        super().__init__(array)
        self.streams = []

    def __dlpack__(self, *, stream=None, **options):
        self.streams.append(stream)
        if stream is not None:
            options["stream"] = stream
        return self._array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self._array.__dlpack_device__()


class ArrayMethod(Wrapped):
    """It has ``__array__`` alone."""

    def __array__(self, dtype=None, copy=None):
        assert not copy
        return self._array if dtype is None else self._array.astype(dtype, copy=False)


class RefusingDLPack(ArrayMethod):
    """It has DLPack, too, which refuses: another dtype, a conjugated view."""

    def __dlpack__(self, **options):
        raise BufferError("no word for it")

    def __dlpack_device__(self):
        return 1, 0


HOST_STAND_INS = (DLPack, ArrayMethod, RefusingDLPack)
