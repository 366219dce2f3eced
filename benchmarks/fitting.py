"""How something grows: the exponent of what is added above the smallest size, and what one more costs.

A constant part (the boot of an interpreter) makes any power law through the raw figures look flatter than it is, and
would hide a square. So the median at the smallest size is taken off first: what is left grows with exponent 1 if it is
a line, 2 if it is a square. Sizes whose increase is within the spread of the runs say nothing, and are left out.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

WORSE = 1.15  # the least exponent that is called worse than linear: a line measured with noise gives up to this
LARGEST = 3  # so many of the largest sizes are fitted: there it matters
_RESAMPLES = 400

Samples = Mapping[int, Sequence[float]]


def fit(samples: Samples) -> dict[str, Any]:
    """`samples[size]` are the runs at a size: "exponent" with "low" and "high" (95 % of redrawn runs), "each" (what one
    more costs: the slope of a line with an intercept through the medians) and "verdict"."""
    sizes = [size for size in sorted(samples) if _shows(samples, size)]
    each = slope([(size, statistics.median(values)) for size, values in samples.items()])
    found: dict[str, Any] = {"each": float(f"{each:.3g}"), "exponent": None, "low": None, "high": None}
    if not sizes:
        return {**found, "verdict": "flat: within the spread"}
    if len(sizes) == 1:
        return {**found, "verdict": _of_one(samples, sizes[0])}
    fitted = [min(samples), *sizes[-LARGEST:]]
    low, high = _interval(samples, fitted)
    exponent = _exponent({size: statistics.median(samples[size]) for size in fitted})
    assert exponent is not None  # every size that shows has an increase
    return {**found, "exponent": round(exponent, 2), "low": low, "high": high, "verdict": verdict(low, exponent)}


def verdict(low: float, exponent: float) -> str:
    """In words; `low` is the lower end of the exponent's interval."""
    if exponent <= WORSE:
        return "linear" if exponent > 2 - WORSE else "less than linear"
    return "**worse than linear**" if low > WORSE else "linear, or worse: too noisy to tell"


def _of_one(samples: Samples, size: int) -> str:
    """For an increase that shows at one size: whether a line through it would be as little seen at the size before."""
    if size != max(samples):
        return "flat: within the spread at the largest size"
    first, before = min(samples), sorted(samples)[-2]
    at = {each: statistics.median(samples[each]) for each in (first, before, size)}
    expected = at[first] + (at[size] - at[first]) * (before - first) / (size - first)
    spread = max(_quartiles_apart(samples[before]), _quartiles_apart(samples[first]))
    is_line = expected - at[before] <= 2 * spread  # of two medians
    return "seen at the largest size only, as a line would be" if is_line else "a step, or worse than linear"


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Of the line with an intercept through the points, by least squares."""
    mean_x, mean_y = (statistics.fmean(values) for values in zip(*points, strict=True))
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / spread if spread else 0.0


def _shows(samples: Samples, size: int) -> bool:
    """Whether the runs at this size lie above those at the smallest by more than the quartiles of both are apart."""
    smallest = samples[min(samples)]
    increase = statistics.median(samples[size]) - statistics.median(smallest)
    return increase > max(_quartiles_apart(samples[size]), _quartiles_apart(smallest), 0.0)


def _quartiles_apart(values: Sequence[float]) -> float:
    if len(values) < 2:
        return 0.0
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return high - low


def _exponent(values: Mapping[int, float]) -> float | None:
    """Of the increase above the smallest size; None if there are not two."""
    first = min(values)
    points = [
        (math.log(size - first), math.log(value - values[first]))
        for size, value in values.items()
        if size > first and value > values[first]
    ]
    return slope(points) if len(points) > 1 else None


def _interval(samples: Samples, sizes: Sequence[int]) -> tuple[float, float]:
    draw = random.Random(1)
    drawn = []
    for _ in range(_RESAMPLES):
        values = {size: statistics.median(draw.choices(samples[size], k=len(samples[size]))) for size in sizes}
        exponent = _exponent(values)
        if exponent is not None:
            drawn.append(exponent)
    drawn.sort()
    return round(drawn[int(0.025 * len(drawn))], 2), round(drawn[int(0.975 * len(drawn))], 2)
