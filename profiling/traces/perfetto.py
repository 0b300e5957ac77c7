"""A recording as Trace Event JSON, which Perfetto (ui.perfetto.dev) and chrome://tracing read."""

import json
from math import isfinite
from pathlib import Path
from typing import Any

from traces.spans import Recording

GPU = 1_000_000_000
"""Added to a device's number: the process that its streams are shown under."""


def trace_events(recording: Recording) -> dict[str, Any]:
    """Return the trace: complete events, in microseconds from the first one on."""
    starts = [one.start for one in (*recording.spans, *recording.kernels)]
    origin = min(starts, default=0)
    events: list[dict[str, Any]] = []
    names: dict[int, str] = {}
    for span in recording.spans:
        names[span.process] = f"process {span.process}"
        arguments: dict[str, Any] = {"domain": span.domain}
        if isinstance(span.payload, dict):
            arguments |= _finite(span.payload)
        elif span.payload is not None:
            arguments["payload"] = _finite(span.payload)
        events.append(
            {
                "name": span.name, "cat": span.category or span.domain or "NVTX", "ph": "X",
                "ts": (span.start - origin) / 1e3, "dur": span.length / 1e3,
                "pid": span.process, "tid": span.thread, "args": arguments,
            }
        )  # fmt: skip
    for kernel in recording.kernels:
        names[GPU + kernel.device] = f"GPU {kernel.device}"
        events.append(
            {
                "name": kernel.name, "cat": kernel.kind, "ph": "X",
                "ts": (kernel.start - origin) / 1e3, "dur": (kernel.end - kernel.start) / 1e3,
                "pid": GPU + kernel.device, "tid": kernel.stream,
                "args": {"launched": (kernel.launched - origin) / 1e3},
            }
        )  # fmt: skip
    events += [
        {"name": "process_name", "ph": "M", "pid": number, "args": {"name": name}}
        for number, name in names.items()
    ]
    return {"traceEvents": events, "displayTimeUnit": "ns"}


def write_trace(recording: Recording, path: Path) -> None:
    """Write the trace as a file."""
    path.write_text(json.dumps(trace_events(recording), allow_nan=False), encoding="utf-8")


def _finite(value: Any) -> Any:
    """Return a payload with None for NaN and infinity, which JSON has no words for."""
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not isfinite(value) else value
