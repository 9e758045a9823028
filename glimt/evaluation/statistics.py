"""Intervals and tests for shares: Wilson's, Tango's for pairs, McNemar's."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

_Z = 1.959963984540054  # two-sided 95 % of the normal distribution
_NUM_HALVINGS = 60  # of an interval's end: beyond the last bit of a float


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


def paired_difference(b: int, c: int, n: int) -> Interval:
    """Tango's score interval for (c - b) / n, a difference of two shares over the same n pairs.

    Pairs that both sides share tell as much as the others do: without any that differ the interval
    is ± z² / (n + z²), not empty. All of [-1, 1] for n = 0.

    Source: Tango, Equivalence test and confidence interval for the difference in proportions for
    the paired-sample design, Statistics in Medicine 17 (1998): the differences d at which
    |c - b - n d| <= z √(n (2 q + d (1 - d))), with q the likeliest share of pairs of the first kind
    if d is true. As Wilson's, of which it is the twin for pairs, it stays in bounds.

    Args:
        b: pairs that only the first got right.
        c: pairs that only the second got right.
        n: all pairs.
    """
    if n == 0:
        return Interval(-1.0, 1.0)
    return Interval(-_upper_end(c, b, n), _upper_end(b, c, n))


def _upper_end(b: int, c: int, n: int) -> float:
    inside, outside = (c - b) / n, 1.0
    for _ in range(_NUM_HALVINGS):
        middle = (inside + outside) / 2
        if _is_plausible(middle, b, c, n):
            inside = middle
        else:
            outside = middle
    return inside


def _is_plausible(d: float, b: int, c: int, n: int) -> bool:
    linear = (2 * n + b - c) * d - b - c
    root = math.sqrt(max(0.0, linear**2 + 8 * n * b * d * (1 - d)))
    q = (root - linear) / (4 * n)
    return (c - b - n * d) ** 2 <= _Z**2 * n * max(0.0, 2 * q + d * (1 - d))


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
