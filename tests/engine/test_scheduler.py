"""Scheduler: what it promises, one sentence at a time."""

from __future__ import annotations

import numpy as np
import pytest

from glimt.engine.admission import read_prompt
from glimt.engine.plan import StepPlan, StepResult
from glimt.engine.request import Request, RequestState
from glimt.engine.scheduler import Scheduler
from glimt.errors import BadSettings
from glimt.grammar.source import choice_grammar, json_schema_grammar
from glimt.wire import ErrorInfo, Grammar, ImageSpan, Output, Submit, ThoughtTokens
from tests.support.engine_rig import Rig
from tests.support.grammars import SlowPool, tiny_compiler
from tests.support.workload import EOS, make_image, make_limits, make_submit


def prompt(num_tokens: int, first: int = 2) -> list[int]:
    return list(range(first, first + num_tokens))


def answer_to(scheduler: Scheduler, submit: Submit) -> Output:
    [(server, output)] = scheduler.add(submit)
    assert server == submit.server
    return output


# ------------------------------------------------------------------------------- steps


def test_a_prompt_is_computed_in_chunks_within_the_token_budget() -> None:
    rig = Rig(make_limits(max_num_batched_tokens=8))
    rig.add(make_submit(1, prompt(20), max_tokens=1))
    rig.run()
    assert [plan.num_tokens for plan in rig.plans] == [8, 8, 4]
    assert [work.samples for plan in rig.plans for work in plan.work] == [False, False, True]
    rig.assert_answered()


def test_decoding_requests_get_their_token_beside_a_long_prompt() -> None:
    rig = Rig(make_limits(max_num_batched_tokens=8))
    rig.add(make_submit(1, prompt(4), max_tokens=20))
    rig.step()
    rig.add(make_submit(2, prompt(30, first=100), max_tokens=2))
    plan = rig.step()
    assert plan is not None
    assert [work.num_tokens for work in plan.work] == [1, 7]
    rig.run()
    rig.assert_answered()


def test_a_resumed_prompt_ahead_of_others_leaves_them_a_token_each() -> None:
    rig = Rig(make_limits(max_num_batched_tokens=4, max_num_seqs=3, policy="priority"))
    for request_id in (1, 2):
        rig.add(make_submit(request_id, prompt(2), max_tokens=30, priority=1))
        rig.step()
    rig.add(make_submit(3, prompt(20, first=50), max_tokens=2, priority=0))
    rig.step()
    plan = rig.step()
    assert plan is not None
    assert [work.num_tokens for work in plan.work] == [2, 1, 1]
    rig.run()
    rig.assert_answered()


def test_the_next_step_is_planned_before_the_last_token_is_known() -> None:
    rig = Rig(make_limits())
    rig.add(make_submit(1, prompt(3), max_tokens=3))
    first, second = rig.step(), rig.step()
    assert first is not None
    assert second is not None
    assert second.work[0].start == 3
    assert len(rig.tokens(1)) == 1  # only now, with the second step in flight
    rig.run()
    rig.assert_answered()


def test_the_token_of_a_step_too_far_is_dropped() -> None:
    rig = Rig(make_limits())
    rig.add(make_submit(1, prompt(3), max_tokens=50, seed=0))
    tokens, _ = rig.expected(1)
    rig = Rig(make_limits())
    rig.add(make_submit(1, prompt(3), max_tokens=50, seed=0, stop_token_ids=(tokens[4],)))
    rig.run()
    end = rig.end(1)
    assert (rig.tokens(1), end.finish_reason, end.stop_token_id) == (tokens[:5], "stop", tokens[4])
    assert sum(work.samples for plan in rig.plans for work in plan.work) == 6


def test_no_step_is_planned_beyond_max_tokens() -> None:
    rig = Rig(make_limits())
    rig.add(make_submit(1, prompt(3), max_tokens=5))
    rig.run()
    assert len(rig.plans) == 5
    assert rig.end(1).finish_reason == "length"


def test_a_request_ends_at_the_end_of_the_context() -> None:
    rig = Rig(make_limits(max_model_len=10))
    rig.add(make_submit(1, prompt(7), max_tokens=1000))
    rig.run()
    assert len(rig.tokens(1)) == 3
    assert rig.end(1).finish_reason == "length"


def test_a_stop_token_among_the_first_min_tokens_does_not_stop() -> None:
    rig = Rig(make_limits())
    rig.add(make_submit(1, prompt(3), max_tokens=9, min_tokens=2, eos_token_ids=(EOS,)))
    for expected_length in (1, 2, 3):
        plan = rig.scheduler.schedule()
        assert plan is not None
        outputs = rig.scheduler.commit(plan, StepResult(plan.step, {plan.work[0].row: EOS}))
        [(_, output)] = outputs
        assert output.finish_reason == ("stop" if expected_length == 3 else None)


