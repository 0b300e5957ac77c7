"""Reading the SQLite export of Nsight Systems: ``nsys export --type sqlite``, or ``--export``.

Tables and columns are those of the "SQLite Schema Reference" in NVIDIA's documentation of Nsight
Systems. A table is there only if there was something to put into it, and columns come and go with
versions, so what is missing is left out, not asked for.
"""

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import fields
from functools import cached_property
from pathlib import Path
from typing import Any

from cupy_lstm.device import DeviceFacts
from traces.payloads import Schemas, read_payload
from traces.spans import Kernel, Recording, Span

# ENUM_NSYS_EVENT_TYPE
CATEGORY, PUSH_POP, START_END, DOMAIN = 33, 59, 60, 75

WORK = {
    "kernel": "CUPTI_ACTIVITY_KIND_KERNEL",
    "copy": "CUPTI_ACTIVITY_KIND_MEMCPY",
    "fill": "CUPTI_ACTIVITY_KIND_MEMSET",
}
"""What the GPU does, and the table of it."""

PAYLOADS = (
    "int64Value", "uint64Value", "int32Value", "uint32Value", "doubleValue", "floatValue",
)  # fmt: skip

Row = sqlite3.Row


def read_export(path: Path) -> Recording:
    """Return the ranges of a report, and the work of the GPU with the thread that asked for it.

    Raises
    ------
    SystemExit
        If the file is no export of Nsight Systems.
    """
    if not path.is_file():
        raise SystemExit(f"{path} is no file")
    with closing(sqlite3.connect(path)) as database:
        database.row_factory = sqlite3.Row
        try:
            export = _Export(database)
            if "StringIds" not in export.columns:
                raise SystemExit(f"{path} is no export of Nsight Systems: it has no StringIds")
            spans, unclosed = export.spans()
            return Recording(spans, list(export.work()), unclosed, 0, export.device())
        except sqlite3.DatabaseError as error:
            raise SystemExit(f"{path} is no SQLite export of Nsight Systems: {error}") from None


class _Export:
    """An open export.

    Attributes
    ----------
    columns : dict of str to set of str
        Of each table that is there.
    """

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database
        self.columns: dict[str, set[str]] = {}
        for (table,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'"):
            names = database.execute(f'PRAGMA table_info("{table}")')
            self.columns[table] = {row["name"] for row in names}
        self._texts: dict[int, str] = {}
        if "StringIds" in self.columns:
            self._texts = dict(database.execute("SELECT id, value FROM StringIds").fetchall())

    def rows(self, table: str, condition: str = "1") -> Iterator[Row]:
        """Yield the rows of a table, none if it is not there."""
        if table in self.columns:
            yield from self._database.execute(
                f'SELECT * FROM "{table}" WHERE {condition} ORDER BY rowid'
            )

    def value(self, row: Row, *names: str) -> Any:
        """Return the first of some columns that is there and holds something."""
        return next((row[n] for n in names if n in row.keys() and row[n] is not None), None)  # noqa: SIM118

    def text(self, row: Row, plain: str, registered: str) -> str:
        """Return a text that is in the row or, by its number, in StringIds."""
        text = self.value(row, plain)
        return text if text is not None else self._texts.get(self.value(row, registered), "")

    def spans(self) -> tuple[list[Span], int]:
        """Return the ranges that were closed, and how many were not."""
        domains: dict[tuple[int, Any], str] = {}
        categories: dict[tuple[int, Any, Any], str] = {}
        for row in self.rows("NVTX_EVENTS", f"eventType IN ({CATEGORY}, {DOMAIN})"):
            process, domain = process_of(row["globalTid"]), self.value(row, "domainId")
            name = self.text(row, "text", "textId")
            if row["eventType"] == DOMAIN:
                domains[process, domain] = name
            else:
                categories[process, domain, self.value(row, "category")] = name
        spans, unclosed = [], 0
        for row in self.rows("NVTX_EVENTS", f"eventType IN ({PUSH_POP}, {START_END})"):
            if row["end"] is None:
                unclosed += 1
                continue
            process, domain = process_of(row["globalTid"]), self.value(row, "domainId")
            spans.append(
                Span(
                    self.text(row, "text", "textId"), domains.get((process, domain), ""),
                    categories.get((process, domain, self.value(row, "category")), ""),
                    (self.value(row, "color") or 0) % 2**32, self.payload(row), process,
                    thread_of(row["globalTid"]), row["start"], row["end"],
                )
            )  # fmt: skip
        spans.sort(key=lambda span: (span.start, -span.end))
        return spans, unclosed

    @cached_property
    def schemas(self) -> Schemas:
        """The schemas of payloads."""
        found: Schemas = {}
        for row in sorted(self.rows("NVTX_PAYLOAD_SCHEMA_ENTRIES"), key=lambda row: row["idx"]):
            entry = self.value(row, "name") or "", row["type"], self.value(row, "offset") or 0
            found.setdefault((row["domainId"], row["schemaId"]), []).append(entry)
        return found

    def payload(self, row: Row) -> Any:
        """Return the payload of a range: a number, the fields of a schema, or None."""
        binary = self.value(row, "binaryData")
        if binary:
            return read_payload(binary, self.schemas)
        text = self.value(row, "jsonText")
        if text is None:
            text = self._texts.get(self.value(row, "jsonTextId"))
        if text is None:
            return self.value(row, *PAYLOADS)
        try:
            return json.loads(text)
        except ValueError:
            return text

    def work(self) -> Iterator[Kernel]:
        """Yield the work of the GPU whose call of the CUDA interface was recorded, too.

        The call has the same correlation number, in the same process. Calls of the driver, which
        CuPy makes, are in the table of the runtime's.
        """
        calls = {
            (process_of(row["globalTid"]), row["correlationId"]): row
            for row in self.rows("CUPTI_ACTIVITY_KIND_RUNTIME")
        }
        for kind, table in WORK.items():
            for row in self.rows(table):
                process = process_of(self.value(row, "globalPid") or 0)
                call = calls.get((process, row["correlationId"]))
                if call is None:
                    continue
                number = self.value(row, "demangledName", "shortName")
                yield Kernel(
                    self._texts.get(number, kind), kind, row["deviceId"], row["streamId"], process,
                    thread_of(call["globalTid"]), call["start"], row["start"], row["end"],
                )  # fmt: skip

    def device(self) -> DeviceFacts | None:
        """Return what the report says of its first GPU; zeros for limits that no floor needs."""
        row = next(self.rows("TARGET_INFO_GPU"), None)
        if row is None:
            return None
        known = {
            "name": self.value(row, "name") or "GPU",
            "compute_capability": tuple(
                int(self.value(row, part) or 0) for part in ("computeMajor", "computeMinor")
            ),
            "multiprocessors": int(self.value(row, "smCount") or 0),
            "clock_hz": float(self.value(row, "clockRate") or 0),
            "memory_bandwidth": float(self.value(row, "memoryBandwidth") or 0),
        }
        return DeviceFacts(
            **{field.name: known.get(field.name, 0) for field in fields(DeviceFacts)}
        )


def process_of(serialized: int) -> int:
    """Return the process in a serialized global number of a process or thread."""
    return serialized // 0x1000000 % 0x1000000


def thread_of(serialized: int) -> int:
    """Return the thread in a serialized global number of a thread."""
    return serialized % 0x1000000
