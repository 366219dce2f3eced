"""What is said over the control socket: one request, one line of JSON; then lines of answer, the last one final.

    {"request": "restart"}                 {"stage": "load", "generation": 8} ...       {"outcome": {...}}
    {"request": "stop"}                    {"stage": "stop", "generation": 7}           the end of the process, or
                                           {"stopped": true}      if that goes on without the program
    {"request": "status"}                  {"status": {...}}
    {"request": "scale", "by": 1}          {"workers": 5}          (or "to": 5)

and `{"error": "..."}` for what cannot be done or understood. Whoever asks may close the writing side after the request.
No I/O here.
"""

from __future__ import annotations

from .. import cjson

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["LONGEST_REQUEST", "line", "request"]

LONGEST_REQUEST = 1024
"""Bytes, without the end of the line."""

_MANY = 1_000_000

_FIELDS: dict[str, tuple[str, ...]] = {"restart": (), "stop": (), "status": (), "scale": ("by", "to")}
"""What can be asked for; of the numbers that belong to it, one is given."""


def line(**fields: Any) -> bytes:
    """A line, as it is sent."""
    return cjson.dumps(fields).encode() + b"\n"


def request(text: bytes) -> dict[str, Any]:
    """The request in a line that has come. Raises ValueError, which says what is wrong with it."""
    try:
        asked: dict[str, Any] | None = cjson.loads(text.decode())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"that is not JSON: {error}") from None
    if not isinstance(asked, dict) or not isinstance(asked.get("request"), str):
        raise ValueError('a request is a JSON object, as {"request": "restart"}')
    fields = _FIELDS.get(asked["request"])
    if fields is None:
        raise ValueError(f"{asked['request'][:20]!r} cannot be asked for; there are {', '.join(_FIELDS)}")
    unknown = sorted(asked.keys() - {*fields, "request"})
    if unknown:
        raise ValueError(f"{asked['request']} has no {unknown[0][:20]!r}")
    numbers = [asked[name] for name in fields if name in asked]
    if len(numbers) != bool(fields) or not all(type(each) is int and abs(each) < _MANY for each in numbers):
        raise ValueError(f"{asked['request']} takes one number: {' or '.join(fields)}")
    return asked
