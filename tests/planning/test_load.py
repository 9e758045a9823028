"""The formulas of a layout under load against a run of it, step by step, with random arrivals."""

import random
from collections import deque
from dataclasses import replace

import pytest

from glimt.planning.constants import Measured, load_constants
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


def measured_with(tp: int) -> tuple[Speed, Measured]:
    config = published("GLM-4.5V-FP8")
    assert config is not None
    (measured,) = (each for each in CONSTANTS.measured if each.tensor_parallel_size == tp)
    return Speed(config, Layout(tp), CONSTANTS.gpu(measured.gpu), CONSTANTS, True, False), measured


@pytest.mark.parametrize(("tp", "off", "first_off"), [(1, 0.08, 0.03), (2, 0.11, 0.17)])
def test_estimates_are_near_what_was_measured(tp: int, off: float, first_off: float) -> None:
    speed, measured = measured_with(tp)
    for batch, seconds in measured.steps:
        assert seconds == pytest.approx(speed.step_s(batch, measured.context), rel=off)
    image, tokens, seconds = measured.first_token
    expected = speed.image_s(image) + speed.prompt_s(tokens, 8192)
    assert seconds == pytest.approx(expected, rel=first_off)


@pytest.mark.parametrize(("tp", "rate", "off"), [(1, 27_104, 0.02), (2, 42_932, 0.14)])
def test_sixteen_prompts_at_once_go_as_fast_as_measured(tp: int, rate: float, off: float) -> None:
    """16 prompts of 1,433 tokens in steps of at most 8,192: five and a piece in each."""
    speed, _ = measured_with(tp)
    steps_s = 2 * speed.prompt_s(1433, 8192, 8192 / 1433) + speed.prompt_s(1433, 8192, 6544 / 1433)
    assert 16 * 1433 / steps_s == pytest.approx(rate, rel=off)


def test_a_small_prompt_and_image_take_as_long_as_their_launches() -> None:
    """More GPUs make them no faster; the floors know no launches."""
    config = published("GLM-4.5V-FP8")
    assert config is not None
    gpu = CONSTANTS.gpu("h200")
    two, four = (Speed(config, Layout(tp), gpu, CONSTANTS, True, False) for tp in (2, 4))
    layer_s = CONSTANTS.engine.prompt_layer_s
    assert two.prompt_s(90, 8192) == four.prompt_s(90, 8192) == pytest.approx(46 * layer_s)
    assert two.image_s(64) == four.image_s(64) == pytest.approx(24 * layer_s)
    assert replace(two, floor=True).prompt_s(90, 8192) < 23 * layer_s
    assert two.prompt_s(8192, 8192) > 1.5 * four.prompt_s(8192, 8192)


@pytest.mark.parametrize(("tp", "pages"), [(1, 2022), (2, 13_130)])
def test_as_much_fits_as_did_on_h200s(tp: int, pages: int) -> None:
    """On one, 84 prompts of 1,433 tokens with answers of 64, at the usual share of the memory."""
    config = published("GLM-4.5V-FP8")
    assert config is not None
    fits = fit(
        config,
        Layout(tp),
        CONSTANTS.gpu("h200"),
        CONSTANTS.engine,
        Room(utilization=0.92, max_num_seqs=128, max_model_len=None),
        fp8=True,
        fp8_kv=False,
        request_tokens=1433 + 64,
    )
    assert fits.kv_tokens / 64 == pytest.approx(pages, rel=0.005)
    assert fits.requests == (84 if tp == 1 else 128)
