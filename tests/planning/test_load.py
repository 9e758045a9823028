"""The formulas of a layout under load against a run of it, step by step, with random arrivals."""

import random
from collections import deque
from dataclasses import replace

import pytest

from glimt.planning.constants import Measured, load_constants
from glimt.planning.fit import Room, fit
from glimt.planning.layout import Layout
from glimt.planning.load import Workload, highest_rate, host_s, most_at_once, under
from glimt.planning.published import published
from glimt.planning.speed import Speed

CONSTANTS = load_constants()
NUM_REQUESTS = 2500


class Copy:
    """Prompts that wait for one, by arrival, and its answers: [tokens to come, time of first]."""

    def __init__(self) -> None:
        self.waiting: deque[float] = deque()
        self.running: list[list[float]] = []

    def work(self) -> int:
        return len(self.waiting) + len(self.running)


def step_s(speed: Speed, work: Workload, copies: list[Copy], batches: list[int]) -> float:
    """As long as that of the fullest copy."""
    here = max(batches)
    if here:
        elsewhere = sum(batches) - here
        tower_s = speed.image_s(work.image_tokens, here * work.num_images)
        return tower_s + speed.prompt_s(work.prompt_tokens, work.chunk, here, elsewhere)
    here = max(len(copy.running) for copy in copies)
    elsewhere = sum(len(copy.running) for copy in copies) - here
    return speed.step_s(here, work.mean_context, elsewhere)


def run(speed: Speed, work: Workload, rate: float) -> tuple[float, float]:
    """Mean (TTFT, TPOT) of copies that step together, each with a queue of its own: a step computes
    its oldest waiting prompts, as many as fit, and gives each running answer a token."""
    chance = random.Random(1)
    arrivals = []
    time_s = 0.0
    for _ in range(NUM_REQUESTS):
        time_s += chance.expovariate(rate)
        arrivals.append(time_s)
    sharing = speed.layout.sharing
    most = most_at_once(speed.layout, work) // sharing
    copies = [Copy() for _ in range(sharing)]
    ttfts, tpots, now_s, come = [], [], 0.0, 0
    while len(tpots) < NUM_REQUESTS:
        if not any(copy.work() for copy in copies):
            now_s = max(now_s, arrivals[come])
        while come < NUM_REQUESTS and arrivals[come] <= now_s:
            min(copies, key=Copy.work).waiting.append(arrivals[come])
            come += 1
        batches = [min(most, len(copy.waiting)) for copy in copies]
        now_s += step_s(speed, work, copies, batches)
        for copy, batch in zip(copies, batches, strict=True):
            for answer in copy.running:
                answer[0] -= 1
                if answer[0] == 0:
                    tpots.append((now_s - answer[1]) / (work.output_tokens - 1))
            copy.running = [answer for answer in copy.running if answer[0]]
            for _ in range(batch):
                ttfts.append(now_s - copy.waiting.popleft())
                copy.running.append([work.output_tokens - 1, now_s])
    return sum(ttfts) / len(ttfts), sum(tpots) / len(tpots)


ALONE, FOUR = Layout(), Layout(4)
SHARED = Layout(1, 2, spread=True, gpus_per_node=2)
SHARED_OF_FOUR = Layout(2, 4, spread=True)


@pytest.mark.parametrize(
    ("layout", "share", "off"),
    [
        *((layout, share, 0.06) for layout in (ALONE, FOUR) for share in (0.2, 0.5, 0.95)),
        (SHARED, 0.9, 0.16),  # the formulas take the copies to be evenly loaded
        (SHARED_OF_FOUR, 0.5, 0.15),
    ],
)
def test_pace_and_waiting_are_those_of_a_run(layout: Layout, share: float, off: float) -> None:
    config = published("GLM-4.5V-FP8")
    assert config is not None
    speed = Speed(config, layout, CONSTANTS.gpu("h200"), CONSTANTS, True, False)
    work = Workload(90, 64, 1, 1369, 8192)
    rate = share * highest_rate(speed, work, 256)
    expected = under(speed, work, rate, 256)
    ttft_s, tpot_s = run(speed, work, rate)
    assert expected.tpot_s == pytest.approx(tpot_s, rel=0.16)
    assert expected.ttft_s - host_s(speed, work) == pytest.approx(ttft_s, rel=off)


