"""Writes what Nsight Systems exports as SQLite, by the schema that NVIDIA documents."""

import sqlite3
import struct
from contextlib import closing

TABLES = """
CREATE TABLE StringIds (id INTEGER NOT NULL PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE ENUM_NSYS_EVENT_TYPE (id INTEGER NOT NULL PRIMARY KEY, name TEXT, label TEXT);
CREATE TABLE NVTX_EVENTS (start INTEGER NOT NULL, end INTEGER, eventType INTEGER NOT NULL,
    rangeId INTEGER, category INTEGER, color INTEGER, text TEXT, globalTid INTEGER,
    endGlobalTid INTEGER, textId INTEGER, domainId INTEGER, uint64Value INTEGER,
    int64Value INTEGER, doubleValue REAL, uint32Value INTEGER, int32Value INTEGER,
    floatValue REAL, jsonTextId INTEGER, jsonText TEXT, binaryData TEXT);
CREATE TABLE NVTX_PAYLOAD_SCHEMA_ENTRIES (domainId INTEGER NOT NULL, schemaId INTEGER NOT NULL,
    idx INTEGER NOT NULL, flags INTEGER, type INTEGER, name TEXT, description TEXT,
    arrayOrUnionDetail INTEGER, offset INTEGER);
"""
GPU_TABLES = """
CREATE TABLE CUPTI_ACTIVITY_KIND_RUNTIME (start INTEGER NOT NULL, end INTEGER NOT NULL,
    eventClass INTEGER NOT NULL, globalTid INTEGER, correlationId INTEGER, nameId INTEGER NOT NULL,
    returnValue INTEGER NOT NULL, callchainId INTEGER);
CREATE TABLE CUPTI_ACTIVITY_KIND_KERNEL (start INTEGER NOT NULL, end INTEGER NOT NULL,
    deviceId INTEGER NOT NULL, contextId INTEGER NOT NULL, streamId INTEGER NOT NULL,
    correlationId INTEGER, globalPid INTEGER, demangledName INTEGER NOT NULL,
    shortName INTEGER NOT NULL, gridX INTEGER, gridY INTEGER, gridZ INTEGER);
CREATE TABLE CUPTI_ACTIVITY_KIND_MEMSET (start INTEGER NOT NULL, end INTEGER NOT NULL,
    deviceId INTEGER NOT NULL, contextId INTEGER NOT NULL, streamId INTEGER NOT NULL,
    correlationId INTEGER, globalPid INTEGER, value INTEGER NOT NULL, bytes INTEGER NOT NULL);
CREATE TABLE TARGET_INFO_GPU (id INTEGER NOT NULL, name TEXT, l2CacheSize INTEGER,
    memoryBandwidth INTEGER, clockRate INTEGER, smCount INTEGER, computeMajor INTEGER,
    computeMinor INTEGER);
"""

CATEGORY, PUSH_POP, START_END, DOMAIN = 33, 59, 60, 75
INT64 = 17
KERNELS, FILLS = "CUPTI_ACTIVITY_KIND_KERNEL", "CUPTI_ACTIVITY_KIND_MEMSET"


def serialized(process, thread=0):
    """Return a global number as Nsight Systems makes it: machine, process and thread in one."""
    return 1 << 56 | 2 << 48 | process << 24 | thread