def test_freed_rows_are_told_once_and_used_again() -> None:
    rig = Rig(make_limits(max_num_seqs=1))
    rig.add(make_submit(1, prompt(3), max_tokens=1), make_submit(2, prompt(3), max_tokens=1))
    rig.run()
    assert [plan.freed_rows for plan in rig.plans] == [(), (0,)]
    rig.assert_answered()


def test_logprobs_travel_with_their_token() -> None:
    rig = Rig(make_limits())
    rig.add(make_submit(1, prompt(3), max_tokens=2, logprobs=0))
    rig.run()
    for output in rig.outputs[1]:
        assert output.logprobs is not None
        assert [entry.token_id for entry in output.logprobs] == list(output.token_ids)


# ------------------------------------------------------------------------------- order


def order_of_admission(rig: Rig) -> list[int]:
    first: list[int] = []
    for _ in range(200):
        rig.step()
        for request in rig.scheduler.roster.running.requests:
            if request.submit.request_id not in first:
                first.append(request.submit.request_id)
    return first


def test_first_come_first_served_ignores_priorities() -> None:
    rig = Rig(make_limits(max_num_seqs=1))
    rig.add(*(make_submit(n, prompt(3), max_tokens=2, priority=-n) for n in range(4)))
    assert order_of_admission(rig) == [0, 1, 2, 3]


def test_under_priority_the_lowest_number_goes_first_then_arrival() -> None:
    rig = Rig(make_limits(max_num_seqs=1, policy="priority"))
    for request_id, priority in enumerate([5, 1, 5, 0, 1]):
        rig.add(make_submit(request_id, prompt(3), max_tokens=2, priority=priority))
    assert order_of_admission(rig) == [3, 1, 4, 0, 2]


def test_a_small_request_does_not_overtake_one_that_waits_for_pages() -> None:
    rig = Rig(make_limits(num_pages=8, max_model_len=32, prefix_caching=False))
    rig.add(make_submit(1, prompt(17), max_tokens=3))
    rig.step()
    rig.add(make_submit(2, prompt(16, 40), max_tokens=2), make_submit(3, prompt(1), max_tokens=2))
    rig.step()
    assert rig.scheduler.stats().num_waiting == 2
    rig.run()
    rig.assert_answered()
    assert rig.end(2).scheduled_s > 0


# --------------------------------------------------------------------------- preemption


def test_a_preempted_request_continues_with_the_same_tokens() -> None:
    rig = Rig(make_limits(num_pages=8, max_model_len=32, max_num_seqs=4))
    rig.add(*(make_submit(n, prompt(4, first=10 * n + 2), max_tokens=20) for n in range(4)))
    rig.run()
    assert rig.scheduler.stats().preemptions > 0
    rig.assert_answered()


def test_the_worst_request_is_preempted_and_the_best_never_waits() -> None:
    rig = Rig(make_limits(num_pages=8, max_model_len=32, policy="priority"))
    for request_id, priority in ((1, 2), (2, 0), (3, 1)):
        rig.add(
            make_submit(request_id, prompt(4, 9 * request_id), max_tokens=24, priority=priority)
        )
    rig.run()
    rig.assert_answered()
    assert rig.scheduler.stats().preemptions > 0
    rows = [[new.sampling.seed for new in plan.new_rows] for plan in rig.plans]
    assert sum(2 in admitted for admitted in rows) == 1


def test_64_long_requests_in_a_tiny_pool_all_finish_with_at_most_3_preemptions_each() -> None:
    limits = make_limits(num_pages=16, max_model_len=64, max_num_seqs=16)
    rig = Rig(limits)
    rig.add(*(make_submit(n, prompt(3, first=2 + n), max_tokens=40) for n in range(64)))
    rig.run()  # the rig checks the number of preemptions after every step
    assert rig.scheduler.stats().preemptions > 20
    rig.assert_answered()


def wear_out(rig: Rig, request_id: int) -> None:
    """Preempt a request three times, as if pages had run out."""
    request = rig.scheduler.roster.find((0, request_id))
    assert request is not None
    for _ in range(3):
        while request.state is not RequestState.RUNNING:
            rig.step()
        rig.settle()
        rig.scheduler.roster.preempt(request)
    assert request.is_protected


