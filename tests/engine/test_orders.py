"""Orders of operators: an engine sleeps, wakes, and records, while its loop goes on."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glimt.engine.loop import EngineLoop
from glimt.engine.scheduler import Scheduler
from glimt.engine.work_meter import WorkMeter
from glimt.errors import EngineFailed, InvalidRequest
from glimt.wire import Abort, Order, OrderDone, ResetCaches
from tests.engine.test_loop import Post, assert_answered, simulated
from tests.support.workload import make_image, make_limits, make_submit


class Bed:
    """A machine that says what it is told to do, and sleeps once `may_sleep` is set."""

    def __init__(self) -> None:
        self.sleep_level = 0
        self.is_profiling = False
        self.may_sleep = threading.Event()
        self.may_sleep.set()
        self.error: Exception | None = None

    def sleep(self, level: int) -> None:
        assert self.may_sleep.wait(30)
        self.sleep_level = level

    def wake(self) -> None:
        if self.error is not None:
            raise self.error
        self.sleep_level = 0

    def start_profile(self) -> str:
        if self.is_profiling:
            raise InvalidRequest("it is on")
        self.is_profiling = True
        return "/folder"

    def expert_load(self) -> str:
        return "{}"

    def stop_profile(self) -> Callable[[], str]:
        self.is_profiling = False
        return lambda: f"/folder/{threading.current_thread().name[:6]}"


class Told:
    """A loop over a bed, moved turn by turn."""

    def __init__(
        self, bed: Bed | None, *, overlap: bool = True, meter: WorkMeter | None = None
    ) -> None:
        limits = make_limits()
        self.post = Post()
        self.scheduler = Scheduler(limits, clock=self.post.clock)
        self.loop = EngineLoop(
            self.scheduler,
            simulated(limits),
            self.post,
            machine=bed,
            meter=meter,
            overlap=overlap,
            clock=self.post.clock,
        )

    @property
    def done(self) -> list[OrderDone]:
        return [order for _, message in self.post.sent for order in message.orders]

    def turn(self, *messages: object) -> None:
        self.post.script.append(list(messages))  # type: ignore[arg-type]
        self.loop.turn()

    def order(self, kind: str, level: int = 0) -> OrderDone:
        """Give an order, and go on until it is answered."""
        number = len(self.done)
        self.turn(Order(server=0, order_id=number, kind=kind, level=level))
        self.turn_until(lambda: len(self.done) > number)
        assert self.done[-1].order_id == number
        return self.done[-1]

    def turn_until(self, what: Callable[[], bool]) -> None:
        for _ in range(100_000):
            if what():
                return
            self.turn()
        raise AssertionError("it did not happen")


@pytest.mark.parametrize("overlap", [True, False])
def test_requests_end_before_the_engine_sleeps_and_none_come_in_until_it_wakes(overlap) -> None:
    told = Told(Bed(), overlap=overlap)
    told.turn(make_submit(1, [2, 3, 4], max_tokens=50))
    told.turn()
    assert told.order("sleep", 2).error is None
    assert told.post.outputs(1)[-1].error.code == "asleep"  # type: ignore[union-attr]
    assert told.post.stats()[-1].sleep_level == 2
    told.turn(make_submit(2, [2, 3]))
    assert told.post.outputs(2)[-1].error.code == "asleep"  # type: ignore[union-attr]
    assert told.order("wake").error is None
    assert told.post.stats()[-1].sleep_level == 0
    later = make_submit(3, [2, 3, 4], max_tokens=5)
    told.turn(later)
    told.turn_until(lambda: any(o.finish_reason for o in told.post.outputs(3)))
    assert_answered(told.post, later)
    assert told.scheduler.roster.check() == []


def test_nothing_is_known_of_earlier_prompts_after_a_sleep() -> None:
    told = Told(Bed())
    prompt = list(range(2, 42))
    for number in (1, 2, 3):
        told.turn(make_submit(number, prompt, max_tokens=1))
        told.turn_until(lambda: bool(told.post.outputs(number)))  # noqa: B023
        if number == 2:
            assert told.post.outputs(2)[-1].num_cached_tokens > 0
            told.order("sleep", 1)
            told.order("wake")
    assert told.post.outputs(3)[-1].num_cached_tokens == 0


ACTIONS = st.sampled_from(["submit", "picture", "abort", "sleep", "wake", "reset", "turn"])


@given(st.lists(ACTIONS, max_size=40), st.booleans(), st.integers(1, 2))
@settings(max_examples=60, deadline=None)
def test_whatever_is_asked_and_ordered_every_request_is_answered_once(
    actions: list[str], overlap: bool, level: int
) -> None:
    told = Told(Bed(), overlap=overlap)
    asked: list[int] = []
    for number, action in enumerate(actions):
        if action in ("submit", "picture"):
            asked.append(number)
            images = [make_image(2, 4, f"{number % 3}", number)] if action == "picture" else []
            told.turn(make_submit(number, list(range(2, 14)), images=images, max_tokens=6))
        elif action == "abort" and asked:
            told.turn(Abort(0, asked[-1]))
        elif action in ("sleep", "wake"):
            told.turn(Order(server=0, order_id=number, kind=action, level=level))
        elif action == "reset":
            told.turn(ResetCaches())
        else:
            told.turn()
    last = len(actions)
    told.turn(Order(server=0, order_id=last, kind="wake"))
    told.turn_until(lambda: bool(told.done) and told.done[-1].order_id == last)
    told.turn_until(lambda: not told.scheduler.has_requests)
    told.turn()
    for number in asked:
        ends = [o.finish_reason for o in told.post.outputs(number) if o.finish_reason]
        assert len(ends) == 1
    assert len(told.done) == 1 + sum(action in ("sleep", "wake") for action in actions)
    assert told.scheduler.roster.check() == []


def test_the_loop_goes_on_answering_while_the_engine_falls_asleep() -> None:
    bed = Bed()
    bed.may_sleep.clear()
    told = Told(bed)
    told.turn(Order(server=0, order_id=0, kind="sleep", level=1))
    for number in range(1, 4):
        told.turn(make_submit(number, [2, 3]))
        assert told.post.outputs(number)[-1].error.code == "asleep"  # type: ignore[union-attr]
    told.turn(Order(server=0, order_id=1, kind="wake"), ResetCaches())
    assert told.done == []
    bed.may_sleep.set()
    told.turn_until(lambda: len(told.done) == 2)
    assert [order.order_id for order in told.done] == [0, 1]
    assert bed.sleep_level == 0


def test_a_profile_is_named_and_its_trace_written_in_a_thread_of_its_own() -> None:
    told = Told(Bed())
    assert told.order("start_profile").detail == "/folder"
    assert told.post.stats()[-1].is_profiling
    assert told.order("start_profile").error.code == "invalid_request"  # type: ignore[union-attr]
    assert told.order("stop_profile").detail == "/folder/orders"
    assert not told.post.stats()[-1].is_profiling


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (EngineFailed("no memory"), "no memory"),
        (RuntimeError("secret"), "could not wake; its log has more"),
    ],
)
def test_an_order_that_fails_is_answered_with_why(error: Exception, text: str) -> None:
    bed = Bed()
    told = Told(bed)
    told.order("sleep", 1)
    bed.error = error
    failed = told.order("wake").error
    assert failed is not None
    assert failed.code == "engine_failed"
    assert text in failed.message
    bed.error = None
    assert told.order("wake").error is None


@pytest.mark.parametrize("kind", ["sleep", "wake", "start_profile", "stop_profile", "dance"])
def test_an_engine_without_a_machine_refuses_orders(kind: str) -> None:
    told = Told(None)
    assert told.order(kind).error.code == "unsupported"  # type: ignore[union-attr]
    assert told.loop.num_violations == 0
