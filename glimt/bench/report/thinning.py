"""Makes long series short enough to draw and to carry, without hiding what stands out."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
Item = TypeVar("Item")

# Finer towards the ends, where the percentiles that people ask for lie.
SHARES = (
    *(k / 1000 for k in range(10)),
    *(k / 100 for k in range(1, 99)),
    *(k / 1000 for k in range(990, 1001)),
)


def evenly(items: Sequence[Item], limit: int) -> list[Item]:
    """At most `limit` of the items, evenly chosen, first and last among them."""
    if len(items) <= limit:
        return list(items)
    places = np.linspace(0, len(items) - 1, limit).round().astype(int)
    return [items[place] for place in places]


def peaks(points: Sequence[tuple[float, float]], limit: int) -> list[list[float]]:
    """At most `limit` points of a curve: of each stretch, the highest."""
    if len(points) <= limit:
        return [[rounded(x), rounded(y)] for x, y in points]
    edges = np.linspace(0, len(points), limit + 1).round().astype(int)
    kept = [
        max(points[low:high], key=lambda point: point[1])
        for low, high in pairwise(edges)
        if high > low
    ]
    return [[rounded(x), rounded(y)] for x, y in kept]


def quantiles(values: FloatArray) -> list[float]:
    """The values at SHARES; empty without values."""
    if len(values) == 0:
        return []
    return [rounded(float(each)) for each in np.quantile(values, SHARES)]


def histogram(values: Sequence[int], num_bars: int = 32) -> list[list[float]]:
    """[from, to, how many] for columns of equal width."""
    if not values:
        return []
    low, high = min(values), max(values) + 1
    counts, edges = np.histogram(values, bins=min(num_bars, high - low), range=(low, high))
    return [
        [rounded(float(edges[k])), rounded(float(edges[k + 1])), int(count)]
        for k, count in enumerate(counts)
    ]


def rounded(value: float) -> float:
    """Five significant digits: more than a pixel can show."""
    return float(f"{value:.5g}")


def by_second(
    at_s: FloatArray, weights: Any, duration_s: float, max_bins: int
) -> tuple[list[float], list[float]]:
    """(middles of the bins in seconds, sum of weights per second in each)."""
    width = max(1.0 if duration_s >= 8 else 0.25, duration_s / max_bins)
    size = max(1, int(np.ceil(duration_s / width)))
    width = max(duration_s, 1e-6) / size
    bins = np.clip((at_s / width).astype(int), 0, size - 1)
    sums = np.bincount(bins, weights, minlength=size)[:size]
    middles = [rounded((k + 0.5) * width) for k in range(size)]
    return middles, [rounded(float(each)) for each in sums / width]
