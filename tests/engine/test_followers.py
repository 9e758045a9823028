"""Followers: what others compute just now is not computed twice, and nobody waits for nothing."""

from __future__ import annotations

import random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from glimt.engine.followers import Followers
from glimt.engine.plan import StepPlan, StepResult
from glimt.engine.request import Request, RequestState
from glimt.engine.simulated import Faults
from glimt.wire import ErrorInfo, Submit
from tests.support.engine_rig import Rig
from tests.support.grammars import tiny_compiler
from tests.support.workload import (
    make_image,
    make_limits,
    make_submit,
    random_limits,
    random_submit,
)

SYSTEM = [*range(2, 22)]  # five pages


def make_rig(encode_steps: int = 0, **limits: Any) -> Rig:
    return Rig(make_limits(**({"follow_tokens": 8} | limits)), encode_steps=encode_steps)


def rows_of(plan: StepPlan | None) -> dict[int, int]:
    return {} if plan is None else {work.row: work.num_tokens for work in plan.work}


def num_computed(rig: Rig) -> int:
    """Tokens, those of answers included."""
    return sum(plan.num_tokens for plan in rig.plans)


def finish(rig: Rig) -> None:
    rig.run()
    rig.assert_answered()


def test_of_equal_prompts_that_come_at_once_one_is_computed() -> None:
    rig = make_rig()
    rig.add(*(make_submit(number, [*SYSTEM, 30], max_tokens=2) for number in range(6)))
    assert rows_of(rig.step()) == {0: 21}
    assert rows_of(rig.step()) == {0: 1}, "planned before the pages are known"
    assert rows_of(rig.step()) == dict.fromkeys(range(1, 6), 1)
    finish(rig)
    assert [rig.end(number).num_cached_tokens for number in range(6)] == [0, *[20] * 5]


def test_it_is_as_before_where_nobody_is_to_follow() -> None:
    rig = make_rig(follow_tokens=0)
    rig.add(*(make_submit(number, [*SYSTEM, 30], max_tokens=2) for number in range(2)))
    assert rows_of(rig.step()) == {0: 21, 1: 21}
    finish(rig)


def test_several_groups_go_ahead_side_by_side() -> None:
    rig = make_rig()
    for group in range(2):
        prompt = [40 + group, *SYSTEM]
        rig.add(*(make_submit(4 * group + number, prompt, max_tokens=1) for number in range(4)))
    assert rows_of(rig.step()) == {0: 21, 1: 21}
    finish(rig)
    assert num_computed(rig) == 2 * (21 + 3 * 1)


def test_who_follows_waits_through_all_chunks_and_others_pass() -> None:
    rig = make_rig(max_num_batched_tokens=12)
    rig.add(make_submit(1, [*SYSTEM, *SYSTEM, 30], max_tokens=1))
    rig.add(make_submit(2, [*SYSTEM, *SYSTEM, 31], max_tokens=1))
    rig.add(make_submit(3, [50, 51], max_tokens=1))
    plans = [rows_of(rig.step()) for _ in range(5)]
    # Of the last 4 of 40 tokens nobody waits to know whether they are there.
    assert plans == [{0: 12}, {0: 12}, {0: 12}, {0: 5, 1: 2}, {2: 5}]
    finish(rig)


def test_where_less_is_shared_than_it_is_worth_nobody_waits() -> None:
    for num_shared, follows in ((7, False), (8, True)):
        rig = make_rig()
        for number in range(2):
            tail = [60 + number] * 10
            rig.add(make_submit(number, [*SYSTEM[:num_shared], *tail], max_tokens=1))
        assert len(rows_of(rig.step())) == 2 - follows
        finish(rig)


def test_what_cannot_be_shared_is_not_waited_for() -> None:
    for other in (
        make_submit(2, [*SYSTEM, 30], max_tokens=1, cache_salt=b"tenant"),
        make_submit(2, [*SYSTEM, 30], max_tokens=1, prompt_logprobs=0),
    ):
        rig = make_rig()
        rig.add(make_submit(1, [*SYSTEM, 30], max_tokens=1), other)
        assert rows_of(rig.step()) == {0: 21, 1: 21}
        finish(rig)
    rig = make_rig(prefix_caching=False)
    rig.add(*(make_submit(number, SYSTEM, max_tokens=1) for number in range(2)))
    assert rows_of(rig.step()) == {0: 20, 1: 20}
    finish(rig)


