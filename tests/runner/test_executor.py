"""The executor with a tiny model: how requests are scheduled changes none of their tokens."""

from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.schedules import Schedule
from tests.support.tiny_model import Album, Ask, make_ask, make_executor, tiny_model

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


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25)
@given(chosen=choices, seed=st.integers(0, 2**16), depth=st.integers(1, 3))
def test_no_schedule_changes_a_token(
    kind: str, chosen: list[Choice], seed: int, depth: int
) -> None:
    # Chunks that cut through images, company, preemption and re-use of rows, pages and images,
    # steps launched before the results of those before are known.
    executor = make_executor(tiny_model(kind), ALBUM)
    asks = [ask(choice) for choice in chosen]
    answers = Schedule(executor, asks, seed=seed, depth=depth).run()
    assert answers == [alone(kind, choice) for choice in chosen]
