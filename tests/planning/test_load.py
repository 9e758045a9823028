"""The formulas of a layout under load against a run of it, step by step, with random arrivals."""

import random
from collections import deque

import pytest

from glimt.planning.constants import load_constants
from glimt.planning.fit import Room, fit
from glimt.planning.layout import Layout
from glimt.planning.load import Workload, gpu_prompt_s, highest_rate, host_s, under
from glimt.planning.prompts import MOST_AT_ONCE
from glimt.planning.published import published
from glimt.planning.speed import Speed

CONSTANTS = load_constants()
NUM_REQUESTS = 2500


def run(speed: Speed, work: Workload, rate: float) -> tuple[float, float]:
    """Mean (TTFT, TPOT) of one copy: a step computes the oldest waiting prompts, as many as fit,
    and gives each running answer a token."""
    chance = random.Random(1)
    arrivals = []
    time_s = 0.0
    for _ in range(NUM_REQUESTS):
        time_s += chance.expovariate(rate)
        arrivals.append(time_s)
    most = min(MOST_AT_ONCE, work.chunk // work.prompt_tokens)
    waiting: deque[float] = deque()
    running: list[list[float]] = []  # [tokens still to come, time of the first]
    ttfts, tpots, now_s, come = [], [], 0.0, 0
    while len(tpots) < NUM_REQUESTS:
        if not waiting and not running:
            now_s = max(now_s, arrivals[come])
        while come < NUM_REQUESTS and arrivals[come] <= now_s:
            waiting.append(arrivals[come])
            come += 1
        batch = min(most, len(waiting))
        if batch:
            now_s += gpu_prompt_s(speed, work, batch)
        else:
            now_s += speed.step_s(len(running), work.mean_context)
        for answer in running:
            answer[0] -= 1
        for tokens, began_s in running:
            if tokens == 0:
                tpots.append((now_s - began_s) / (work.output_tokens - 1))
        running = [answer for answer in running if answer[0]]
        for _ in range(batch):
            ttfts.append(now_s - waiting.popleft())
            running.append([work.output_tokens - 1, now_s])
    return sum(ttfts) / len(ttfts), sum(tpots) / len(tpots)


@pytest.mark.parametrize("tp", [1, 4])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.95])
def test_pace_and_waiting_are_those_of_a_run(tp: int, share: float) -> None:
    config = published("GLM-4.5V-FP8")
    assert config is not None
    speed = Speed(config, Layout(tp), CONSTANTS.gpu("h200"), CONSTANTS, True, False)
    work = Workload(90, 64, 1, 1369, 8192)
    rate = share * highest_rate(speed, work, 256)
    expected = under(speed, work, rate, 256)
    ttft_s, tpot_s = run(speed, work, rate)
    assert expected.tpot_s == pytest.approx(tpot_s, rel=0.16)
    assert expected.ttft_s - host_s(speed, work) == pytest.approx(ttft_s, rel=0.06)


def test_estimates_are_near_the_steps_that_were_measured() -> None:
    config = published("GLM-4.5V-FP8")
    assert config is not None
    (measured,) = CONSTANTS.measured
    speed = Speed(config, Layout(), CONSTANTS.gpu("h200"), CONSTANTS, True, False)
    for batch, seconds in measured.steps:
        expected = speed.step_s(batch, measured.context)
        assert seconds == pytest.approx(expected, rel=0.3 if batch == 1 else 0.12)
    image, tokens, seconds = measured.first_token
    expected = speed.image_s(image) + speed.prompt_s(tokens, 8192)
    assert seconds == pytest.approx(expected, rel=0.1)


def test_as_many_requests_fit_as_ran_on_an_h200() -> None:
    """82 prompts of 1,433 tokens with answers of 96, at the usual share of the memory."""
    config = published("GLM-4.5V-FP8")
    assert config is not None
    fits = fit(
        config,
        Layout(),
        CONSTANTS.gpu("h200"),
        CONSTANTS.engine,
        Room(utilization=0.92, max_num_seqs=128, max_model_len=None),
        fp8=True,
        fp8_kv=False,
        request_tokens=1433 + 96,
    )
    assert fits.requests == 82
