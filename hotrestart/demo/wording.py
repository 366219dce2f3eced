"""Numbers in words, for the accounts."""

from __future__ import annotations

from statistics import median

__all__ = ["counted", "listed", "milliseconds", "spread"]


def counted(number: int, one: str, many: str) -> str:
    """How many there were: "1 job was", "20 jobs were"."""
    return f"1 {one}" if number == 1 else f"{number:,} {many}"


def listed(things: list[int] | list[str], most: int = 8) -> str:
    """The first of them."""
    return ", ".join([*map(str, things[:most]), *(["..."] if len(things) > most else [])])


def milliseconds(seconds: float | None) -> str:
    """As a whole number; None is "none"."""
    return "none" if seconds is None else f"{seconds * 1000:.0f} ms"


def spread(seconds: list[float]) -> str:
    """Least, middle and most."""
    if not seconds:
        return "none"
    low, middle, high = (f"{each * 1000:.0f}" for each in (min(seconds), median(seconds), max(seconds)))
    return f"{low} / {middle} / {high} ms (min / median / max)"