class Export:
    """An export that is filled row by row; `write` makes the file."""

    def __init__(self):
        self.rows = []
        self.texts = {}
        self.domains = {}
        self.categories = {}
        self.schemas = set()
        self.calls = 0
        self.device = None

    def text(self, value):
        """Return the number of a text in StringIds."""
        return self.texts.setdefault(value, len(self.texts) + 1)

    def add(self, table, **values):
        self.rows.append((table, values))

    def domain(self, name, process):
        """Return the number of a domain in a process; the default domain is 0 and has no row."""
        if not name:
            return 0
        if (name, process) not in self.domains:
            number = self.domains[name, process] = len(self.domains) + 1
            self.add(
                "NVTX_EVENTS", start=0, eventType=DOMAIN, text=name, domainId=number,
                globalTid=serialized(process, 1),
            )  # fmt: skip
        return self.domains[name, process]

    def category(self, name, domain, process):
        """Return the number of a category of a domain."""
        if not name:
            return None
        key = name, domain, process
        if key not in self.categories:
            number = self.categories[key] = len(self.categories) + 1
            self.add(
                "NVTX_EVENTS", start=0, eventType=CATEGORY, text=name, category=number,
                domainId=domain, globalTid=serialized(process, 1),
            )  # fmt: skip
        return self.categories[key]

    def span(self, span, kind=PUSH_POP, **more):
        """Add a range as `traces.spans.Span` has it: text and payload registered."""
        domain = self.domain(span.domain, span.process)
        colour = span.colour - 2**32 if span.colour >= 2**31 else span.colour
        values = {
            "start": span.start, "end": span.end, "eventType": kind, "domainId": domain,
            "category": self.category(span.category, domain, span.process), "color": colour,
            "globalTid": serialized(span.process, span.thread), "textId": self.text(span.name),
        }  # fmt: skip
        if isinstance(span.payload, dict):
            values["binaryData"] = self.binary(span.payload, domain)
        elif span.payload is not None:
            values["int64Value"] = span.payload
        self.add("NVTX_EVENTS", **(values | more))

    def binary(self, payload, domain, schema=2**32 + 5):
        """Return the bytes of a payload of integers; each field's type is a schema of its own."""
        if (domain, schema) not in self.schemas:
            self.schemas.add((domain, schema))
            table = "NVTX_PAYLOAD_SCHEMA_ENTRIES"
            self.add(table, domainId=domain, schemaId=schema + 1, idx=0, type=INT64, name="int64")
            for index, name in enumerate(payload):
                self.add(
                    table, domainId=domain, schemaId=schema, idx=index, type=schema + 1, name=name,
                    offset=8 * index,
                )  # fmt: skip
        size = 8 * len(payload)
        header = struct.pack("<QQQQ", domain, schema, size, 32 + size)
        return header + struct.pack(f"<{len(payload)}q", *payload.values())

    def work(self, name, start, end, launched, process, thread, table=KERNELS, stream=7, call=True):
        """Add work of the GPU, and the call of the driver that asked for it."""
        self.calls += 1
        values = {
            "start": start, "end": end, "deviceId": 0, "contextId": 1, "streamId": stream,
            "correlationId": self.calls, "globalPid": serialized(process),
        }  # fmt: skip
        if table == KERNELS:
            values |= {"demangledName": self.text(name), "shortName": self.text(name[:4])}
        else:
            values |= {"value": 0, "bytes": 64}
        self.add(table, **values)
        if call:
            self.add(
                "CUPTI_ACTIVITY_KIND_RUNTIME", start=launched, end=launched + 5, eventClass=1,
                globalTid=serialized(process, thread), correlationId=self.calls,
                nameId=self.text("cuLaunchKernel"), returnValue=0,
            )  # fmt: skip

    def gpu(self, facts):
        """Say which GPU it was."""
        major, minor = facts.compute_capability
        self.device = {
            "id": 0, "name": facts.name, "l2CacheSize": facts.l2_bytes,
            "memoryBandwidth": int(facts.memory_bandwidth), "clockRate": int(facts.clock_hz),
            "smCount": facts.multiprocessors, "computeMajor": major, "computeMinor": minor,
        }  # fmt: skip

    def write(self, path):
        """Write the file; tables of the GPU only if there is something for them, as it does."""
        path.unlink(missing_ok=True)
        with closing(sqlite3.connect(path)) as database:
            database.executescript(TABLES)
            if self.device is not None:
                database.executescript(GPU_TABLES)
                self.add("TARGET_INFO_GPU", **self.device)
            for table, values in self.rows:
                marks = ", ".join("?" * len(values))
                database.execute(
                    f"INSERT INTO {table} ({', '.join(values)}) VALUES ({marks})",
                    [*values.values()],
                )
            database.executemany(
                "INSERT INTO StringIds VALUES (?, ?)",
                [(number, value) for value, number in self.texts.items()],
            )
            database.commit()
