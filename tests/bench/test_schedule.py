"""Arrival times: those of vLLM's client, and of the distributions that are promised."""

import math
from itertools import islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from glimt.bench.load.schedule import Arrivals, arrival_times, endless_times

# Computed by vLLM 0.33.0's own code: the first two times, the middle one, the last two.
OF_VLLM = [
    (
        Arrivals(rate=20),
        1000,
        0,
        [0.039653344291303946, 0.10222835384258086, 25.14643040085085, 49.94367240993105, 50.0],
    ),
    (
        Arrivals(rate=5, burstiness=0.5),
        50,
        7,
        [0.002379254458754388, 0.08091309507494104, 4.205350579947723, 9.999979150663943, 10.0],
    ),
    (
        Arrivals(rate=5, burstiness=4),
        50,
        3,
        [0.44321791472307104, 0.688051989705703, 4.434120979678991, 9.762135254849774, 10.0],
    ),
    (Arrivals(rate=4, burstiness=math.inf), 10, 0, [0.25, 0.5, 1.5, 2.25, 2.5]),
    (
        Arrivals(ramp="linear", ramp_start=1, ramp_end=9),
        40,
        1,
        [
            0.5396058372591854,
            1.5968587067808635,
            4.839037512437739,
            7.98367560430667,
            8.137772469593152,
        ],
    ),
    (
        Arrivals(ramp="exponential", ramp_start=1, ramp_end=16),
        40,
        1,
        [
            0.5396058372591854,
            1.726295753765665,
            6.317993658928937,
            9.3031625828851,
            9.389842069608747,
        ],
    ),
]


@pytest.mark.parametrize(("arrivals", "count", "seed", "expected"), OF_VLLM)
def test_the_schedule_is_that_of_vllm_for_the_same_seed(
    arrivals: Arrivals, count: int, seed: int, expected: list[float]
) -> None:
    times = arrival_times(arrivals, count, seed)
    picked = [times[0], times[1], times[count // 2], times[-2], times[-1]]
    assert picked == expected


@given(
    rate=st.floats(0.1, 500),
    burstiness=st.floats(0.05, 20),
    count=st.integers(1, 300),
    seed=st.integers(0, 1000),
)
def test_the_last_request_leaves_after_exactly_n_over_rate(
    rate: float, burstiness: float, count: int, seed: int
) -> None:
    times = arrival_times(Arrivals(rate=rate, burstiness=burstiness), count, seed)
    assert len(times) == count
    assert times[-1] == pytest.approx(count / rate) or times[-1] == 0
    assert (np.diff(times) >= 0).all()


@pytest.mark.parametrize("burstiness", [0.5, 1.0, 2.0])
def test_gaps_have_the_mean_and_spread_of_their_gamma_distribution(burstiness: float) -> None:
    times = np.fromiter(
        islice(endless_times(Arrivals(rate=10, burstiness=burstiness), 5), 20_000), float
    )
    gaps = np.diff(times)
    assert gaps.mean() == pytest.approx(0.1, rel=0.05)
    assert gaps.std() / gaps.mean() == pytest.approx(burstiness**-0.5, rel=0.05)


def test_poisson_gaps_pass_a_kolmogorov_smirnov_test() -> None:
    times = np.fromiter(islice(endless_times(Arrivals(rate=1), 11), 5_000), float)
    gaps = np.sort(np.diff(times, prepend=0.0))
    ranks = np.arange(1, len(gaps) + 1) / len(gaps)
    # 1.63 / sqrt(n) is the bound at the 1 % level.
    assert np.abs(1 - np.exp(-gaps) - ranks).max() < 1.63 / math.sqrt(len(gaps))


def test_without_a_rate_all_requests_leave_at_once() -> None:
    assert not arrival_times(Arrivals(), 7, 0).any()
    assert not any(islice(endless_times(Arrivals(), 0), 10))