def test_a_request_preempted_three_times_goes_first_and_is_left_alone() -> None:
    rig = Rig(make_limits(num_pages=8, max_model_len=32, policy="priority"))
    rig.add(make_submit(0, prompt(12), max_tokens=18, priority=9))
    wear_out(rig, 0)
    for request_id in range(1, 9):
        rig.add(make_submit(request_id, prompt(3, 10 * request_id), max_tokens=24))
    num_steps = len(rig.plans)
    rig.run()  # the rig checks that nobody is preempted a fourth time
    rig.assert_answered()
    assert rig.scheduler.stats().preemptions > 0
    seats = [plan for plan in rig.plans if any(new.sampling.seed == 0 for new in plan.new_rows)]
    assert len(seats) == 4
    assert seats[-1] is rig.plans[num_steps]


def test_protected_requests_run_together_only_if_all_of_them_can_reach_their_ends() -> None:
    rig = Rig(make_limits(num_pages=8, max_model_len=32))
    for request_id in range(3):
        rig.add(make_submit(request_id, prompt(3, 10 * request_id + 2), max_tokens=28))
        wear_out(rig, request_id)
    rig.settle()
    for request in list(rig.scheduler.roster.running.requests):
        rig.scheduler.roster.preempt(request, counts=False)
    rig.step()
    assert len(rig.scheduler.roster.running) == 1
    rig.run()
    rig.assert_answered()


def test_a_preempted_request_waits_for_its_token_in_flight() -> None:
    rig = Rig(make_limits())
    rig.add(make_submit(1, prompt(3)))
    first = rig.scheduler.schedule()
    request = rig.scheduler.roster.find((0, 1))
    assert first is not None
    assert request is not None
    rig.scheduler.roster.preempt(request)
    assert rig.scheduler.schedule() is None
    rig.scheduler.commit(first, StepResult(first.step, {first.work[0].row: 77}))
    again = rig.scheduler.schedule()
    assert again is not None
    assert again.new_rows[0].token_ids.tolist() == [*prompt(3), 77]


# ------------------------------------------------------------------------- prefix cache


def test_a_second_request_finds_the_full_pages_of_the_first() -> None:
    rig = Rig(make_limits())
    rig.add(make_submit(1, prompt(14), max_tokens=2))
    rig.run()
    rig.add(make_submit(2, [*prompt(13), 99], max_tokens=2, seed=1))
    rig.run()
    assert rig.end(2).num_cached_tokens == 12
    assert rig.plans[-2].work[0].start == 12
    assert len(rig.plans[-2].new_rows[0].page_ids) == 3
    rig.assert_answered()


def test_of_a_prompt_that_is_cached_whole_the_last_page_is_computed_again() -> None:
    rig = Rig(make_limits())
    for request_id in (1, 2):
        rig.add(make_submit(request_id, prompt(12), max_tokens=2))
        rig.run()
    assert rig.end(2).num_cached_tokens == 8
    rig.assert_answered()


def test_an_answer_is_cached_for_the_next_turn() -> None:
    rig = Rig(make_limits())
    rig.add(make_submit(1, prompt(6), max_tokens=11))
    rig.run()
    rig.add(make_submit(2, [*prompt(6), *rig.tokens(1), 5], max_tokens=2))
    rig.run()
    assert rig.end(2).num_cached_tokens == 16
    rig.assert_answered()


def test_an_answer_about_an_image_is_cached_for_the_next_turn() -> None:
    rig = Rig(make_limits())
    tokens = [2, *[1] * 8, 3]
    rig.add(make_submit(1, tokens, images=[make_image(1, 8, "cat", 1)], max_tokens=11))
    rig.run()
    tokens = [*tokens, *rig.tokens(1), 5]
    rig.add(make_submit(2, tokens, images=[make_image(1, 8, "cat", 2)], max_tokens=2))
    rig.run()
    assert rig.end(2).num_cached_tokens == 20
    rig.assert_answered()


def test_tenants_with_different_salts_share_nothing() -> None:
    rig = Rig(make_limits())
    for request_id, salt in enumerate([b"a", b"b", b"a"]):
        rig.add(make_submit(request_id, prompt(14), max_tokens=1, cache_salt=salt))
        rig.run()
    assert [rig.end(n).num_cached_tokens for n in range(3)] == [0, 0, 12]


def test_after_a_reset_nothing_is_found() -> None:
    rig = Rig(make_limits())
    rig.add(make_submit(1, prompt(14), max_tokens=1))
    rig.run()
    rig.scheduler.reset_caches(prefix=True, images=True)
    rig.add(make_submit(2, prompt(14), max_tokens=1))
    rig.run()
    assert rig.end(2).num_cached_tokens == 0


