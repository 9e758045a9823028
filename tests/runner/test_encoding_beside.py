"""Who decodes goes on while images of others are encoded, and all tokens stay what they were."""

import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import cache
from types import MappingProxyType

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from glimt.engine.plan import StepPlan
from glimt.engine.scheduler import Scheduler
from glimt.models.glm4v import Glm4v
from glimt.models.vision import Grid, Slices
from tests.support.pipeline import Pipeline
from tests.support.schedules import Schedule
from tests.support.slow_tower import LIMITS
from tests.support.slow_tower import block_behind_each_step as block_behind_each_step
from tests.support.tiny_model import Album, Ask, make_ask, make_executor, tiny_model

pytestmark = pytest.mark.usefixtures("block_behind_each_step")

ALBUM = Album()
LAYOUTS = ("tt", "tbt", "it", "tvt")


@cache
def ask(layout: str, seed: int, max_tokens: int = 8) -> Ask:
    return make_ask(ALBUM, layout, seed, max_tokens=max_tokens)


@cache
def alone(layout: str, seed: int, max_tokens: int = 8) -> list[int]:
    one = [ask(layout, seed, max_tokens)]
    executor = make_executor(tiny_model("glm4v_moe"), ALBUM)
    return Schedule(executor, one, whole=True).run()[0]


def run(
    arrivals: dict[int, list[Ask]],
    depth: int,
    *,
    encodes_beside: bool = True,
    failing: Collection[int] = (),
    aborts: Mapping[int, int] = MappingProxyType({}),
    **changes: int,
) -> tuple[list[list[int]], list[StepPlan]]:
    """Answers in the order of arrival, and all plans. `arrivals` by the number of the turn;
    `failing` are those that may end with an error, `aborts` numbers of requests by turn.
    """
    limits = replace(LIMITS, encodes_beside=encodes_beside, **changes)
    scheduler = Scheduler(limits)
    executor = make_executor(tiny_model("glm4v_moe"), ALBUM)
    answers: list[list[int]] = []
    plans: list[StepPlan] = []
    pipeline = Pipeline(scheduler, executor, depth)
    turn = 0
    while pipeline.is_busy or turn <= max(arrivals):
        for one in arrivals.get(turn, []):
            assert scheduler.add(one.submit(len(answers))) == []
            answers.append([])
        if turn in aborts:
            scheduler.abort(0, aborts[turn])
        turn += 1
        plan, outputs = pipeline.turn()
        if plan is not None:
            plans.append(plan)
        for output in outputs:
            assert output.error is None or output.request_id in failing
            answers[output.request_id] += output.token_ids
        assert scheduler.roster.check() == []
    return answers, plans


@pytest.mark.parametrize("depth", [1, 2])
def test_steps_go_on_between_the_blocks_of_the_tower(depth: int) -> None:
    arrivals = {0: [ask("tt", 1, 20)], 3: [ask("tbt", 2)]}
    answers, plans = run(arrivals, depth)
    assert answers == [alone("tt", 1, 20), alone("tbt", 2)]
    begun = next(place for place, plan in enumerate(plans) if plan.encode)
    prompt = next(place for place, plan in enumerate(plans) if len(plan.work) > 1)
    assert prompt - begun == 3, "two blocks, and what comes after them"
    assert all(plan.num_tokens == 1 for plan in plans[begun:prompt])
    waiting_answers, waiting_plans = run(arrivals, depth, encodes_beside=False)
    assert waiting_answers == answers
    [first] = [plan for plan in waiting_plans if plan.encode]
    assert len(first.work) == 2


@pytest.mark.parametrize("encodes_beside", [True, False])
def test_an_image_that_cannot_be_encoded_ends_its_request_and_no_other(
    monkeypatch: pytest.MonkeyPatch, encodes_beside: bool
) -> None:
    alone("tt", 1, 20)

    def broken(*_: object) -> None:
        raise torch.OutOfMemoryError("no memory is left for the tower")

    monkeypatch.setattr(Glm4v, "encode_in_slices", broken)
    arrivals = {0: [ask("tt", 1, 20)], 3: [ask("tbt", 2), ask("t", 3)]}
    answers, _ = run(arrivals, 2, encodes_beside=encodes_beside, failing=[1])
    assert answers == [alone("tt", 1, 20), [], alone("t", 3)]


choices = st.tuples(st.integers(0, 12), st.sampled_from(LAYOUTS), st.integers(0, 3))


@settings(max_examples=8)
@given(chosen=st.lists(choices, min_size=1, max_size=6), depth=st.integers(1, 2))
def test_whenever_images_come_no_token_changes(
    chosen: list[tuple[int, str, int]], depth: int
) -> None:
    arrivals: dict[int, list[Ask]] = {}
    expected = []
    for turn, layout, seed in sorted(chosen, key=lambda choice: choice[0]):
        arrivals.setdefault(turn, []).append(ask(layout, seed))
        expected.append(alone(layout, seed))
    assert run(arrivals, depth)[0] == expected


@contextmanager
def every_third_pass_fails() -> Iterator[None]:
    """There is no memory for it."""
    numbers, encode = itertools.count(1), Glm4v.encode_in_slices

    def maybe(self: Glm4v, patches: Sequence[torch.Tensor], grids: Sequence[Grid]) -> Slices:
        if next(numbers) % 3 == 0:
            yield
            raise torch.OutOfMemoryError("no memory is left for the tower")
        return (yield from encode(self, patches, grids))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Glm4v, "encode_in_slices", maybe)
        yield


@settings(max_examples=8)
@given(
    chosen=st.lists(choices, min_size=2, max_size=6),
    aborts=st.dictionaries(st.integers(1, 20), st.integers(0, 5), max_size=3),
    depth=st.integers(1, 2),
    fails=st.booleans(),
    num_seqs=st.sampled_from([1, 3, 8]),
    num_pages=st.sampled_from([16, 64]),
    cache_tokens=st.sampled_from([12, 24, 96]),
)
def test_aborts_failures_and_little_room_leave_what_is_answered_as_it_was(
    chosen: list[tuple[int, str, int]],
    aborts: dict[int, int],
    depth: int,
    fails: bool,
    num_seqs: int,
    num_pages: int,
    cache_tokens: int,
) -> None:
    arrivals: dict[int, list[Ask]] = {}
    expected = []
    for turn, layout, seed in sorted(chosen, key=lambda choice: choice[0]):
        arrivals.setdefault(turn, []).append(ask(layout, seed))
        expected.append(alone(layout, seed))
    with every_third_pass_fails() if fails else nullcontext():
        answers, _ = run(
            arrivals,
            depth,
            failing=range(6) if fails else (),
            aborts=aborts,
            max_num_seqs=num_seqs,
            num_pages=num_pages,
            max_model_len=64,
            image_budget=12,
            image_cache_tokens=cache_tokens,
        )
    for number, (answer, whole) in enumerate(zip(answers, expected, strict=True)):
        ends_early = fails or number in aborts.values()
        assert answer == (whole[: len(answer)] if ends_early else whole)
