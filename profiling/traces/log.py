"""Reading the lines that the injection library, or the recorder in Python, has written."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from traces.spans import Recording, Span

Event = dict[str, Any]

QUESTION = "is the file a log of ranges?"


def read_log(path: Path) -> Recording:
    """Return what a file of JSON lines holds.

    Raises
    ------
    SystemExit
        If there is no such file, or a line is no event.
    """
    categories: dict[tuple[int | None, str, int], str] = {}
    stacks: dict[tuple[int, int, str], list[Event]] = {}
    started: dict[tuple[int, str, int], Event] = {}
    ended: list[tuple[Event, int]] = []
    unopened = 0
    for number, event in enumerate(_events(path), 1):
        try:
            process, domain, kind = event["pid"], event["domain"], event["kind"]
            stack = stacks.setdefault((process, event["tid"], domain), [])
            if kind == "category":
                # A forked child has the names of its parent: the last one that anybody gave.
                for owner in (process, None):
                    categories[owner, domain, event["category"]] = event["message"]
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
    spans = [_span(begun, end, categories) for begun, end in ended]
    spans.sort(key=lambda span: (span.start, -span.end))
    unclosed = len(started) + sum(len(stack) for stack in stacks.values())
    return Recording(spans, unclosed=unclosed, unopened=unopened)


def _span(begun: Event, end: int, categories: Mapping[tuple[int | None, str, int], str]) -> Span:
    """Return a range by the event that began it."""
    process, domain, number = begun["pid"], begun["domain"], begun["category"]
    named = categories.get((None, domain, number), "")
    return Span(
        begun["message"], domain, categories.get((process, domain, number), named),
        begun["color"], begun["payload"], process, begun["tid"], begun["time"], end,
    )  # fmt: skip


def _events(path: Path) -> list[Event]:
    if not path.is_file():
        raise SystemExit(f"{path} is no file")
    events = []
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            try:
                event = json.loads(line)
            except ValueError:
                raise SystemExit(f"{path}, line {number} is no JSON: {QUESTION}") from None
            if not isinstance(event, dict):
                raise SystemExit(f"{path}, line {number} is no event: {QUESTION}")
            events.append(event)
    return events
