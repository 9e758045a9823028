"""Thoughts end when they have had their tokens, and nobody else waits for that."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from glimt.engine.simulated_model import SimulatedModel
from glimt.engine.thoughts import ThoughtLimit
from glimt.wire import ThinkingBudget
from tests.support.engine_rig import Rig
from tests.support.grammars import thought_tokens, tiny_compiler
from tests.support.workload import make_limits, make_submit

THOUGHTS = thought_tokens()
THINK, END, (CALL,), (BREAK,) = THOUGHTS.begin, THOUGHTS.end, THOUGHTS.leave, THOUGHTS.line_breaks
WORD = 5


def budget(max_tokens: int, channel: str = "reasoning") -> ThinkingBudget:
    return ThinkingBudget(
        max_tokens=max_tokens, channel=channel, thoughts=THOUGHTS, closing=(BREAK, END)
    )


def drawn(limit: ThoughtLimit, wishes: list[int]) -> list[int]:
    """What comes of a model's wishes."""
    tokens = []
    for wish in wishes:
        forced = limit.forced
        tokens.append(wish if forced is None else forced)
        limit.advance(tokens[-1])
    return tokens


def test_spent_thoughts_are_closed_by_force() -> None:
    assert drawn(ThoughtLimit(budget(2)), [WORD] * 6) == [WORD, WORD, BREAK, END, WORD, WORD]
    assert drawn(ThoughtLimit(budget(0)), [WORD] * 3) == [BREAK, END, WORD]


def test_thoughts_that_end_by_themselves_are_let_be() -> None:
    for end in (END, CALL):
        wishes = [WORD, end, WORD, WORD, WORD]
        assert drawn(ThoughtLimit(budget(2)), wishes) == wishes


def test_thoughts_may_begin_after_a_line_break_and_not_after_an_answer() -> None:
    wishes = [BREAK, THINK, *[WORD] * 4]
    expected = [BREAK, THINK, WORD, BREAK, END, WORD]
    assert drawn(ThoughtLimit(budget(1, "undecided")), wishes) == expected
    wishes = [WORD, THINK, *[WORD] * 4]
    assert drawn(ThoughtLimit(budget(1, "undecided")), wishes) == wishes


@given(
    st.integers(0, 3),
    st.sampled_from(["reasoning", "undecided"]),
    st.lists(st.sampled_from([WORD, THINK, END, CALL, BREAK]), max_size=10),
    st.integers(0, 3),
)
def test_a_step_that_does_not_wait_never_has_to_force(
    max_tokens: int, channel: str, wishes: list[int], num_unknown: int
) -> None:
    limit = ThoughtLimit(budget(max_tokens, channel))
    tokens = drawn(ThoughtLimit(budget(max_tokens, channel)), wishes)
    for index in range(len(wishes) - num_unknown):
        ahead = ThoughtLimit(budget(max_tokens, channel))
        drawn(ahead, wishes[: index + num_unknown])
        assert limit.may_force(num_unknown) or ahead.forced is None
        limit.advance(tokens[index])


@given(st.integers(0, 2**32))
@settings(max_examples=60)
def test_budgets_hold_whatever_else_runs(seed: int) -> None:
    rng = random.Random(seed)
    rig = Rig(make_limits(num_pages=24, max_model_len=64), compiler=tiny_compiler())
    for request_id in range(rng.randint(1, 6)):
        thinking = budget(rng.choice([0, 1, 3, 9])) if rng.random() < 0.7 else None
        rig.add(make_submit(request_id, [2, 3], max_tokens=rng.randint(1, 30), thinking=thinking))
        for _ in range(rng.randrange(4)):
            rig.step()
    rig.run()
    rig.assert_answered()
    for request_id, submit in rig.submits.items():
        thinking, tokens = submit.sampling.thinking, rig.tokens(request_id)
        if thinking is not None and len(tokens) > thinking.max_tokens + 1:
            assert END in tokens[: thinking.max_tokens + 2] or CALL in tokens


def test_only_steps_in_which_thoughts_may_be_spent_wait() -> None:
    rig = Rig(make_limits(), model=SimulatedModel(1000))
    rig.add(make_submit(0, [2, 3], max_tokens=20, thinking=budget(6)))
    rig.run()
    assert rig.tokens(0)[6:8] == [BREAK, END]
    waiting = [plan.waits_for_masks for plan in rig.plans]
    # The two of the closing, and the one after, planned when the closing was not yet whole.
    assert waiting == [6 <= index <= 8 for index in range(len(waiting))]