def measured_with(tp: int) -> tuple[Speed, Measured]:
    config = published("GLM-4.5V-FP8")
    assert config is not None
    (measured,) = (each for each in CONSTANTS.measured if each.tensor_parallel_size == tp)
    return Speed(config, Layout(tp), CONSTANTS.gpu(measured.gpu), CONSTANTS, True, False), measured


@pytest.mark.parametrize(("tp", "off", "first_off"), [(1, 0.025, 0.03), (2, 0.025, 0.05)])
def test_estimates_are_near_what_was_measured(tp: int, off: float, first_off: float) -> None:
    """Beyond 64 requests at once one figure is known, of a graph of that size."""
    speed, measured = measured_with(tp)
    for batch, seconds in measured.steps:
        step_off = off if batch <= 64 else 0.06
        assert seconds == pytest.approx(speed.step_s(batch, measured.context), rel=step_off)
    image, tokens, seconds = measured.first_token
    expected = speed.image_s(image) + speed.prompt_s(tokens, 8192)
    assert seconds == pytest.approx(expected, rel=first_off)


@pytest.mark.parametrize(
    ("tp", "spread", "rate", "off"),
    [(1, False, 30_400, 0.02), (2, False, 43_600, 0.06), (2, True, 46_638, 0.03)],
)
def test_sixteen_prompts_at_once_go_as_fast_as_measured(
    tp: int, spread: bool, rate: float, off: float
) -> None:
    """16 prompts of 1,433 tokens in steps of at most 8,192: five and a piece in each."""
    speed, _ = measured_with(tp)
    speed = replace(speed, layout=Layout(tp, spread=spread))
    steps_s = 2 * speed.prompt_s(1433, 8192, 8192 / 1433) + speed.prompt_s(1433, 8192, 6544 / 1433)
    assert 16 * 1433 / steps_s == pytest.approx(rate, rel=off)


@pytest.mark.parametrize(
    ("layout", "fp8_kv", "steps", "off"),
    [
        (Layout(), True, [(64, 30.31), (128, 35.34)], 0.02),
        (Layout(2, spread=True), False, [(1, 3.74), (8, 8.83), (64, 18.43)], 0.03),
        (SHARED, False, [(1, 6.41), (8, 10.96), (64, 23.04)], 0.17),
    ],
    ids=["FP8 keys and values", "experts whole on two GPUs", "experts of two copies"],
)
def test_steps_of_other_forms_are_near_too(
    layout: Layout, fp8_kv: bool, steps: list[tuple[int, float]], off: float
) -> None:
    """Milliseconds by requests of each copy; docs/performance.md."""
    config = published("GLM-4.5V-FP8")
    assert config is not None
    speed = Speed(config, layout, CONSTANTS.gpu("h200"), CONSTANTS, True, fp8_kv)
    for batch, ms in steps:
        elsewhere = (layout.sharing - 1) * batch
        assert 1e3 * speed.step_s(batch, 1465, elsewhere) == pytest.approx(ms, rel=off)


def test_a_small_prompt_and_image_take_as_long_as_their_launches() -> None:
    """More GPUs make them no faster; the floors know no launches."""
    config = published("GLM-4.5V-FP8")
    assert config is not None
    gpu = CONSTANTS.gpu("h200")
    two, four = (Speed(config, Layout(tp), gpu, CONSTANTS, True, False) for tp in (2, 4))
    engine = CONSTANTS.engine
    layer_s = engine.prompt_layer_s
    assert two.prompt_s(90, 8192) == four.prompt_s(90, 8192) == pytest.approx(46 * layer_s)
    assert two.image_s(64) == four.image_s(64) == pytest.approx(24 * engine.tower_layer_s)
    assert replace(two, floor=True).prompt_s(90, 8192) < 23 * layer_s
    assert two.prompt_s(8192, 8192) > 1.4 * four.prompt_s(8192, 8192)


@pytest.mark.parametrize(("tp", "pages"), [(1, 1987), (2, 13_042)])
def test_as_much_fits_as_did_on_h200s(tp: int, pages: int) -> None:
    """On one, 82 prompts of 1,433 tokens with answers of 96, at the usual share of the memory."""
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
        request_tokens=1433 + 96,
        step_tokens=8192,
    )
    assert fits.kv_tokens / 64 == pytest.approx(pages, rel=0.005)
    assert fits.requests == (82 if tp == 1 else 128)
