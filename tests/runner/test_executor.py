"""The executor with a tiny model: how requests are scheduled changes none of their tokens."""

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from glimt.engine.limits import SchedulerLimits
from glimt.engine.plan import RowWork, StepPlan
from glimt.engine.scheduler import Scheduler
from tests.support.passes import greedy
from tests.support.pipeline import Pipeline
from tests.support.schedules import Schedule
from tests.support.tiny_model import (
    Album,
    Ask,
    make_ask,
    make_executor,
    make_prompt,
    new_row,
    tiny_model,
)

KINDS = ("glm4v", "glm4v_moe")
LAYOUTS = ("t", "tt", "it", "tit", "tbtt", "iti", "tvt", "b")
FEATURES: tuple[dict[str, Any], ...] = (
    {},
    {"temperature": 1.0},
    {"temperature": 0.8, "top_k": 20, "top_p": 0.9, "min_p": 0.01},
    {"temperature": 0.0, "repetition_penalty": 1.4, "frequency_penalty": 0.5},
    {"temperature": 1.2, "presence_penalty": 1.0, "logprobs": 2},
    {"bad_words": ((7,), (8, 9)), "min_tokens": 3, "eos_token_ids": (5, 6)},
)
ALBUM = Album()

Choice = tuple[str, int, int]  # layout, seed of the content, features
choices = st.lists(
    st.tuples(st.sampled_from(LAYOUTS), st.integers(0, 3), st.integers(0, len(FEATURES) - 1)),
    min_size=1,
    max_size=4,
)


@cache
def ask(choice: Choice) -> Ask:
    layout, seed, features = choice
    return make_ask(ALBUM, layout, seed, **FEATURES[features])


@cache
def alone(kind: str, choice: Choice) -> list[int]:
    """The answer of a request that has the engine to itself, its prompt computed in one step."""
    return Schedule(make_executor(tiny_model(kind), ALBUM), [ask(choice)], whole=True).run()[0]


def check_random_schedule(kind: str, chosen: list[Choice], seed: int, depth: int) -> None:
    """Chunks that cut through images, company, preemption and re-use of rows, pages and images,
    steps launched before the results of those before are known."""
    executor = make_executor(tiny_model(kind), ALBUM)
    asks = [ask(choice) for choice in chosen]
    answers = Schedule(executor, asks, seed=seed, depth=depth).run()
    assert answers == [alone(kind, choice) for choice in chosen]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=10)
@given(chosen=choices, seed=st.integers(0, 2**16), depth=st.integers(1, 3))
def test_no_schedule_changes_a_token(
    kind: str, chosen: list[Choice], seed: int, depth: int
) -> None:
    check_random_schedule(kind, chosen, seed, depth)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=300)
@given(chosen=choices, seed=st.integers(0, 2**16), depth=st.integers(1, 3))
def test_no_schedule_of_many_changes_a_token(
    kind: str, chosen: list[Choice], seed: int, depth: int
) -> None:
    check_random_schedule(kind, chosen, seed, depth)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", ["tt", "tbtt", "tvt"])
def test_greedy_answers_are_those_of_the_model_driven_directly(kind: str, layout: str) -> None:
    prompt = make_prompt(layout, 1)
    one = ask((layout, 1, 0))
    positions = np.arange(prompt.length)[None].repeat(3, 0)
    positions_3T = torch.from_numpy(positions if one.positions is None else one.positions).long()
    expected = greedy(tiny_model(kind), prompt, positions_3T, one.rope_delta, 8)
    assert alone(kind, (layout, 1, 0)) == expected[:8]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=8)
@given(common=st.integers(1, 30), first=st.sampled_from(["tbtt", "tvt", "titt"]), data=st.data())
def test_cached_prefix_pages_change_no_token(
    kind: str, common: int, first: str, data: st.DataObject
) -> None:
    page_size = 4
    executor = make_executor(tiny_model(kind), ALBUM, page_size=page_size)
    one, expected = ask((first, 1, 0)), alone(kind, (first, 1, 0))
    length = len(one.token_ids)
    num_pages = -(-(length + 8) // page_size)
    pages = tuple(data.draw(st.permutations(range(num_pages))))
    whole = new_row(one, row=0, page_ids=pages)
    work = RowWork(0, 0, length, samples=True)
    executor.launch(StepPlan(1, new_rows=(whole,), encode=one.images, work=(work,))).result()
    # A second request finds the first one's full pages, and goes on in pages of its own.
    cached = min(common, length - 1) // page_size
    own = tuple(range(num_pages, 2 * num_pages))
    second = new_row(one, row=3, page_ids=pages[:cached] + own)
    start = cached * page_size
    work = RowWork(3, start, length - start, samples=True)
    tokens = []
    result = executor.launch(StepPlan(2, (0,), new_rows=(second,), work=(work,))).result()
    tokens.append(result.token_ids[3])
    for index in range(length, length + 7):
        plan = StepPlan(index, work=(RowWork(3, index, 1, samples=True),))
        tokens.append(executor.launch(plan).result().token_ids[3])
    assert tokens == expected


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=8)
@given(
    chosen=choices,
    num_pages=st.integers(30, 60),
    max_num_seqs=st.integers(1, 4),
    budget=st.integers(4, 40),
    depth=st.integers(1, 2),
    prefix_caching=st.booleans(),
)
def test_the_real_scheduler_under_pressure_changes_no_token(
    kind: str,
    chosen: list[Choice],
    num_pages: int,
    max_num_seqs: int,
    budget: int,
    depth: int,
    prefix_caching: bool,
) -> None:
    limits = SchedulerLimits(
        num_pages=num_pages,
        page_size=2,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=budget,
        max_model_len=60,
        image_budget=12,
        image_cache_tokens=16,
        prefix_caching=prefix_caching,
    )
    scheduler = Scheduler(limits)
    executor = make_executor(
        tiny_model(kind),
        ALBUM,
        num_pages=num_pages,
        page_size=2,
        max_num_seqs=max_num_seqs,
        max_model_len=60,
    )
    asks = [ask(choice) for choice in chosen]
    for n, one in enumerate(asks):
        assert scheduler.add(one.submit(n)) == []
    answers: list[list[int]] = [[] for _ in asks]
    reasons: dict[int, str] = {}
    for output in Pipeline(scheduler, executor, depth).run():
        answers[output.request_id] += output.token_ids
        if output.finish_reason is not None:
            reasons[output.request_id] = output.finish_reason
    for n, (choice, answer) in enumerate(zip(chosen, answers, strict=True)):
        expected = alone(kind, choice)
        stops = asks[n].sampling.eos_token_ids
        end = next((i + 1 for i, token in enumerate(expected) if token in stops), 8)
        assert answer == expected[:end]
        assert reasons[n] == ("stop" if answer[-1] in stops else "length")


@pytest.mark.parametrize("kind", KINDS)
def test_fp8_kv_gives_nearly_the_same_logprobs(kind: str) -> None:
    one = make_ask(ALBUM, "tbtt", 2, temperature=0.0, logprobs=5, max_tokens=4)
    exact, close = (
        Schedule(make_executor(tiny_model(kind), ALBUM, kv_dtype=kv_dtype), [one], seed=5)
        for kv_dtype in ("auto", "fp8")
    )
    exact.run()
    close.run()
    first, other = exact.courses[0].logprobs[0], close.courses[0].logprobs[0]
    assert first.token_id == other.token_id
    near = dict(other.top)
    differences = [abs(value - near[token]) for token, value in first.top if token in near]
    assert len(differences) >= 3
    assert 0 < max(differences) < 0.3
