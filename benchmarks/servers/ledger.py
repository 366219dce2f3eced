"""What the records of the clients say: pure functions, apart from the clients and the servers."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from .clients import Record

BEFORE, AFTER, STEP = 0.5, 4.0, 0.025  # seconds around a reload that the plot shows, and of one of its points
_GLANCE = 0.25  # seconds in which every worker that serves answers at least once, under full load


class Window(NamedTuple):
    """A reload: when it was asked for, when it was over, and when the next one began."""

    version: int  # the new one
    began: float
    ended: float
    until: float


def between(records: Iterable[Record], began: float, ended: float) -> list[Record]:
    """What was sent in this time."""
    return [each for each in records if began <= each.sent < ended]


def longest_silence(records: Iterable[Record], began: float, ended: float) -> float:
    """The longest time without any answer."""
    answers = sorted(each.ended for each in records if not each.failure and began < each.ended < ended)
    return max(after - before for before, after in pairwise([began, *answers, ended]))


def latencies(records: Iterable[Record]) -> dict[str, float]:
    """In milliseconds, of what was answered."""
    found = sorted((each.ended - each.sent) * 1000 for each in records if not each.failure)
    if not found:
        return {}
    at = {name: found[min(len(found) - 1, int(share * len(found)))] for name, share in (("p50", 0.5), ("p99", 0.99))}
    return {**at, "max": found[-1]}


def fewest_workers(records: Iterable[Record], began: float, ended: float) -> int:
    """How many processes answered within a glance, at the worst moment."""
    serving: dict[int, set[int]] = {}
    for each in records:
        if not each.failure and began <= each.ended < ended:
            serving.setdefault(int((each.ended - began) / _GLANCE), set()).add(each.pid)
    return min((len(serving.get(glance, ())) for glance in range(int((ended - began) / _GLANCE))), default=0)


def losses(records: Iterable[Record]) -> dict[str, int]:
    """How many were lost, by the way they were."""
    return dict(Counter(each.failure for each in records if each.failure))


def availability(records: Iterable[Record], began: float, ended: float) -> float:
    """The share, in percent, of what was sent in this time that was answered."""
    sent = between(records, began, ended)
    return 100 * sum(not each.failure for each in sent) / len(sent) if sent else 0.0


def first_new(records: Iterable[Record], window: Window) -> float | None:
    """Seconds from the trigger to the first answer by the new code."""
    return min((each.ended - window.began for each in records if each.version == window.version), default=None)


def last_old(records: Iterable[Record], window: Window) -> float:
    """Seconds from the trigger to the last answer by the old code."""
    ended = [each.ended for each in records if 0 < each.version < window.version and each.ended < window.until]
    return max(0.0, max(ended, default=window.began) - window.began)


def account(records: Sequence[Record], steady: tuple[float, float], windows: Sequence[Window]) -> dict[str, Any]:
    """All figures of one load in one run. Times in seconds, latencies in milliseconds."""
    calm = between(records, *steady)
    reloading = [each for window in windows for each in between(records, window.began, window.ended)]
    after = [each for window in windows for each in between(records, window.began, window.until)]
    firsts = [first_new(records, window) for window in windows]
    took = [first for first in firsts if first is not None]
    spent = sum(window.ended - window.began for window in windows)
    return {
        "reloads": len(windows),
        "took_effect": len(took),
        "lost": losses(after),
        "lost_in_the_steady_state": losses(calm),
        "retries": sum(each.retried for each in after),
        "steady_retries": sum(each.retried for each in calm),
        "silence": max(longest_silence(records, window.began, window.ended) for window in windows),
        "steady_silence": longest_silence(records, *steady),
        **latencies(reloading),
        **{f"steady_{name}": value for name, value in latencies(calm).items()},
        "first_new": statistics.median(took) if took else None,
        "last_old": statistics.median(last_old(records, window) for window in windows) if took else None,
        "workers": min(fewest_workers(records, window.began, window.ended) for window in windows),
        "steady_workers": fewest_workers(records, *steady),
        "per_second": sum(not each.failure for each in reloading) / spent,
        "steady_per_second": sum(not each.failure for each in calm) / (steady[1] - steady[0]),
    }


def timeline(records: Sequence[Record], window: Window) -> dict[str, list[list[float]]]:
    """For the plot: [second, the longest latency in ms] of what was sent then, by old and new code; and the lost."""
    found: dict[str, dict[int, float]] = {"old": {}, "new": {}, "lost": {}}
    for each in between(records, window.began - BEFORE, min(window.began + AFTER, window.until)):
        side = "lost" if each.failure else "new" if each.version >= window.version else "old"
        point = int((each.sent - window.began) // STEP)
        found[side][point] = max(found[side].get(point, 0.0), (each.ended - each.sent) * 1000)
    return {
        side: [[round(point * STEP, 3), round(value, 2)] for point, value in sorted(points.items())]
        for side, points in found.items()
    }
