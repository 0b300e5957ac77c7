"""Series in files, read a part at a time: ``.npy``, Zarr and Parquet."""

import os
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol

import numpy

from cupy_lstm.backend import HostArray


class Series(Protocol):
    """What a series is read from: ``numpy.memmap``, ``zarr.Array``, `ParquetSeries` and the like.

    Steps lie along the first axis. A slice of steps is read when it is asked for.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape; the first axis is that of steps."""

    @property
    def dtype(self) -> Any:
        """Its dtype."""

    def __getitem__(self, steps: slice, /) -> Any:
        """Return some steps as an array of NumPy, or as what `numpy.asarray` takes."""


def open_series(path: str | os.PathLike[str], columns: Sequence[str] | None = None) -> Series:
    """Open a series in a file, without reading it.

    Parameters
    ----------
    path : path
        A ``.npy`` file, which is mapped into memory; a ``.parquet`` file; or a folder with a Zarr
        array.
    columns : sequence of str, optional
        Features of a Parquet file, in order; default: all of them.

    Returns
    -------
    numpy.memmap, ParquetSeries or zarr.Array
        Read-only; steps along the first axis.

    Raises
    ------
    FileNotFoundError
        If there is nothing.
    ImportError
        If pyarrow or zarr is needed and not installed.
    TypeError, ValueError
        If it is none of these files, or holds what is no series of numbers.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"path is {path}, where there is nothing")
    if path.suffix == ".parquet":
        return ParquetSeries(path, columns)
    if columns is not None:
        raise ValueError(f"columns are for a .parquet file, {path.name} has none: choose by slices")
    if path.suffix == ".npy":
        # The file stays open as long as its map; an object array would need pickle and is refused.
        return _of_numbers(path, numpy.load(path, mmap_mode="r", allow_pickle=False))
    if path.is_dir():
        return _of_numbers(path, _opened_zarr(path))
    raise ValueError(
        f"path must be a .npy or .parquet file or the folder of a Zarr array, received {path}"
    )


class ParquetSeries:
    """A Parquet file as a series: steps are rows, features are columns of numbers.

    Row groups are what is read at once. The last few are kept, so that blocks within one do not
    read it again.

    Parameters
    ----------
    path : path
        The file.
    columns : sequence of str, optional
        Features, in order; default: all columns.

    Attributes
    ----------
    shape : tuple (steps, features)
    dtype : numpy.dtype
        That of the columns, or the one they are promoted to where they differ.
    columns : tuple of str

    Raises
    ------
    ImportError
        If pyarrow is not installed.
    ValueError
        If the path is that of a folder, or a column is missing or not of numbers.
    """

    KEPT = 2
    """Row groups kept in memory."""

    def __init__(self, path: str | os.PathLike[str], columns: Sequence[str] | None = None) -> None:
        if Path(path).is_dir():
            raise ValueError(
                f"path is {path}, a folder, as Dask and Spark write: a series is one Parquet file, "
                "so write its parts into one"
            )
        metadata = self._parquet().read_metadata(path)
        schema = metadata.schema.to_arrow_schema()
        self._path = path
        self.columns = tuple(schema.names if columns is None else columns)
        if not self.columns:
            raise ValueError("columns is empty: a series has one feature or more")
        for name in self.columns:
            if name not in schema.names:
                raise ValueError(f"columns has {name!r}, {path} has {schema.names}")
        dtypes = {name: _dtype(schema.field(name).type, name) for name in self.columns}
        self.dtype = numpy.result_type(*dtypes.values())
        groups = range(metadata.num_row_groups)
        rows = (metadata.row_group(group).num_rows for group in groups)
        self._starts = [0, *accumulate(rows)]
        self.shape: tuple[int, int] = (self._starts[-1], len(self.columns))
        self._metadata = metadata
        self._kept: dict[int, HostArray] = {}

    def __len__(self) -> int:
        """Number of steps."""
        return self.shape[0]

    def __getitem__(self, steps: slice) -> HostArray:
        """Read steps, as an array [steps, features].

        Raises
        ------
        TypeError
            If `steps` is no slice.
        ValueError
            If it has a stride, or there are nulls among the steps.
        """
        if not isinstance(steps, slice):
            raise TypeError(f"steps must be a slice, received {type(steps).__name__}")
        first, stop, stride = steps.indices(len(self))
        if stride != 1:
            raise ValueError(f"steps must be a slice without a stride, received {steps}")
        found = numpy.empty((max(0, stop - first), self.shape[1]), self.dtype)
        done = first
        while done < stop:
            group = bisect_right(self._starts, done) - 1
            start = self._starts[group]
            until = min(stop, self._starts[group + 1])
            found[done - first : until - first] = self._group(group)[done - start : until - start]
            done = until
        return found

    def __getstate__(self) -> dict[str, Any]:
        """Return what copies and other processes need: not the rows that are kept."""
        return self.__dict__ | {"_kept": {}}

    def _group(self, group: int) -> HostArray:
        """Return a row group: one that is kept, or from the file in place of an older one."""
        rows = self._kept.pop(group, None)
        if rows is None:
            rows = self._read(group)
        self._kept[group] = rows  # as the last one used
        for oldest in list(self._kept)[: -self.KEPT]:
            self._kept.pop(oldest, None)  # another thread may have done so
        return rows

    @staticmethod
    def _parquet() -> Any:
        return _needed("pyarrow.parquet", "a Parquet file")

    def _read(self, group: int) -> HostArray:
        file = self._parquet().ParquetFile(self._path, metadata=self._metadata)
        with file:
            table = file.read_row_group(group, columns=list(self.columns))
        rows = numpy.empty((table.num_rows, self.shape[1]), self.dtype)
        for index, name in enumerate(self.columns):
            column = table.column(name)
            if column.null_count:
                raise ValueError(
                    f"column {name!r} has {column.null_count} nulls in rows "
                    f"{self._starts[group]} to {self._starts[group + 1] - 1}: fill them first"
                )
            rows[:, index] = column.to_numpy()
        return rows


def _of_numbers(path: Path, series: Series) -> Series:
    if series.dtype.kind not in "biuf" or not series.shape:
        raise ValueError(
            f"path is {path}, which holds {series.dtype} {list(series.shape)}: a series is of "
            "numbers, with steps along its first axis"
        )
    return series


def _dtype(kind: Any, name: str) -> "numpy.dtype[Any]":
    try:
        dtype: numpy.dtype[Any] = numpy.dtype(kind.to_pandas_dtype())
    except (NotImplementedError, TypeError):
        dtype = numpy.dtype(object)
    if dtype.kind not in "biuf":
        raise ValueError(f"column {name!r} is of type {kind}, a series is of numbers")
    return dtype


def _opened_zarr(path: Path) -> Series:
    zarr = _needed("zarr", f"{path}, which is a folder and so a Zarr array,")
    try:
        array: Series = zarr.open_array(path, mode="r")
    except Exception as error:  # zarr's own kinds of errors, version by version
        raise ValueError(f"path is {path}, which holds no Zarr array: {error}") from error
    return array


def _needed(name: str, purpose: str) -> Any:
    from cupy_lstm.io.optional import optional_module  # the package of files is loaded on demand

    return optional_module(name, purpose, name.partition(".")[0])