def test_nobody_follows_a_request_of_lower_priority() -> None:
    rig = make_rig(policy="priority")
    rig.add(make_submit(1, [*SYSTEM, 30], max_tokens=1, priority=1))
    rig.step()
    rig.add(make_submit(2, [*SYSTEM, 30], max_tokens=1, priority=0))
    assert rows_of(rig.step()) == {1: 21}
    finish(rig)


def test_if_the_first_is_aborted_the_next_leads() -> None:
    rig = make_rig(max_num_batched_tokens=12)
    rig.add(*(make_submit(number, [*SYSTEM, 30], max_tokens=1) for number in range(3)))
    rig.step()
    rig.abort(0)
    assert rows_of(rig.step()) == {0: 12}, "the second, in the row that is free again"
    rig.run()
    rig.assert_answered(1, 2)
    assert num_computed(rig) == 12 + 21 + 1


def test_if_the_first_fails_nobody_finds_its_pages_and_the_next_leads() -> None:
    rig = make_rig()
    rig.add(*(make_submit(number, [*SYSTEM, 30], max_tokens=1) for number in range(3)))
    rig.step()
    behind, rig.behind = rig.behind, None
    assert behind is not None
    behind.result()
    failed = {0: ErrorInfo("numerical_error", "NaN")}
    rig._collect(rig.scheduler.commit(behind.plan, StepResult(behind.plan.step, failed=failed)))
    assert rows_of(rig.step()) == {0: 21}
    rig.run()
    assert rig.end(0).finish_reason == "error"
    rig.assert_answered(1, 2)


def test_if_the_first_is_preempted_the_next_goes_on() -> None:
    rig = make_rig(num_pages=12, max_num_batched_tokens=12, max_model_len=48)
    rig.add(make_submit(1, [50, 51], max_tokens=40))
    rig.step()
    rig.add(*(make_submit(number, [*SYSTEM, *range(70, 84)], max_tokens=2) for number in (2, 3)))
    rig.step()
    leader = rig.scheduler.roster.running.requests[-1]
    assert leader.key == (0, 2)
    rig.settle()
    rig.scheduler.roster.preempt(leader)
    finish(rig)


def test_a_row_and_pages_are_kept_for_who_follows() -> None:
    rig = make_rig(max_num_seqs=2, max_num_batched_tokens=64)
    rig.add(*(make_submit(number, [*SYSTEM, 30], max_tokens=9) for number in range(2)))
    rig.add(make_submit(2, [50, 51], max_tokens=9))
    assert rows_of(rig.step()) == {0: 21}, "the other row is not the third's"
    rig.step()
    assert rows_of(rig.step()) == {0: 1, 1: 1}
    finish(rig)
    rig = make_rig(num_pages=14, max_model_len=56)
    rig.add(*(make_submit(number, [*SYSTEM, 30], max_tokens=9) for number in range(2)))
    rig.add(make_submit(2, [50, 51], max_tokens=9))
    assert rows_of(rig.step()) == {0: 21}, "two of the six pages are too many"
    finish(rig)


def two_with_images(first: str, second: str) -> Rig:
    """Somebody decodes; then two with a system prompt and an image each that takes a while."""
    rig = make_rig(encode_steps=3)
    rig.add(make_submit(0, [60, 61], max_tokens=30))
    rig.step()
    for number, name in ((1, first), (2, second)):
        image = make_image(20, 8, name, number)
        rig.add(make_submit(number, [*SYSTEM, *[1] * 8, 30], images=[image], max_tokens=1))
    return rig


def test_who_needs_the_same_image_follows_also_while_it_is_encoded() -> None:
    rig = two_with_images("cat", "cat")
    while len(rows_of(plan := rig.step())) == 1:
        assert len(rig.scheduler.roster.running) == 2
    assert rows_of(plan) == {0: 1, 1: 29}
    finish(rig)
    assert sum(len(plan.encode) for plan in rig.plans) == 1