def test_equal_tokens_with_different_images_share_only_what_precedes_them() -> None:
    rig = Rig(make_limits())
    for request_id, name in enumerate(["cat", "dog", "cat"]):
        image = make_image(4, 8, name, request_id)
        rig.add(make_submit(request_id, [*prompt(4), *[1] * 8, 2, 3], images=[image]))
        rig.run()
    assert [rig.end(n).num_cached_tokens for n in range(3)] == [0, 4, 12]
    rig.assert_answered()


# ------------------------------------------------------------------------------ images


def test_an_image_may_straddle_chunks_and_is_encoded_once() -> None:
    rig = Rig(make_limits(max_num_batched_tokens=8))
    rig.add(make_submit(1, [2, 3, 4, *[1] * 20, 5], images=[make_image(3, 20, "cat", 1)]))
    rig.run()
    assert [len(plan.encode) for plan in rig.plans[:3]] == [1, 0, 0]
    assert len(rig.plans[0].work) == 1
    rig.assert_answered()


def test_an_image_cached_half_in_pages_is_encoded_again_for_the_other_half() -> None:
    rig = Rig(make_limits(image_cache_tokens=8))
    cat = [2, 2, *[1] * 8, 3]
    rig.add(make_submit(1, cat, images=[make_image(2, 8, "cat", 1)]))
    rig.run()
    rig.add(make_submit(2, [1] * 8, images=[make_image(0, 8, "dog", 2)]))
    rig.run()
    other = [2, 2, *[1] * 8, 4]
    rig.add(make_submit(3, other, images=[make_image(2, 8, "cat", 3)]))
    plan = rig.step()
    assert plan is not None
    assert plan.work[0].start == 8
    assert [span.pixels.offset for span in plan.encode] == [3]
    assert plan.drop_images == (make_image(0, 8, "dog").content_hash,)
    rig.run()
    rig.assert_answered()


def test_two_requests_with_one_image_encode_it_once() -> None:
    rig = Rig(make_limits())
    for request_id in (1, 2):
        image = make_image(1, 8, "cat", request_id)
        rig.add(make_submit(request_id, [request_id + 5, *[1] * 8, 2], images=[image]))
    rig.run()
    assert sum(len(plan.encode) for plan in rig.plans) == 1
    stats = rig.scheduler.stats()
    assert (stats.image_queries, stats.image_hits) == (2, 1)
    rig.assert_answered()


def test_images_beyond_the_budget_of_a_step_wait_for_the_next() -> None:
    rig = Rig(make_limits(image_budget=12, max_num_batched_tokens=100))
    images = [make_image(10 * n, 9, f"image {n}", 1) for n in range(3)]
    rig.add(make_submit(1, [1] * 30, images=images))
    rig.run()
    assert [len(plan.encode) for plan in rig.plans[:3]] == [1, 1, 1]
    assert [plan.num_tokens for plan in rig.plans[:3]] == [10, 10, 10]
    rig.assert_answered()


def test_small_images_do_not_keep_a_large_one_waiting() -> None:
    rig = Rig(make_limits(image_budget=32, image_cache_tokens=16, max_num_batched_tokens=10))
    first = make_image(10, 4, "first", 1)
    large = make_image(3, 16, "large", 2)
    small = [make_image(3 * n, 3, f"small {n}", 3) for n in range(20)]
    rig.add(
        make_submit(1, [*prompt(10), 1, 1, 1, 1, 2], images=[first], max_tokens=20),
        make_submit(2, [2, 3, 4, *[1] * 16], images=[large], max_tokens=1),
        make_submit(3, [1] * 61, images=small, max_tokens=1),
    )
    for _ in range(7):  # "first" leaves no room for "large" in the second step
        rig.step()
    rig.settle()
    assert rig.end(2).finish_reason == "length"
    rig.run()
    rig.assert_answered()


def rows_of(plan: StepPlan | None) -> dict[int, int]:
    assert plan is not None
    return {work.row: work.num_tokens for work in plan.work}


def decoding_beside_an_image(**limits: object) -> Rig:
    """Request 1 decodes; 2 comes, whose image takes three steps, and then 3 without one."""
    rig = Rig(make_limits(max_num_batched_tokens=64, **limits), encode_steps=3)
    rig.add(make_submit(1, [2, 3], max_tokens=30))
    rig.step()
    image = make_image(2, 8, "cat", 2)
    rig.add(make_submit(2, [2, 3, *[1] * 8, 4], images=[image], max_tokens=4))
    rig.add(make_submit(3, [4, 5, 6], max_tokens=20))
    return rig


