"""Means, percentiles, and how sure they are."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Distribution:
    """What is told of many values: numpy's mean, median, population deviation, and percentiles with
    linear interpolation (all as vLLM's client computes them); zeros if there are no values."""

    count: int
    mean: float
    median: float
    std: float
    max: float
    percentiles: dict[float, float]

    @classmethod
    def of(cls, values: FloatArray, percentiles: Sequence[float]) -> "Distribution":
        """Of any number of values, NaN not among them."""
        if len(values) == 0:
            return cls(0, 0.0, 0.0, 0.0, 0.0, dict.fromkeys(percentiles, 0.0))
        ranks = np.percentile(values, list(percentiles))
        return cls(
            len(values),
            float(np.mean(values)),
            float(np.median(values)),
            float(np.std(values)),
            float(np.max(values)),
            {percent: float(rank) for percent, rank in zip(percentiles, ranks, strict=True)},
        )


@dataclass(frozen=True)
class Interval:
    """A mean and the interval in which the true mean lies with 95 % confidence."""

    mean: float
    low: float
    high: float
    count: int

    @property
    def half(self) -> float:
        """Half of its width."""
        return (self.high - self.low) / 2


def confidence(values: Sequence[float], level: float = 0.95) -> Interval:
    """Student's interval of the mean; of a single value it is unbounded.

    Values must be independent, such as those of repeated runs, which requests of one run are not.
    """
    count = len(values)
    mean = float(np.mean(values)) if count else math.nan
    if count < 2:
        return Interval(mean, -math.inf, math.inf, count)
    error = float(np.std(values, ddof=1)) / math.sqrt(count)
    half = student_quantile(0.5 + level / 2, count - 1) * error
    return Interval(mean, mean - half, mean + half, count)


def student_quantile(probability: float, freedom: int) -> float:
    """The quantile (above the median) of Student's t distribution, to eight digits.

    Bisection on the integral of the density, by Simpson's rule in the angle atan(t / sqrt(n)),
    where the integrand is the smooth cos^(n - 1).
    """
    scale = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(math.pi)
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        angles = np.linspace(0.0, middle, 2001)
        heights = np.cos(angles) ** (freedom - 1)
        weights = np.ones(2001)
        weights[1:-1:2], weights[2:-1:2] = 4.0, 2.0
        area = scale * float(weights @ heights) * middle / 2000 / 3
        low, high = (middle, high) if area < probability - 0.5 else (low, middle)
    return math.sqrt(freedom) * math.tan((low + high) / 2)