def test_who_has_an_image_of_its_own_does_not_wait_to_have_it_encoded() -> None:
    rig = two_with_images("cat", "dog")
    plan = rig.step()
    assert plan is not None
    assert len(plan.encode) == 2
    finish(rig)


def test_nor_behind_a_text_that_is_being_computed() -> None:
    rig = make_rig(encode_steps=3)
    rig.add(make_submit(1, [*SYSTEM, 30], max_tokens=9))
    image = make_image(20, 8, "cat", 2)
    rig.add(make_submit(2, [*SYSTEM, *[1] * 8, 30], images=[image], max_tokens=1))
    plan = rig.step()
    assert rows_of(plan) == {0: 21}
    assert plan is not None
    assert len(plan.encode) == 1
    finish(rig)


def test_nobody_waits_for_pages_that_a_third_has_made() -> None:
    rig = make_rig(encode_steps=9)
    rig.add(make_submit(0, [60, 61], max_tokens=30))
    rig.step()
    for number in (1, 2):
        image = make_image(20, 8, "cat", number)
        rig.add(make_submit(number, [*SYSTEM, *[1] * 8, 30], images=[image], max_tokens=1))
    rig.step()
    second = rig.scheduler.roster.find((0, 2))
    assert second is not None
    assert second.leader is rig.scheduler.roster.find((0, 1))
    rig.add(make_submit(3, [*SYSTEM, 31], max_tokens=1))  # it waits for no image
    assert rows_of(rig.step()) == {0: 1, 2: 21}
    rig.step()
    rig.step()
    assert second.state is RequestState.RUNNING
    assert second.num_cached_tokens == 20
    finish(rig)


def test_nobody_waits_for_another_whose_image_is_on_its_way() -> None:
    rig = make_rig(encode_steps=3)
    rig.add(make_submit(0, [60, 61], max_tokens=30))
    rig.step()
    image = make_image(20, 8, "cat", 1)
    rig.add(make_submit(1, [*SYSTEM, *[1] * 8, 30], images=[image], max_tokens=1))
    rig.step()
    rig.add(make_submit(2, [*SYSTEM, 30], max_tokens=1))
    assert rows_of(rig.step()) == {0: 1, 2: 21}
    finish(rig)


# ------------------------------------------------------------------------- whatever comes


def tokens_of(request: Request) -> list[int]:
    return [*request.prompt.token_ids.tolist(), *request.output_ids]


def images_of(request: Request, end: int) -> list[tuple[bytes, int]]:
    return [(span.content_hash, span.start) for span in request.images if span.start < end]


def check_followers(rig: Rig) -> int:
    """Ask of each that waits whether it follows, and judge that by tokens; gives how many do."""
    scheduler, limits = rig.scheduler, rig.limits
    followers = Followers(limits, scheduler.roster)
    for request in scheduler.roster.waiting.requests:
        if request.num_in_flight or followers.hits(request) is not None:
            continue
        leader = request.leader
        assert leader is not None
        assert leader.state is RequestState.RUNNING
        assert leader.rank < request.rank
        assert leader.submit.cache_salt == request.submit.cache_salt
        num_known = len(scheduler.roster.hits(request)) * limits.page_size
        end = num_known + limits.follow_tokens
        assert tokens_of(leader)[:end] == tokens_of(request)[:end]
        assert len(tokens_of(request)) > end
        assert images_of(leader, end) == images_of(request, end)
        if not leader.num_in_flight:  # an image keeps it from computing, the follower as well
            find = scheduler.roster.images.find
            missing = {
                span.content_hash
                for span in leader.images
                if (image := find(span.content_hash)) is None or not image.is_ready
            }
            assert missing
            assert missing <= {span.content_hash for span in request.images}
    assert followers.num_rows <= len(scheduler.roster.waiting)
    return followers.num_rows


