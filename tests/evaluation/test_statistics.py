"""Intervals against known values, and against what they promise."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from glimt.evaluation.statistics import mcnemar, paired_difference, wilson


@pytest.mark.parametrize(
    ("num", "n", "low", "high"),
    [
        # Newcombe, Statistics in Medicine 17 (1998), table I, method 3.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilsons_interval_has_the_published_values(
    num: int, n: int, low: float, high: float
) -> None:
    assert wilson(num, n) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))


@given(st.integers(0, 500), st.integers(0, 500))
def test_wilsons_interval_holds_the_share_and_stays_in_bounds(a: int, b: int) -> None:
    low, high = wilson(a, a + b)
    assert 0.0 <= low <= high <= 1.0
    if a + b:
        assert low <= a / (a + b) <= high
        # As many wrong as were right: the interval is the mirror image.
        assert wilson(b, a + b) == (pytest.approx(1 - high), pytest.approx(1 - low))


def test_tangos_interval_has_the_published_values() -> None:
    # Fagerland, Lydersen, Laake, Statistics in Medicine 33 (2014): 1 and 7 of 21 pairs differ.
    assert paired_difference(7, 1, 21) == (
        pytest.approx(-0.517, abs=5e-4),
        pytest.approx(-0.026, abs=5e-4),
    )


@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 400))
def test_tangos_interval_holds_the_difference_and_ends_where_the_score_says(
    b: int, c: int, same: int
) -> None:
    n = b + c + same
    low, high = paired_difference(b, c, n)
    assert paired_difference(c, b, n) == (pytest.approx(-high), pytest.approx(-low))
    assert -1.0 <= low <= high <= 1.0
    if n == 0:
        assert (low, high) == (-1.0, 1.0)
        return
    assert low <= (c - b) / n <= high
    assert high - low > 1.9 / (n + 4)  # never empty
    for end in (low, high):
        if abs(end) < 1 - 1e-9:
            assert score_of(end, b, c, n) == pytest.approx(1.96, abs=1e-3)


def score_of(d: float, b: int, c: int, n: int) -> float:
    """How far c - b is from n d, in standard deviations; the likeliest q is searched for, not
    solved for: the logarithm of its likelihood has one top."""
    low, high = max(0.0, -d), (1 - d) / 2

    def likelihood(q: float) -> float:
        shares = ((b, q), (c, q + d), (n - b - c, 1 - 2 * q - d))
        return sum(k * math.log(max(x, 1e-300)) for k, x in shares if k)

    for _ in range(200):
        one, other = low + (high - low) / 3, high - (high - low) / 3
        low, high = (one, high) if likelihood(one) < likelihood(other) else (low, other)
    variance = n * (low + high + d * (1 - d))
    return abs(c - b - n * d) / math.sqrt(variance)


def test_pairs_that_agree_tell_how_small_a_difference_is() -> None:
    z2 = 1.959964**2
    for n in (1, 40, 560):
        assert paired_difference(0, 0, n) == (
            pytest.approx(-z2 / (n + z2), rel=1e-5),
            pytest.approx(z2 / (n + z2), rel=1e-5),
        )


def test_tangos_interval_is_near_the_normal_one_for_many_pairs() -> None:
    differences = [1.0] * 300 + [-1.0] * 100 + [0.0] * 3600
    low, high = paired_difference(100, 300, 4000)
    reach = 1.96 * float(np.std(differences)) / math.sqrt(len(differences))
    assert low == pytest.approx(0.05 - reach, abs=5e-4)
    assert high == pytest.approx(0.05 + reach, abs=5e-4)


def test_mcnemar_counts_the_tasks_that_only_one_got_right() -> None:
    first = [True] * 10 + [False] * 2 + [True] * 5
    second = [False] * 10 + [True] * 2 + [True] * 5
    result = mcnemar(first, second)
    assert (result.b, result.c) == (10, 2)
    # Two-sided binomial: 2 * (1 + 12 + 66) / 2**12.
    assert result.p_value == pytest.approx(2 * 79 / 4096)
    assert mcnemar([True], [True]).p_value == 1.0
