"""Reading the lines that the injection library, or the recorder in Python, has written."""

import json
from pathlib import Path
from typing import Any

from traces.spans import Recording, Span

Event = dict[str, Any]


def read_log(path: Path) -> Recording:
    """Return what a file of JSON lines holds.

    Raises
    ------
    SystemExit
        If a line is no event.
    """
    categories: dict[tuple[int, str, int], str] = {}
    stacks: dict[tuple[int, int, str], list[Event]] = {}
    started: dict[tuple[int, str, int], Event] = {}
    ended: list[tuple[Event, int]] = []
    unopened = 0
    for number, event in enumerate(_events(path), 1):
        try:
            process, domain, kind = event["pid"], event["domain"], event["kind"]
            stack = stacks.setdefault((process, event["tid"], domain), [])
            if kind == "category":
                categories[process, domain, event["category"]] = event["message"]
            elif kind == "push":
                stack.append(event)
            elif kind == "start":
                started[process, domain, event["id"]] = event
            elif kind == "pop" and stack:
                ended.append((stack.pop(), event["time"]))
            elif kind == "end" and (process, domain, event["id"]) in started:
                ended.append((started.pop((process, domain, event["id"])), event["time"]))
            elif kind != "mark":
                unopened += 1
        except KeyError as error:
            raise SystemExit(f"{path}, line {number}: the event has no {error}") from None
    spans = [
        Span(
            begun["message"], begun["domain"],
            categories.get((begun["pid"], begun["domain"], begun["category"]), ""),
            begun["color"], begun["payload"], begun["pid"], begun["tid"], begun["time"], end,
        )
        for begun, end in ended
    ]  # fmt: skip
    spans.sort(key=lambda span: (span.start, -span.end))
    unclosed = len(started) + sum(len(stack) for stack in stacks.values())
    return Recording(spans, unclosed=unclosed, unopened=unopened)


def _events(path: Path) -> list[Event]:
    events = []
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            try:
                events.append(json.loads(line))
            except ValueError:
                raise SystemExit(
                    f"{path}, line {number} is no JSON: is the file a log of ranges?"
                ) from None
    return events
