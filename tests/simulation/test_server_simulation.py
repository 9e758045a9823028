"""A thousand seeded stories of the whole server; any failure replays from its seed.

GLIMT_SIM_SEED=n pytest tests/simulation      one story
GLIMT_SIM_STORIES=100000 pytest tests/simulation     many more
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.simulation.connection import Connection
from tests.simulation.world import ServerWorld

NUM_BATCHES = 10
# Half of the stories are told by `make test`, all by `make test-all`.
BATCHES = [
    pytest.param(batch, marks=pytest.mark.slow if batch % 3 else ()) for batch in range(NUM_BATCHES)
]
SEED = os.environ.get("GLIMT_SIM_SEED")
NUM_STORIES = int(os.environ.get("GLIMT_SIM_STORIES", "1000"))


def play(seed: int) -> ServerWorld:
    try:
        world = ServerWorld(seed)
        world.run()
    except Exception as error:
        pytest.fail(f"story {seed} failed; replay it with GLIMT_SIM_SEED={seed}\n{error}")
    return world


@pytest.fixture(autouse=True)
def _quiet_log() -> Iterator[None]:
    """Thousands of injected faults, each with its traceback."""
    logger = logging.getLogger("glimt")
    logger.setLevel(logging.CRITICAL)
    yield
    logger.setLevel(logging.NOTSET)


@pytest.mark.timeout(120 + NUM_STORIES // 10)
@pytest.mark.parametrize("batch", [0] if SEED else BATCHES)
def test_every_story_ends_with_every_request_answered_once_and_nothing_held(batch: int) -> None:
    for seed in [int(SEED)] if SEED else range(batch, NUM_STORIES, NUM_BATCHES):
        play(seed)


def test_the_stories_go_where_it_hurts() -> None:
    seen: Counter[str] = Counter()
    for seed in range(100):
        world = play(seed)
        for connection in world.connections:
            seen[outcome(connection)] += 1
            seen["several choices"] += connection.ask.n > 1
            sampled = connection.ask.sampled
            seen["under a grammar"] += sampled is not None and sampled.expression is not None
        for engine in world.engines:
            stats = engine.scheduler.stats()
            seen["preemptions"] += stats.preemptions
            seen["prefix hits"] += stats.prefix_hit_tokens
            seen["image hits"] += stats.image_hits
            seen["engine deaths"] += not engine.is_alive
        seen["leases"] += len(world.media.leases)
        seen["drains"] += world.story.drain_s is not None
        seen["aborts"] += sum(event[1] == "abort" for event in world.trace)
    missing = {name for name in EVERYTHING if not seen[name]}
    assert not missing, seen


EVERYTHING = (
    *("stream", "stream with an error", "stream cut", "whole", "stop string", "several choices"),
    *("400", "401", "404", "408", "415", "429", "500", "503", "left unanswered", "stalled"),
    "under a grammar",
    *("preemptions", "prefix hits", "image hits", "engine deaths", "leases", "drains", "aborts"),
)


def outcome(connection: Connection) -> str:
    """How it went for one client."""
    if not connection.is_answered:
        if not connection.has_left:
            return "stalled"
        return "stream cut" if connection.status == 200 else "left unanswered"
    if connection.status != 200:
        return str(connection.status)
    if b'"stop_reason":"' in connection.written:
        return "stop string"
    if not connection.ask.is_stream:
        return "whole"
    return "stream with an error" if b'{"error":' in connection.written else "stream"


def test_a_story_is_told_the_same_way_twice() -> None:
    for seed in range(10):
        assert play(seed).trace == play(seed).trace


def test_a_story_is_told_the_same_way_by_another_process() -> None:
    """Replaying a seed must not depend on how Python hashes strings or where objects lie."""
    program = (
        "import logging, sys; logging.disable(); from tests.simulation.world import ServerWorld\n"
        "for seed in range(5):\n"
        "    world = ServerWorld(seed); world.run(); print(world.trace)\n"
    )
    told = [
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            cwd=Path(__file__).parents[2],
            capture_output=True,
            check=True,
        ).stdout
        for hash_seed in ("1", "2")
    ]
    assert told[0] == told[1]
    assert told[0].count(b"'ask'") > 5
