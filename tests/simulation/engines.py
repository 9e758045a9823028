"""A simulated engine process: the real loop and scheduler behind two slow, ordered lines.

A turn of the loop is an event of the simulation. Between turns the engine waits exactly as long as
the real one would: not at all after a launch or a commit, else for a message or until statistics
are due.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

import msgspec

from glimt.engine.limits import SchedulerLimits
from glimt.engine.loop import STATS_INTERVAL_S, EngineLoop
from glimt.engine.plan import InFlight, StepPlan
from glimt.engine.scheduler import Scheduler
from glimt.engine.simulated import Faults, SimulatedExecutor
from glimt.engine.simulated_model import SimulatedModel
from glimt.errors import EngineFailed
from glimt.wire import EngineInbound, EngineInfo, ImageSpan, Outputs
from tests.support.grammars import tiny_compiler

CHECK_EVERY_TURNS = 8


class WatchedExecutor(SimulatedExecutor):
    """Counts launches, which tell whether the next turn of the loop waits."""

    num_launches = 0

    def launch(self, plan: StepPlan) -> InFlight:
        self.num_launches += 1
        return super().launch(plan)


class Line:
    """Messages in one direction: encoded, each late by something else, never out of order."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        rng: random.Random,
        delay_s: float,
        kinds: Any,
        arrive: Callable[[Any], None],
    ) -> None:
        self._loop = loop
        self._rng = rng
        self._delay_s = delay_s
        self._decoder = msgspec.msgpack.Decoder(kinds)
        self._arrive = arrive
        self._last_s = 0.0

    def send(self, message: msgspec.Struct) -> None:
        frame = msgspec.msgpack.encode(message)
        time_s = self._loop.time() + self._rng.random() * self._delay_s
        self._last_s = max(time_s, self._last_s + 1e-6)
        self._loop.call_at(self._last_s, lambda: self._arrive(self._decoder.decode(frame)))


class EngineProcess:
    """One incarnation of an engine. `deliver` takes its outputs at the server's end."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        rng: random.Random,
        limits: SchedulerLimits,
        model: SimulatedModel,
        faults: Faults,
        *,
        step_s: float,
        line_s: float,
        overlap: bool,
        deliver: Callable[[Outputs], None],
        on_encode: Callable[[ImageSpan], None],
        on_death: Callable[[EngineProcess], None],
    ) -> None:
        self.problems: list[str] = []
        self.is_alive = True
        self.has_ended = False  # by itself, telling everyone
        self._loop = loop
        self._rng = rng
        self._step_s = step_s
        self._on_death = on_death
        self._arrived: list[EngineInbound] = []
        self._stats_due_s = loop.time()
        self._num_turns = 0
        self._inbound = Line(loop, rng, line_s, EngineInbound, self._on_message)
        self._outbound = Line(loop, rng, line_s, Outputs, deliver)
        compiler = tiny_compiler(size=limits.vocab_size)
        self.scheduler = Scheduler(limits, clock=loop.time, compiler=compiler)
        self.executor = WatchedExecutor(
            limits.num_pages,
            limits.page_size,
            limits.image_cache_tokens,
            model=model,
            faults=faults,
            on_encode=on_encode,
        )
        self.engine_loop = EngineLoop(
            self.scheduler,
            self.executor,
            self,
            overlap=overlap,
            clock=loop.time,
            max_failed_steps=3,
        )
        self._is_waiting = False
        self._overlap = overlap
        self._has_launched = False  # in the last turn, so that this one commits
        self._next = loop.call_soon(self._turn)

    def send_to(self, message: msgspec.Struct) -> bool:
        """The server's way in. A dead engine's line takes messages too, to no end."""
        self._inbound.send(message)
        return True

    def die(self) -> None:
        """Vanish, answering nothing; what is on its way still arrives."""
        self.is_alive = False
        self._next.cancel()

    def end(self) -> None:
        """Stop as on SIGTERM: every request is told."""
        self.engine_loop.stop()
        self.engine_loop.run()
        self.has_ended = True
        self.die()

    def judge(self) -> None:
        """At the end of the story, with all requests answered."""
        if self.engine_loop.num_violations:
            self.problems.append(f"{self.engine_loop.num_violations} violations")
        self.problems += self.executor.violations
        if not (self.is_alive or self.has_ended):
            return  # its memory went with it
        self.problems += self.scheduler.roster.check()
        if self.scheduler.roster.pool.num_used or self.scheduler.has_requests:
            self.problems.append("pages or requests are left in an engine")

    # The mailbox of the loop.

    def receive(self, timeout_s: float) -> list[EngineInbound]:
        arrived, self._arrived = self._arrived, []
        return arrived

    def send(self, server: int, outputs: Outputs) -> None:
        if server != 0:
            self.problems.append(f"outputs for server {server}")
        if outputs.stats is not None:
            self._stats_due_s = self._loop.time() + STATS_INTERVAL_S
        self._outbound.send(outputs)

    def _on_message(self, message: EngineInbound) -> None:
        self._arrived.append(message)
        if self._is_waiting and self.is_alive:
            self._next.cancel()
            self._turn()

    def _turn(self) -> None:
        self._is_waiting = False
        num_launches = self.executor.num_launches
        self._num_turns += 1
        try:
            self.engine_loop.turn()
        except EngineFailed:
            self.end()
            self._on_death(self)
            return
        if self._num_turns % CHECK_EVERY_TURNS == 0:
            self.problems += self.scheduler.roster.check()
        now_s = self._loop.time()
        commits = self._has_launched and self._overlap
        self._has_launched = self.executor.num_launches > num_launches
        if commits or self._has_launched:
            when_s = now_s + self._rng.random() * self._step_s
        else:
            self._is_waiting = True
            when_s = now_s if self._arrived else self._stats_due_s
        self._next = self._loop.call_at(when_s, self._turn)


def info_of(limits: SchedulerLimits) -> EngineInfo:
    """What an engine with these limits tells its servers."""
    return EngineInfo(
        max_model_len=limits.max_model_len,
        vocab_size=limits.vocab_size,
        num_pages=limits.num_pages,
        page_size=limits.page_size,
        max_num_batched_tokens=limits.max_num_batched_tokens,
        max_num_seqs=limits.max_num_seqs,
        max_image_tokens=limits.max_image_tokens,
    )