def test_who_decodes_does_not_wait_for_an_image_and_neither_does_who_came_after_it() -> None:
    rig = decoding_beside_an_image()
    plan = rig.step()
    assert [span.num_tokens for span in plan.encode] == [8]
    assert rows_of(plan) == {0: 1, 2: 3}
    for _ in range(4):  # three, and the one that is planned before the result is read
        assert rows_of(rig.step()) == {0: 1, 2: 1}
    assert rows_of(rig.step()) == {0: 1, 1: 11, 2: 1}, "the prompt in one piece"
    rig.run()
    rig.assert_answered()


def test_steps_wait_for_images_where_they_are_told_to() -> None:
    rig = decoding_beside_an_image(encodes_beside=False)
    assert rows_of(rig.step()) == {0: 1, 1: 11, 2: 3}
    rig.run()
    rig.assert_answered()


def test_an_image_that_nobody_would_wait_for_is_waited_for() -> None:
    rig = Rig(make_limits(), encode_steps=3)
    for request_id in (1, 2):
        image = make_image(1, 8, f"image {request_id}", request_id)
        rig.add(make_submit(request_id, [2, *[1] * 8, 3], images=[image]))
    plan = rig.step()
    assert rows_of(plan) == {0: 10, 1: 10}
    assert len(plan.encode) == 2
    rig.run()
    rig.assert_answered()


def test_a_request_aborted_while_its_image_is_encoded_leaves_nothing() -> None:
    rig = decoding_beside_an_image(image_cache_tokens=8, image_budget=8)
    rig.step()
    assert rig.scheduler.roster.images.num_tokens == 8
    rig.abort(2)
    other = make_image(0, 8, "dog", 4)
    rig.add(make_submit(4, [*[1] * 8, 4], images=[other], max_tokens=4))
    plan = rig.step()
    assert plan.freed_rows == (1,)
    assert plan.drop_images == (make_image(2, 8, "cat").content_hash,)
    assert [span.content_hash for span in plan.encode] == [other.content_hash]
    rig.run()
    rig.assert_answered(1, 3, 4)
    assert rig.end(2).finish_reason == "abort"


def test_a_request_that_waits_for_its_image_can_be_preempted() -> None:
    rig = Rig(make_limits(num_pages=8, max_model_len=32), encode_steps=50)
    rig.add(make_submit(1, [2, 3], max_tokens=26))
    rig.step()
    image = make_image(2, 8, "cat", 2)
    rig.add(make_submit(2, [2, 3, *[1] * 8, 4], images=[image], max_tokens=4))
    rig.run()
    assert rig.scheduler.stats().preemptions == 1
    rig.assert_answered()


def test_an_embedding_stays_while_its_image_is_half_computed() -> None:
    rig = Rig(make_limits(image_cache_tokens=16, max_num_batched_tokens=8, max_num_seqs=2))
    rig.add(make_submit(1, [2, 3], max_tokens=30))
    rig.step()
    rig.add(make_submit(2, [1] * 13, images=[make_image(0, 12, "cat", 2)]))
    rig.step()
    rig.scheduler.reset_caches(prefix=False, images=True)
    rig.run()
    assert sum(len(plan.encode) for plan in rig.plans) == 1
    rig.assert_answered()


def test_an_embedding_forgotten_in_the_middle_of_its_image_is_made_again() -> None:
    limits = make_limits(
        max_num_batched_tokens=8, max_num_seqs=2, prefix_caching=False, encodes_beside=False
    )
    rig = Rig(limits)
    rig.add(make_submit(1, [1] * 6, images=[make_image(0, 5, "cat", 1)], max_tokens=9))
    rig.add(make_submit(2, [1] * 21, images=[make_image(5, 5, "cat", 2)], max_tokens=3))
    rig.step()
    request = rig.scheduler.roster.find((0, 2))
    assert request is not None
    assert request.num_computed_tokens == 2
    rig.step()
    assert request.num_computed_tokens == 9
    behind = rig.behind
    assert behind is not None
    result = behind.result()
    failed = {behind.plan.work[0].row: ErrorInfo("numerical_error", "NaN")}
    rig.scheduler.commit(behind.plan, StepResult(result.step, failed=failed))
    rig.behind = None
    plan = rig.step()
    assert plan is not None
    assert [span.pixels.offset for span in plan.encode] == [2]
    rig.run()
    rig.assert_answered(2)


# -------------------------------------------------------------------------------- ends


def test_aborts_of_waiting_running_finished_and_unknown_requests() -> None:
    rig = Rig(make_limits(max_num_seqs=1))
    rig.add(make_submit(1, prompt(3), max_tokens=50), make_submit(2, prompt(3), max_tokens=50))
    rig.step()
    rig.step()
    rig.abort(2)
    assert rig.end(2).finish_reason == "abort"
    rig.abort(1)
    rig.abort(1)
    assert rig.end(1).finish_reason == "abort"
    assert rig.scheduler.abort(0, 77) == []
    rig.run()
    assert len(rig.outputs[1]) == 2


