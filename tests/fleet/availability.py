"""How many workers of a fleet take jobs, at each moment, from what they have reported."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import pairwise


def over_time(reports: Mapping[str, Iterable[Mapping[str, object]]]) -> list[tuple[float, int]]:
    """When it changed, and how many take jobs from then on, as soon as all have begun to.

    A worker takes jobs, one after another, from `takes=True` on until it is asked to end, `takes=False`; it may have a
    job in hand then, but no other follows.
    """
    changes = sorted(
        (float(str(each["at"])), name, bool(each["takes"]))
        for name, said in reports.items()
        for each in said
        if "takes" in each
    )
    taking: set[str] = set()
    found: list[tuple[float, int]] = []
    for at, name, takes in changes:
        taking = taking | {name} if takes else taking - {name}
        if found or len(taking) == len(reports):
            found.append((at, len(taking)))
    return found


def fewest(reports: Mapping[str, Iterable[Mapping[str, object]]]) -> int:
    """How many there were at the worst moment."""
    return min(count for _, count in over_time(reports))


def longest_without(reports: Mapping[str, Iterable[Mapping[str, object]]]) -> float:
    """Seconds for which nobody took a job, at the longest."""
    changes = over_time(reports)
    return max([after - at for (at, count), (after, _) in pairwise(changes) if not count] or [0.0])
