"""Whatever comes, in whatever order: right tokens, one end each, budgets kept, nothing left."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glimt.engine.limits import SchedulerLimits
from glimt.engine.simulated import Faults
from glimt.engine.simulated_model import SimulatedModel
from tests.support.engine_rig import Rig
from tests.support.grammars import thought_tokens, tiny_compiler
from tests.support.workload import random_limits, random_submit


def model(limits: SchedulerLimits, eos_probability: float) -> SimulatedModel:
    thoughts = thought_tokens()
    return SimulatedModel(limits.vocab_size, eos_probability, (thoughts.begin, thoughts.end))


def play(rng: random.Random, rig: Rig, *, abort_probability: float, num_requests: int) -> None:
    """Arrivals in bursts, steps and aborts in random order, then everything runs out."""
    request_id = 0
    while request_id < num_requests:
        for _ in range(rng.choice([0, 1, 1, 4])):
            rig.add(random_submit(rng, request_id, rig.limits, grammars=True))
            request_id += 1
        for _ in range(rng.choice([0, 1, 3, 10])):
            rig.step()
            if rng.random() < 0.02:
                rig.scheduler.reset_caches(prefix=True, images=rng.random() < 0.5)
            if rng.random() < abort_probability and request_id:
                rig.abort(rng.randrange(request_id))
    rig.run()


@given(seed=st.integers(0, 2**32))
@settings(max_examples=150)
def test_every_request_gets_the_tokens_it_would_get_alone(seed: int) -> None:
    rng = random.Random(seed)
    limits = random_limits(rng)
    slow = rng.choice([0, 0, 1, 5])
    rig = Rig(limits, model=model(limits, 0.1), compiler=tiny_compiler(), encode_steps=slow)
    play(rng, rig, abort_probability=0.0, num_requests=rng.randint(1, 12))
    rig.assert_answered()
    assert rig.executor.num_missing_embeddings == 0


@given(seed=st.integers(0, 2**32))
@settings(max_examples=100)
def test_aborts_at_any_moment_end_one_request_and_change_no_other(seed: int) -> None:
    rng = random.Random(seed)
    limits = random_limits(rng)
    slow = rng.choice([0, 0, 1, 5])
    rig = Rig(limits, model=model(limits, 0.05), compiler=tiny_compiler(), encode_steps=slow)
    play(rng, rig, abort_probability=0.3, num_requests=rng.randint(1, 12))
    rig.assert_consistent()
    assert {rig.end(request_id).finish_reason for request_id in rig.submits} <= {
        "stop",
        "length",
        "abort",
        "error",
    }
    assert rig.executor.num_missing_embeddings == 0


@given(seed=st.integers(0, 2**32))
@settings(max_examples=150)
def test_failures_end_requests_with_an_error_and_leave_the_others_exact(seed: int) -> None:
    rng = random.Random(seed)
    limits = random_limits(rng)
    faults = Faults(
        seed=seed,
        raise_in_launch=rng.choice([0.0, 0.05]),
        raise_in_result=rng.choice([0.0, 0.05]),
        nan=rng.choice([0.0, 0.03]),
        bad_image=rng.choice([0.0, 0.2]),
    )
    slow = rng.choice([0, 0, 1, 5])
    rig = Rig(limits, faults=faults, compiler=tiny_compiler(), encode_steps=slow)
    play(rng, rig, abort_probability=0.1, num_requests=rng.randint(1, 12))
    rig.assert_consistent()


@pytest.mark.parametrize("policy", ["fcfs", "priority"])
def test_the_same_events_give_the_same_plans(policy: str) -> None:
    def plans() -> list[object]:
        rng = random.Random(7)
        rig = Rig(random_limits(rng), compiler=tiny_compiler())
        play(rng, rig, abort_probability=0.1, num_requests=10)
        return [(plan.work, plan.encode, plan.drop_images) for plan in rig.plans]

    assert plans() == plans()