def test_the_end_of_an_aborted_request_waits_while_its_pixels_are_read() -> None:
    rig = Rig(make_limits())
    rig.add(make_submit(1, [1] * 9, images=[make_image(0, 8, "cat", 1)]))
    rig.step()
    rig.abort(1)
    assert rig.outputs[1] == []
    assert rig.scheduler.has_requests
    rig.settle()
    assert rig.end(1).finish_reason == "abort"
    assert not rig.scheduler.has_requests


def test_a_failed_row_ends_its_request_and_no_other() -> None:
    rig = Rig(make_limits())
    rig.add(make_submit(1, prompt(9)), make_submit(2, prompt(9, 50)))
    plan = rig.scheduler.schedule()
    assert plan is not None
    error = ErrorInfo("numerical_error", "NaN")
    result = StepResult(plan.step, {plan.work[1].row: 7}, failed={plan.work[0].row: error})
    outputs = {output.request_id: output for _, output in rig.scheduler.commit(plan, result)}
    assert (outputs[1].finish_reason, outputs[1].error) == ("error", error)
    assert (outputs[2].finish_reason, outputs[2].token_ids) == (None, (7,))


def test_the_kv_of_a_failed_row_is_never_found_again() -> None:
    rig = Rig(make_limits(max_num_batched_tokens=8))
    rig.add(make_submit(1, prompt(20)))
    rig.step()
    rig.step()  # the first chunk is committed: two pages can be found
    assert len(rig.scheduler.roster.pool.match(chain_of(rig, 1))) == 2
    behind = rig.behind
    assert behind is not None
    failed = {behind.plan.work[0].row: ErrorInfo("numerical_error", "NaN")}
    rig.scheduler.commit(behind.plan, StepResult(behind.plan.step, failed=failed))
    assert rig.scheduler.roster.pool.match(chain_of(rig, 1)) == []
    rig.check()


def chain_of(rig: Rig, request_id: int) -> list[bytes]:
    submit = rig.submits[request_id]
    limits = rig.limits
    request = Request(submit, read_prompt(submit, limits), limits, 0)
    return [request.page_hash(place, limits.page_size) for place in range(4)]


def test_a_row_without_its_token_is_a_failed_row() -> None:
    rig = Rig(make_limits())
    rig.add(make_submit(1, prompt(3)))
    plan = rig.scheduler.schedule()
    assert plan is not None
    [(_, output)] = rig.scheduler.commit(plan, StepResult(plan.step))
    assert output.error is not None
    assert output.error.code == "step_failed"


def test_a_step_that_raised_ends_its_requests_and_nobody_else() -> None:
    rig = Rig(make_limits(max_num_batched_tokens=8))
    rig.add(make_submit(1, prompt(8)), make_submit(2, prompt(8, 50)))
    plan = rig.scheduler.schedule()
    assert plan is not None
    error = ErrorInfo("step_failed", "out of memory")
    [(_, output)] = rig.scheduler.fail(plan, error)
    assert (output.request_id, output.error) == (1, error)
    rig.check()
    assert rig.scheduler.roster.pool.num_used == 0
    after = rig.scheduler.schedule()
    assert after is not None
    assert after.freed_rows == (plan.work[0].row,)
    assert len(after.work) == 1


def test_an_image_of_a_failed_step_is_encoded_again_for_those_who_relied_on_it() -> None:
    rig = Rig(make_limits(max_num_batched_tokens=9, encodes_beside=False))
    for request_id in (1, 2):
        image = make_image(0, 8, "cat", request_id)
        rig.add(make_submit(request_id, [*[1] * 8, 2], images=[image], max_tokens=2))
    first = rig.scheduler.schedule()
    second = rig.scheduler.schedule()
    assert first is not None
    assert second is not None
    assert [len(plan.encode) for plan in (first, second)] == [1, 0]
    rig.scheduler.fail(first, ErrorInfo("step_failed", ""))
    rows = {work.row: 9 for work in second.work}
    assert rig.scheduler.commit(second, StepResult(second.step, rows)) == []
    third = rig.scheduler.schedule()
    assert third is not None
    assert [span.pixels.offset for span in third.encode] == [2]
    assert len(third.new_rows) == 1
    rig.check()


def test_steps_are_committed_in_order() -> None:
    rig = Rig(make_limits())
    rig.add(make_submit(1, prompt(3)))
    rig.scheduler.schedule()
    second = rig.scheduler.schedule()
    assert second is not None
    with pytest.raises(RuntimeError, match="oldest"):
        rig.scheduler.commit(second, StepResult(second.step))


