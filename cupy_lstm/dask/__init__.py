"""Inference at scale: models over the chunks of Dask's arrays and dataframes.

Dask is imported by this package alone, never by `cupy_lstm`. From below: `models` is what travels
to the workers and runs there, `arrays` and `frames` build the graphs, `prediction` is the face.
"""

from cupy_lstm.io.optional import optional_module

optional_module("dask.array", "cupy_lstm.dask", "'cupy_lstm[dask]'")

from cupy_lstm.dask.prediction import predict  # noqa: E402

__all__ = ["predict"]
