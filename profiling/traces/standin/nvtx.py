"""A stand-in for the package nvtx that records its ranges itself, in the format of injection.c.

For machines where the package, a C compiler or NVTX itself is missing: a process that finds this
file before the package, on PYTHONPATH, needs none of them. It has what Python programs commonly use
of the package; ranges of other languages are not seen.
"""

import json
import math
import os
import threading
import time
from functools import lru_cache, wraps
from itertools import count

_COLOURS = {
    "green": 0x008000, "blue": 0x0000FF, "yellow": 0xFFFF00, "purple": 0x800080,
    "rapids": 0x7400FF, "cyan": 0x00FFFF, "red": 0xFF0000, "white": 0xFFFFFF,
    "darkgreen": 0x006400, "orange": 0xFFA500,
}  # fmt: skip
_BLUE = _COLOURS["blue"]

_log = os.open(os.environ["NVTX_RANGES_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)


def enabled():
    return not os.getenv("NVTX_DISABLE")


def _write(kind, moment, domain, **more):
    event = {
        "time": moment, "pid": os.getpid(), "tid": threading.get_native_id(), "kind": kind,
        "domain": domain, **more,
    }  # fmt: skip
    os.write(_log, json.dumps(event).encode() + b"\n")


def _plain(payload):
    """Return a payload as JSON can hold it: arrays with fields as objects, null for the rest."""
    names = getattr(getattr(payload, "dtype", None), "names", None)
    if names is not None and payload.ndim == 0:
        return {name: _plain(payload[name].item()) for name in names}
    is_number = isinstance(payload, int) or (isinstance(payload, float) and math.isfinite(payload))
    return payload if is_number else None


class Domain:
    """One domain; `get_domain` makes them."""

    def __init__(self, name=None):
        self.name = name or ""
        self._categories = {}
        self._ids = count(1)

    def get_registered_string(self, string):
        return string

    def get_category_id(self, name):
        if name not in self._categories:
            number = self._categories[name] = len(self._categories) + 1
            moment = time.monotonic_ns()
            _write("category", moment, self.name, category=number, message=name)
        return self._categories[name]

    def get_event_attributes(self, message=None, color=None, category=None, payload=None):
        if isinstance(category, str):
            category = self.get_category_id(category)
        return {
            "category": category or 0,
            "color": color if isinstance(color, int) else _COLOURS.get(color, _BLUE),
            "message": message or "",
            "payload": _plain(payload),
        }

    def push_range(self, attributes=None, **more):
        event = attributes or self.get_event_attributes(**more)
        _write("push", time.monotonic_ns(), self.name, **event)

    def pop_range(self):
        _write("pop", time.monotonic_ns(), self.name)

    def start_range(self, attributes=None, **more):
        event, number = attributes or self.get_event_attributes(**more), next(self._ids)
        _write("start", time.monotonic_ns(), self.name, id=number, **event)
        return number

    def end_range(self, range_id):
        _write("end", time.monotonic_ns(), self.name, id=range_id)

    def mark(self, attributes=None, **more):
        event = attributes or self.get_event_attributes(**more)
        _write("mark", time.monotonic_ns(), self.name, **event)


@lru_cache(None)
def get_domain(name=None):
    return Domain(name)


class annotate:  # noqa: N801 - as the package has it
    def __init__(self, message=None, color=None, domain=None, category=None, payload=None):
        self._domain = get_domain(domain)
        self._given = {"color": color, "category": category, "payload": payload}
        self._message = message

    def __enter__(self):
        self._domain.push_range(message=self._message, **self._given)
        return self

    def __exit__(self, *exception):
        self._domain.pop_range()

    def __call__(self, function):
        if self._message is None:
            self._message = function.__name__

        @wraps(function)
        def inside(*arguments, **more):
            with self:
                return function(*arguments, **more)

        return inside


def push_range(message=None, color=None, domain=None, category=None, payload=None):
    get_domain(domain).push_range(message=message, color=color, category=category, payload=payload)


def pop_range(domain=None):
    get_domain(domain).pop_range()


def start_range(message=None, color=None, domain=None, category=None, payload=None):
    number = get_domain(domain).start_range(
        message=message, color=color, category=category, payload=payload
    )
    return number, domain


def end_range(range_id):
    number, domain = range_id
    get_domain(domain).end_range(number)


def mark(message=None, color=None, domain=None, category=None, payload=None):
    get_domain(domain).mark(message=message, color=color, category=category, payload=payload)