def test_end_all_answers_everyone_once() -> None:
    rig = Rig(make_limits(max_num_seqs=1))
    rig.add(make_submit(1, [1] * 9, images=[make_image(0, 8, "cat", 1)]), make_submit(2, [2]))
    rig.step()
    rig.abort(1)
    ends = rig.scheduler.end_all(ErrorInfo("not_ready", "stopping"))
    assert [(output.request_id, output.finish_reason) for _, output in ends] == [
        (1, "abort"),
        (2, "error"),
    ]
    assert not rig.scheduler.has_requests
    assert rig.scheduler.end_all(ErrorInfo("not_ready", "stopping")) == []


# --------------------------------------------------------------------------- admission


def test_a_prompt_that_leaves_no_room_for_an_answer_is_refused_at_once() -> None:
    scheduler = Scheduler(make_limits(max_model_len=10))
    output = answer_to(scheduler, make_submit(1, prompt(10)))
    assert output.finish_reason == "error"
    assert output.error is not None
    assert output.error.code == "context_length_exceeded"
    assert scheduler.add(make_submit(2, prompt(9))) == []


def changed(submit: Submit, **changes: object) -> Submit:
    fields = {name: getattr(submit, name) for name in submit.__struct_fields__}
    return Submit(**(fields | changes))


def wide(start: int, num_tokens: int, **changes: object) -> ImageSpan:
    span = make_image(start, num_tokens, "x")
    fields = {name: getattr(span, name) for name in span.__struct_fields__}
    return ImageSpan(**(fields | changes))


