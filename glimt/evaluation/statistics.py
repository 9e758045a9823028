"""Intervals and tests for shares: Wilson's, the paired bootstrap, McNemar's."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

_Z = 1.959963984540054  # two-sided 95 % of the normal distribution
_NUM_RESAMPLES = 10_000


class Interval(NamedTuple):
    """A 95 % confidence interval."""

    low: float
    high: float


class McNemar(NamedTuple):
    """Tasks that only one of two models got right, and how unlikely that split is by chance."""

    b: int  # only the first
    c: int  # only the second
    p_value: float  # exact, two-sided


def wilson(num_right: int, n: int) -> Interval:
    """Wilson's score interval for a share; all of [0, 1] for n = 0.

    Source: Wilson, Probable inference, JASA 22 (1927): (p + z²/2n ± z √(p(1-p)/n + z²/4n²)) /
    (1 + z²/n).
    """
    if n == 0:
        return Interval(0.0, 1.0)
    p = num_right / n
    middle = p + _Z**2 / (2 * n)
    reach = _Z * math.sqrt(p * (1 - p) / n + _Z**2 / (4 * n**2))
    scale = 1 + _Z**2 / n
    low = 0.0 if num_right == 0 else (middle - reach) / scale
    high = 1.0 if num_right == n else (middle + reach) / scale
    return Interval(low, high)


def paired_bootstrap(differences: Sequence[float], seed: int) -> Interval:
    """Percentile interval of the mean of per-task differences, tasks drawn with replacement.

    (0, 0) where all differences are 0. Resampling tasks draws how often each value occurs, which
    is multinomial.
    """
    if not differences:
        return Interval(0.0, 0.0)
    values, counts = np.unique(np.array(differences, np.float64), return_counts=True)
    n = len(differences)
    drawn = np.random.default_rng(seed).multinomial(n, counts / n, size=_NUM_RESAMPLES)
    low, high = np.quantile(drawn @ values / n, [0.025, 0.975])
    return Interval(float(low), float(high))


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> McNemar:
    """The exact test: under no difference, b of b + c is a fair coin's number of heads.

    Source: McNemar, Psychometrika 12 (1947).
    """
    pairs = list(zip(first, second, strict=True))
    b, c = pairs.count((True, False)), pairs.count((False, True))
    tail = sum(math.comb(b + c, k) for k in range(min(b, c) + 1))
    return McNemar(b, c, min(1.0, 2 * tail / 2 ** (b + c)))


def quantiles(values: Sequence[float], shares: Sequence[float]) -> list[float]:
    """The quantiles, linearly interpolated. Raises IndexError for no values."""
    return [float(x) for x in np.quantile(np.array(values, np.float64), shares)]
