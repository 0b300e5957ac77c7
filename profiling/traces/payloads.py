"""Payloads with a schema, as Nsight Systems exports them: bytes, and tables that say what is where.

NVIDIA's documentation names the tables and leaves out what is in front of the bytes; what is read
here is what others have found in reports: the domain, the schema, two sizes, eight bytes each.
"""

import struct
from typing import Any

HEADER = struct.Struct("<QQQQ")

SCALARS = {
    11: "<b", 12: "<B", 13: "<h", 14: "<H", 15: "<i", 16: "<I", 17: "<q", 18: "<Q",
    43: "<f", 44: "<d",
}  # fmt: skip
"""Formats of `struct` by the types that have a fixed size, NVTX_PAYLOAD_ENTRY_TYPE_..."""

DEEPEST = 4

Field = tuple[str, int, int]
"""Name, type and offset of an entry."""

Schemas = dict[tuple[int, int], list[Field]]
"""The entries of each schema, by the numbers of its domain and its own."""


def read_payload(data: bytes | str, schemas: Schemas) -> dict[str, Any] | None:
    """Return the fields of a payload, None where it cannot be read.

    Parameters
    ----------
    data : bytes or str
        The column binaryData; as text it is in hexadecimal digits.
    schemas : Schemas
        Of the report.
    """
    try:
        data = bytes.fromhex(data) if isinstance(data, str) else data
        domain, schema, *_ = HEADER.unpack_from(data)
        key = _known(domain, schema, schemas)
        if key is None:
            return None
        body = data[HEADER.size :]
        return {
            name: _number(body[offset:], domain, kind, schemas)
            for name, kind, offset in schemas[key]
        }
    except (ValueError, struct.error):
        return None


def _known(domain: int, schema: int, schemas: Schemas) -> tuple[int, int] | None:
    """Return the key of a schema; the upper half of a number is not always part of it."""
    keys = (domain, schema), (domain % 2**32, schema % 2**32)
    return next((key for key in keys if key in schemas), None)


def _number(data: bytes, domain: int, kind: int, schemas: Schemas, depth: int = 0) -> Any:
    """Return a number; the type of a field may be a schema of its own, with one entry."""
    if kind in SCALARS:
        return struct.unpack_from(SCALARS[kind], data)[0]
    key = _known(domain, kind, schemas)
    if key is None or len(schemas[key]) != 1 or depth == DEEPEST:
        return None
    _, inner, offset = schemas[key][0]
    return _number(data[offset:], domain, inner, schemas, depth + 1)