GOOD = make_submit(1, prompt(12))
INT32 = np.int32
MALFORMED = {
    "no tokens": changed(GOOD, token_ids=b""),
    "half a token": changed(GOOD, token_ids=b"\0" * 7),
    "an id beyond the vocabulary": make_submit(1, [2, 1000]),
    "a negative id": make_submit(1, [2, -1]),
    "positions of another length": changed(GOOD, positions=b"\0" * 12),
    "a negative position": changed(GOOD, positions=np.full((3, 12), -1, INT32).tobytes()),
    "a wild rope_delta": changed(GOOD, rope_delta=2**40),
    "overlapping spans": changed(GOOD, images=(wide(0, 4), wide(3, 4))),
    "spans out of order": changed(GOOD, images=(wide(6, 2), wide(0, 2))),
    "a span beyond the prompt": changed(GOOD, images=(wide(9, 4),)),
    "a span before the prompt": changed(GOOD, images=(wide(-1, 4),)),
    "an empty span": changed(GOOD, images=(wide(0, 0),)),
    "a short hash": changed(GOOD, images=(wide(0, 2, content_hash=b"x"),)),
    "one image in two sizes": changed(GOOD, images=(wide(0, 2), wide(2, 3))),
    "max_tokens 0": make_submit(1, [2], max_tokens=0),
    "negative min_tokens": make_submit(1, [2], min_tokens=-1),
    "a seed of 65 bits": make_submit(1, [2], seed=2**63),
    "negative logprobs": make_submit(1, [2], logprobs=-1),
    "a bias outside the vocabulary": make_submit(1, [2], logit_bias={1000: 1.0}),
    "nothing allowed": make_submit(1, [2], allowed_token_ids=()),
    "an allowed id outside the vocabulary": make_submit(1, [2], allowed_token_ids=(-2,)),
    "a stop id outside the vocabulary": make_submit(1, [2], stop_token_ids=(1000,)),
    "a bad word outside the vocabulary": make_submit(1, [2], bad_words=((2, 1000),)),
    "an unknown channel": make_submit(1, [2], grammar=Grammar(text="", channel="x")),
    "thoughts without marks": make_submit(1, [2], grammar=Grammar(text="", channel="reasoning")),
    "marks without thoughts": make_submit(
        1, [2], grammar=Grammar(text="", thoughts=ThoughtTokens(begin=1, end=2))
    ),
    "a mark outside the vocabulary": make_submit(
        1,
        [2],
        grammar=Grammar(
            text="", channel="undecided", thoughts=ThoughtTokens(begin=1, end=2, leave=(1000,))
        ),
    ),
    "a grammar, for an engine without a vocabulary": make_submit(1, [2], grammar=Grammar(text="")),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_submit_is_refused_at_once(name: str) -> None:
    scheduler = Scheduler(make_limits())
    output = answer_to(scheduler, MALFORMED[name])
    assert output.finish_reason == "error"
    assert output.error is not None
    assert output.error.code == "invalid_request"
    assert not scheduler.has_requests
    assert scheduler.add(GOOD) == []


def test_an_image_larger_than_a_step_or_the_cache_is_refused_at_once() -> None:
    for limits in (make_limits(image_budget=8), make_limits(image_cache_tokens=8)):
        assert limits.max_image_tokens == 8
        scheduler = Scheduler(limits)
        submit = make_submit(1, [1] * 10, images=[make_image(0, 9, "cat")])
        assert answer_to(scheduler, submit).finish_reason == "error"
        assert scheduler.add(make_submit(2, [1] * 10, images=[make_image(0, 8, "cat")])) == []


def test_a_request_id_in_use_is_refused_and_the_first_goes_on() -> None:
    rig = Rig(make_limits())
    rig.add(make_submit(1, prompt(3)))
    assert answer_to(rig.scheduler, make_submit(1, prompt(5))).finish_reason == "error"
    rig.run()
    rig.assert_answered()
    assert rig.scheduler.add(make_submit(1, prompt(5), server=0)) == []


def test_two_servers_may_use_the_same_request_id() -> None:
    scheduler = Scheduler(make_limits())
    assert scheduler.add(make_submit(1, prompt(3), server=0)) == []
    assert scheduler.add(make_submit(1, prompt(3), server=1)) == []
    [(server, _)] = scheduler.abort(1, 1)
    assert server == 1


def test_limits_that_contradict_each_other_are_refused_together() -> None:
    with pytest.raises(BadSettings, match=r"(?s)cannot hold one request.*max_num_seqs 65"):
        make_limits(num_pages=2, max_num_seqs=65)
    for name in ("num_pages", "page_size", "max_num_seqs", "max_model_len", "vocab_size"):
        with pytest.raises(BadSettings, match=name):
            make_limits(**{name: 0})
    with pytest.raises(BadSettings, match="negative"):
        make_limits(image_budget=-1)
    with pytest.raises(BadSettings, match="policy"):
        make_limits(policy="random")


# ----------------------------------------------------------------------------------- grammars


def constrained(request_id: int, text: str, **sampling: object) -> Submit:
    return make_submit(request_id, [2, 3], grammar=Grammar(text=text), **sampling)


def test_a_request_waits_for_its_grammar_and_nobody_waits_for_it() -> None:
    pool = SlowPool()
    rig = Rig(make_limits(), compiler=tiny_compiler(pool))
    rig.add(constrained(1, choice_grammar(["a", "the"])), make_submit(2, [2]))
    for _ in range(8):
        rig.step()
    assert rig.outputs[1] == []
    assert rig.end(2).finish_reason == "length"
    assert rig.scheduler.is_compiling
    assert rig.scheduler.stats().num_waiting == 1
    pool.work()
    rig.run()
    assert not rig.scheduler.is_compiling
    assert rig.end(1).finish_reason == "stop"


def test_a_grammar_that_does_not_compile_ends_its_request_alone() -> None:
    pool = SlowPool()
    rig = Rig(make_limits(), compiler=tiny_compiler(pool))
    rig.add(constrained(1, "start: ("), make_submit(2, [2]))
    pool.work()
    rig.run()
    error = rig.end(1).error
    assert error is not None
    assert error.code == "invalid_grammar"
    assert rig.end(2).finish_reason == "length"


def test_a_request_aborted_while_its_grammar_is_compiled_is_gone() -> None:
    pool = SlowPool()
    rig = Rig(make_limits(), compiler=tiny_compiler(pool))
    rig.add(constrained(1, choice_grammar(["a"])))
    rig.abort(1)
    assert rig.end(1).finish_reason == "abort"
    assert not rig.scheduler.has_requests
    pool.work()
    assert rig.step() is None
    assert not rig.scheduler.is_compiling


def test_only_steps_with_rows_under_a_grammar_wait_for_masks() -> None:
    rig = Rig(make_limits(max_num_batched_tokens=8), compiler=tiny_compiler())
    rig.add(make_submit(1, [2], max_tokens=3))
    rig.run()
    assert not any(plan.waits_for_masks for plan in rig.plans)
    rig.add(make_submit(2, [3], max_tokens=3), constrained(3, choice_grammar(["a", "the"])))
    rig.run()
    assert any(plan.waits_for_masks for plan in rig.plans)


def test_an_answer_under_a_grammar_loses_no_step_to_the_overlap() -> None:
    """Each step after the prompt gives a token, as without a grammar."""
    rig = Rig(make_limits(), compiler=tiny_compiler())
    rig.add(constrained(1, json_schema_grammar({"type": "string"}), max_tokens=12))
    rig.run()
    num_steps = sum(plan is not None for plan in rig.plans)
    assert num_steps <= len(rig.tokens(1)) + 1
