"""A thousand seeded stories of a whole engine; any failure replays from its seed.

GLIMT_SIM_SEED=n pytest tests/engine/test_simulation.py      one story
GLIMT_SIM_STORIES=100000 pytest tests/engine/test_simulation.py     many more
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterator

import pytest

from tests.support.simulated_world import NO_FAULTS, World

NUM_BATCHES = 10
# Half of the stories are told by `make test`, all by `make test-all`.
BATCHES = [
    pytest.param(batch, marks=pytest.mark.slow if batch % 2 else ()) for batch in range(NUM_BATCHES)
]
NUM_STORIES = int(os.environ.get("GLIMT_SIM_STORIES", "1000"))


def play(seed: int) -> World:
    world = World(seed)
    try:
        world.run()
    except Exception as error:
        pytest.fail(f"story {seed} failed; replay it with GLIMT_SIM_SEED={seed}\n{error!r}")
    return world


@pytest.fixture(autouse=True)
def _quiet_log() -> Iterator[None]:
    logger = logging.getLogger("glimt.engine.loop")
    logger.setLevel(logging.CRITICAL)  # thousands of injected faults, each with its traceback
    yield
    logger.setLevel(logging.NOTSET)


@pytest.mark.parametrize("batch", BATCHES)
def test_every_story_ends_with_every_request_answered_once_and_every_page_free(batch: int) -> None:
    seed = os.environ.get("GLIMT_SIM_SEED")
    if seed is not None:
        play(int(seed))
        return
    for number in range(batch, NUM_STORIES, NUM_BATCHES):
        play(number)


def test_the_stories_go_where_it_hurts() -> None:
    seen: Counter[str] = Counter()
    for seed in range(100):
        world = play(seed)
        stats = world.scheduler.stats()
        seen["preemptions"] += stats.preemptions
        seen["prefix hits"] += stats.prefix_hit_tokens
        seen["image hits"] += stats.image_hits
        seen["under a grammar"] += world.num_constrained
        seen["faults"] += world.faults != NO_FAULTS
        for request_id in world.ended:
            end = world.outputs[request_id][-1]
            seen[end.error.code if end.error else str(end.finish_reason)] += 1
    for name in (
        "preemptions",
        "prefix hits",
        "image hits",
        "faults",
        "stop",
        "length",
        "abort",
        "step_failed",
        "numerical_error",
        "image_parse_error",
        "invalid_request",
        "under a grammar",
        "invalid_grammar",
        "not_ready",
    ):
        assert seen[name] > 0, name


def test_a_story_is_told_the_same_way_twice() -> None:
    assert play(11).outputs == play(11).outputs
