"""Intervals against known values, and against what they promise."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from glimt.evaluation.statistics import mcnemar, paired_bootstrap, wilson


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


def test_the_paired_interval_is_near_the_normal_one_and_repeats_itself() -> None:
    differences = [1.0] * 30 + [-1.0] * 10 + [0.0] * 360
    low, high = paired_bootstrap(differences, seed=1)
    reach = 1.96 * float(np.std(differences)) / math.sqrt(len(differences))
    assert low == pytest.approx(0.05 - reach, abs=0.004)
    assert high == pytest.approx(0.05 + reach, abs=0.004)
    assert paired_bootstrap(differences, seed=1) == (low, high)
    assert paired_bootstrap([-x for x in differences], seed=1)[1] == pytest.approx(-low, abs=0.004)


def test_no_difference_has_no_width() -> None:
    assert paired_bootstrap([0.0] * 50, seed=0) == (0.0, 0.0)
    assert paired_bootstrap([], seed=0) == (0.0, 0.0)


def test_mcnemar_counts_the_tasks_that_only_one_got_right() -> None:
    first = [True] * 10 + [False] * 2 + [True] * 5
    second = [False] * 10 + [True] * 2 + [True] * 5
    result = mcnemar(first, second)
    assert (result.b, result.c) == (10, 2)
    # Two-sided binomial: 2 * (1 + 12 + 66) / 2**12.
    assert result.p_value == pytest.approx(2 * 79 / 4096)
    assert mcnemar([True], [True]).p_value == 1.0
