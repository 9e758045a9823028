"""EngineLoop: containment, shutdown, overlap, statistics."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from glimt.engine.limits import SchedulerLimits
from glimt.engine.loop import EngineLoop
from glimt.engine.plan import Executor, InFlight, StepPlan, StepResult
from glimt.engine.scheduler import Scheduler
from glimt.engine.simulated import Faults, SimulatedExecutor
from glimt.engine.simulated_model import SimulatedModel, expected_tokens
from glimt.errors import EngineFailed
from glimt.wire import Abort, EngineInbound, EngineStats, Output, Outputs, ResetCaches, Submit
from tests.support.workload import make_image, make_limits, make_submit


@dataclass
class Post:
    """A mailbox with a script: one list of messages per call, and a clock that waiting moves."""

    script: deque[list[EngineInbound] | Callable[[], None]] = field(default_factory=deque)
    now_s: float = 10.0
    waits: list[float] = field(default_factory=list)
    sent: list[tuple[int, Outputs]] = field(default_factory=list)

    def clock(self) -> float:
        return self.now_s

    def receive(self, timeout_s: float) -> list[EngineInbound]:
        self.waits.append(timeout_s)
        entry = self.script.popleft() if self.script else []
        if callable(entry):
            entry()
            return []
        if not entry:
            self.now_s += timeout_s
        return entry

    def send(self, server: int, outputs: Outputs) -> None:
        self.sent.append((server, outputs))

    def outputs(self, request_id: int) -> list[Output]:
        return [
            o for _, message in self.sent for o in message.outputs if o.request_id == request_id
        ]

    def stats(self) -> list[EngineStats]:
        return [message.stats for _, message in self.sent if message.stats is not None]


def simulated(limits: SchedulerLimits, faults: Faults | None = None) -> SimulatedExecutor:
    return SimulatedExecutor(
        limits.num_pages,
        limits.page_size,
        limits.image_cache_tokens,
        model=SimulatedModel(limits.vocab_size),
        faults=faults,
    )


def make_loop(
    *script: list[EngineInbound],
    executor: Executor | None = None,
    num_turns: int = 60,
    progress: Callable[[], None] = lambda: None,
    overlap: bool = True,
    **changes: object,
) -> tuple[EngineLoop, Post, Scheduler]:
    limits = make_limits(**changes)
    post = Post()
    scheduler = Scheduler(limits, clock=post.clock)
    loop = EngineLoop(
        scheduler,
        executor or simulated(limits),
        post,
        overlap=overlap,
        clock=post.clock,
        progress=progress,
    )
    post.script.extend(script)
    post.script.extend([[]] * (num_turns - len(script)))
    post.script.append(loop.stop)
    return loop, post, scheduler


def assert_answered(post: Post, submit: Submit) -> None:
    tokens, finish_reason = expected_tokens(SimulatedModel(1000), submit, 128)
    outputs = post.outputs(submit.request_id)
    assert [token for output in outputs for token in output.token_ids] == tokens
    assert [output.finish_reason for output in outputs] == [None] * (len(tokens) - 1) + [
        finish_reason
    ]


def test_a_request_is_answered_token_by_token() -> None:
    submit = make_submit(1, [2, 3, 4], max_tokens=5)
    loop, post, _ = make_loop([submit])
    loop.run()
    assert_answered(post, submit)


def test_the_outputs_of_one_step_travel_in_one_message_per_server() -> None:
    submits = [make_submit(n, [2, n + 3], max_tokens=1, server=n % 2) for n in range(4)]
    loop, post, _ = make_loop([*submits])
    loop.run()
    messages = [(server, m) for server, m in post.sent if m.outputs]
    assert [(server, len(message.outputs)) for server, message in messages] == [(0, 2), (1, 2)]


def test_without_overlap_a_token_is_sent_in_the_turn_that_drew_it() -> None:
    submit = make_submit(1, [2, 3, 4], max_tokens=5)
    loop, post, _ = make_loop([submit], overlap=False)
    loop.turn()
    assert [len(output.token_ids) for output in post.outputs(1)] == [1]
    loop.run()
    assert_answered(post, submit)


def test_who_waits_for_the_pages_of_one_that_ends_goes_on_without_a_pause() -> None:
    submits = [make_submit(n, [*range(2, 22)], max_tokens=1) for n in range(2)]
    loop, post, _ = make_loop([*submits], follow_tokens=8)
    loop.turn()
    began_s = post.now_s
    while not post.outputs(1):
        loop.turn()
    assert post.now_s == began_s
    assert post.outputs(1)[0].num_cached_tokens == 16
    loop.run()


class Recorder:
    """An executor that notes what happens when."""

    def __init__(self, inner: Executor) -> None:
        self.inner = inner
        self.events: list[str] = []

    def launch(self, plan: StepPlan) -> InFlight:
        self.events.append(f"launch {plan.step}")
        return RecordedStep(self, self.inner.launch(plan))


class RecordedStep:
    def __init__(self, recorder: Recorder, inner: InFlight) -> None:
        self.recorder, self.inner = recorder, inner

    @property
    def plan(self) -> StepPlan:
        return self.inner.plan

    def result(self) -> StepResult:
        self.recorder.events.append(f"result {self.plan.step}")
        return self.inner.result()


def test_a_step_is_launched_before_the_result_of_the_one_before_is_awaited() -> None:
    recorder = Recorder(simulated(make_limits()))
    loop, _, _ = make_loop([make_submit(1, [2], max_tokens=3)], executor=recorder)
    loop.run()
    assert recorder.events == [
        "launch 1",
        "launch 2",
        "result 1",
        "launch 3",
        "result 2",
        "result 3",
    ]


def test_a_malformed_submit_ends_alone() -> None:
    good = make_submit(1, [2, 3], max_tokens=3)
    bad = make_submit(2, [2, -5])
    loop, post, _ = make_loop([good, bad])
    loop.run()
    [output] = post.outputs(2)
    assert output.error is not None
    assert output.error.code == "invalid_request"
    assert_answered(post, good)


def test_a_submit_that_breaks_the_scheduler_ends_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(submit: Submit, limits: SchedulerLimits) -> None:
        raise ZeroDivisionError

    good = make_submit(1, [2, 3], max_tokens=3)
    loop, post, _ = make_loop([good])
    loop.turn()
    with monkeypatch.context() as patch:
        patch.setattr("glimt.engine.scheduler.read_prompt", broken)
        post.script.appendleft([make_submit(2, [2])])
        loop.turn()
    loop.run()
    [output] = post.outputs(2)
    assert output.error is not None
    assert output.error.code == "engine_failed"
    assert_answered(post, good)
    assert "could not be taken" in caplog.text


def test_a_client_that_left_is_gone_in_the_next_step() -> None:
    loop, post, scheduler = make_loop(
        [make_submit(1, [2, 3], max_tokens=100)], [], [], [Abort(0, 1), Abort(0, 9)]
    )
    for _ in range(4):
        loop.turn()
    assert post.outputs(1)[-1].finish_reason == "abort"
    assert scheduler.stats().num_running == 0
    loop.run()
    assert sum(output.finish_reason is not None for output in post.outputs(1)) == 1


def test_caches_are_reset_on_request() -> None:
    submits = [make_submit(n, [*range(2, 14)], max_tokens=1) for n in range(3)]
    quiet: list[list[EngineInbound]] = [[], []]
    loop, post, _ = make_loop(
        [submits[0]], *quiet, [submits[1]], *quiet, [ResetCaches()], [submits[2]]
    )
    loop.run()
    assert [post.outputs(n)[-1].num_cached_tokens for n in range(3)] == [0, 8, 0]


@pytest.mark.parametrize("where", ["raise_in_launch", "raise_in_result"])
def test_a_step_that_raises_ends_its_requests_and_the_loop_goes_on(
    where: str, caplog: pytest.LogCaptureFixture
) -> None:
    faults = next(
        faults
        for faults in (Faults(seed=seed, **{where: 0.2}) for seed in range(100))
        if [faults.hits(1, faults.raise_in_launch, step) for step in range(1, 12)].count(True)
        + [faults.hits(2, faults.raise_in_result, step) for step in range(1, 12)].count(True)
        == 1
        and (faults.hits(1, faults.raise_in_launch, 2) or faults.hits(2, faults.raise_in_result, 2))
    )
    hit = make_submit(1, [2, 3], max_tokens=50)
    later = make_submit(2, [2, 3], max_tokens=5)
    loop, post, _ = make_loop(
        [hit], [], [], [later], executor=simulated(make_limits(), faults), num_turns=20
    )
    loop.run()
    end = post.outputs(1)[-1]
    assert end.error is not None
    assert end.error.code == "step_failed"
    assert_answered(post, later)
    assert "Step 2 failed" in caplog.text


def test_steps_that_fail_without_end_end_the_engine_and_everyone_in_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    submits = [make_submit(n, [2, 3], max_tokens=9) for n in range(30)]
    loop, post, _ = make_loop(
        [*submits],
        executor=simulated(make_limits(), Faults(raise_in_result=1.0)),
        max_num_seqs=1,
    )
    with pytest.raises(EngineFailed, match="8 steps failed"):
        loop.run()
    for submit in submits:
        [output] = post.outputs(submit.request_id)
        assert output.finish_reason == "error"
    assert "Step 8 failed" in caplog.text


def test_at_the_end_everyone_is_answered_even_what_still_lies_in_the_mailbox() -> None:
    image = make_image(0, 4, "cat", 2)
    loop, post, scheduler = make_loop(
        [make_submit(1, [2], max_tokens=100)],
        [],
        [make_submit(2, [1] * 5, images=[image], max_tokens=100)],
        num_turns=3,
    )
    post.script.append([make_submit(3, [2]), Abort(0, 1)])
    loop.run()
    codes = [output.error.code for n in (1, 2, 3) for output in post.outputs(n) if output.error]
    assert codes == ["not_ready"] * 3
    assert not scheduler.has_requests
    assert scheduler.roster.pool.num_used == 0


def test_an_idle_engine_waits_and_reports_at_least_once_a_second() -> None:
    loop, post, _ = make_loop([make_submit(1, [2], max_tokens=1)], num_turns=20)
    began = post.now_s
    loop.run()
    assert len(post.stats()) >= post.now_s - began
    assert all(0.0 <= wait <= 1.0 for wait in post.waits)
    assert any(wait > 0.0 for wait in post.waits)
    assert post.stats()[-1].num_running == 0
    assert post.stats()[-1].step == 1


def test_a_busy_engine_never_waits() -> None:
    loop, post, _ = make_loop([make_submit(1, [2], max_tokens=10)], num_turns=9)
    loop.run()
    assert post.waits[1:9] == [0.0] * 8


def test_progress_is_shown_in_every_turn() -> None:
    turns: list[None] = []
    loop, _, _ = make_loop(num_turns=5, progress=lambda: turns.append(None))
    loop.run()
    assert len(turns) == 6


def test_violated_invariants_are_counted_while_idle(caplog: pytest.LogCaptureFixture) -> None:
    loop, _, scheduler = make_loop([make_submit(1, [2], max_tokens=2)])
    for _ in range(3):
        loop.turn()
    scheduler.roster.pool.allocate(1)  # a leak
    with caplog.at_level(logging.ERROR):
        loop.run()
    assert loop.num_violations == 1
    assert "Invariant violated" in caplog.text
