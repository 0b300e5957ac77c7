"""Inference at scale: models over the chunks of Dask's arrays and dataframes.

Dask is imported by this package alone, never by `cupy_lstm`. From below: `models` is what travels
to the workers and runs there, `arrays` and `frames` build the graphs, `prediction` is the face.
"""

NEEDED = "cupy_lstm.dask needs Dask: pip install 'cupy_lstm[dask]'"

try:
    import dask.array  # noqa: F401  missed here, with a sentence, not below
except ImportError as error:
    raise ImportError(f"{NEEDED}; importing it failed with: {error}") from error

from cupy_lstm.dask.prediction import predict  # noqa: E402

__all__ = ["predict"]