class WatchedRig(Rig):
    """Judges who follows between planning a step and committing the one before."""

    num_follow = 0
    num_idle = 0

    def settle(self) -> None:
        self.num_follow += check_followers(self)
        super().settle()

    def step(self) -> StepPlan | None:
        plan = super().step()
        self.num_idle = 0 if plan is not None or self.behind is not None else self.num_idle + 1
        assert self.num_idle < 2 or not self.scheduler.roster.waiting, "nobody computes anything"
        return plan


def play(rng: random.Random, rig: Rig, submits: list[Submit], abort_probability: float) -> None:
    """Bursts and steps at random, then everything runs out."""
    while submits:
        for _ in range(rng.choice([0, 1, 3, 6])):
            if submits:
                rig.add(submits.pop())
        for _ in range(rng.choice([0, 1, 3])):
            rig.step()
            if rig.submits and rng.random() < abort_probability:
                rig.abort(rng.choice([*rig.submits]))
    rig.run()


def copies(rng: random.Random, rig: Rig, count: int) -> list[Submit]:
    """Several of each, so that many follow."""
    submits: list[Submit] = []
    while len(submits) < count:
        seed = rng.random()
        for _ in range(rng.choice([1, 3, 5])):
            submits.append(random_submit(random.Random(seed), len(submits), rig.limits))
    return submits


@given(seed=st.integers(0, 2**32))
@settings(max_examples=50)
def test_who_follows_waits_for_what_is_being_computed_and_answers_are_the_same(seed: int) -> None:
    rng = random.Random(seed)
    rig = WatchedRig(random_limits(rng), encode_steps=rng.choice([0, 1, 5]))
    play(rng, rig, copies(rng, rig, 10), 0.0)
    rig.assert_answered()


@given(seed=st.integers(0, 2**32))
@settings(max_examples=50)
def test_whoever_leads_may_end_at_any_moment(seed: int) -> None:
    rng = random.Random(seed)
    faults = Faults(
        seed=seed,
        raise_in_launch=rng.choice([0.0, 0.05]),
        raise_in_result=rng.choice([0.0, 0.05]),
        nan=rng.choice([0.0, 0.05]),
        bad_image=rng.choice([0.0, 0.2]),
    )
    rig = WatchedRig(random_limits(rng), faults=faults, encode_steps=rng.choice([0, 1, 5]))
    play(rng, rig, copies(rng, rig, 10), 0.3)
    rig.assert_consistent()


def test_such_loads_do_have_followers() -> None:
    found = 0
    for seed in range(20):
        rng = random.Random(seed)
        rig = WatchedRig(make_limits(follow_tokens=8, max_num_batched_tokens=24), encode_steps=1)
        play(rng, rig, copies(rng, rig, 10), 0.1)
        found += rig.num_follow > 0
    assert found >= 10


@given(seed=st.integers(0, 2**32))
@settings(max_examples=15)
def test_where_nothing_is_shared_the_plans_are_the_same(seed: int) -> None:
    def plans(follow_tokens: int) -> list[object]:
        rng = random.Random(seed)
        rig = Rig(make_limits(follow_tokens=follow_tokens, num_pages=40), compiler=tiny_compiler())
        for number in range(12):
            prompt = [100 + number, *(rng.randrange(2, 5) for _ in range(rng.randrange(40)))]
            rig.add(make_submit(number, prompt, max_tokens=rng.randrange(1, 30)))
            for _ in range(rng.choice([0, 0, 1, 4])):
                rig.step()
        rig.run()
        return [(plan.work, plan.freed_rows) for plan in rig.plans]

    assert plans(8) == plans(0)


@given(seed=st.integers(0, 2**32))
@settings(max_examples=15)
def test_no_more_is_computed_than_without(seed: int) -> None:
    def tokens(follow_tokens: int) -> int:
        rng = random.Random(seed)
        limits = make_limits(follow_tokens=follow_tokens, num_pages=400, max_num_seqs=32)
        rig = Rig(limits, encode_steps=rng.choice([0, 2]))
        for submit in copies(rng, rig, 12):
            rig.add(submit)
            if rng.random() < 0.3:
                rig.step()
        rig.run()
        return num_computed(rig)

    assert tokens(8) <= tokens(0)
