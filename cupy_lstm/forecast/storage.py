"""What a forecaster has learned, as arrays and JSON for its file, and back."""

from dataclasses import asdict
from types import ModuleType
from typing import Any

from cupy_lstm.backend import Array, HostArray
from cupy_lstm.forecast.learning import Learned
from cupy_lstm.forecast.model import ForecastModel
from cupy_lstm.forecast.norms import Norms
from cupy_lstm.forecast.panel import Panel
from cupy_lstm.history import History

BESIDE = ("scale", "centre", "last_rows", "half_widths")
"""The arrays that lie beside the weights: [S, C] twice, [S, context, C], [S, horizon]; float64."""


def learned_as_arrays(learned: Learned) -> dict[str, Array]:
    """Return the weights of the model and the arrays beside them, by name."""
    last = learned.last.values
    return learned.model.state_dict() | {
        "scale": learned.norms.scale,
        "centre": learned.norms.centre,
        "last_rows": last.reshape(-1, learned.context, last.shape[1]),
        "half_widths": learned.half_widths,
    }


def learned_as_json(learned: Learned) -> dict[str, Any]:
    """Return what is no array."""
    return {
        "view": learned.model.view,
        "training_rows": learned.training_rows,
        "labels": learned.last.labels,
        "history": asdict(learned.history),
    }


def restored(arrays: dict[str, HostArray], description: dict[str, Any], xp: ModuleType) -> Learned:
    """Return what `learned_as_arrays` and `learned_as_json` were given, where arrays of `xp` are.

    Nothing is allocated whose size only one of the arrays vouches for.

    Raises
    ------
    KeyError, TypeError, ValueError
        If something is missing, or parts contradict each other.
    """
    weights = {name: array for name, array in arrays.items() if name not in BESIDE}
    scale, centre, last_rows, half_widths = (arrays[name] for name in BESIDE)
    series, context, columns = last_rows.shape
    horizon = half_widths.shape[1]
    if any(array.dtype != "float64" for array in (scale, centre, last_rows, half_widths)):
        raise ValueError("scale, centre, last_rows and half_widths must be float64")
    if (
        scale.shape != (series, columns)
        or centre.shape != scale.shape
        or len(half_widths) != series
    ):
        raise ValueError("the shapes of scale, centre, last_rows and half_widths do not fit")
    if not (min(series, context, horizon) > 0 and (scale > 0).all() and (half_widths >= 0).all()):
        raise ValueError("scale must be positive, and half_widths not negative")
    training_rows = tuple(description["training_rows"])
    if len(training_rows) != series or not all(type(rows) is int for rows in training_rows):
        raise ValueError(f"training_rows must be {series} numbers, one for each series")
    labels = tuple(tuple(of_series) for of_series in description["labels"])
    if [len(of_series) for of_series in labels] != [columns] * series or not all(
        isinstance(label, str | None) for of_series in labels for label in of_series
    ):
        raise ValueError(f"labels must be {series} times {columns} words or null")
    hidden_size, outputs = weights["head.weight"].shape
    gates = 4 * hidden_size
    found = (weights["lstm.weight_ih_l0"].shape, weights["lstm.weight_hh_l0"].shape, outputs)
    if found != ((gates, columns), (gates, hidden_size), horizon):
        raise ValueError("its weights do not have the size that its other arrays say")
    if description["view"] not in ("changes", "levels"):
        raise ValueError(f"there is no view {description['view']!r}")
    model = ForecastModel(
        columns,
        horizon,
        hidden_size,
        num_layers=sum(name.startswith("lstm.weight_hh_l") for name in weights),
        view=description["view"],
        xp=xp,
        seed=0,
    ).eval()
    missing, unexpected = model.set_state_dict(weights)
    if missing or unexpected:
        raise ValueError(f"weights are missing or unknown: {', '.join(missing + unexpected)}")
    names = tuple(f"y[{number}]" for number in range(series))
    return Learned(
        model=model,
        norms=Norms(xp.asarray(scale), xp.asarray(centre)),
        context=context,
        training_rows=training_rows,
        half_widths=half_widths,
        history=History(**description["history"]),
        last=Panel(
            xp.asarray(last_rows.reshape(-1, columns)),
            (context,) * series,
            tuple((name,) * columns for name in names),
            labels,
            (None,) * series,
        ),
    )
