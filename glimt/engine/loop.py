"""EngineLoop: receive, schedule, launch, commit the step before, send.

    ┌─▶ receive ─▶ schedule n+1 ─▶ launch n+1 ─▶ commit n ─▶ (masks n+1) ─▶ send ─┐
    └──────────────────────────────────────────────────────────────────────────────┘

While the device computes step n+1, the host takes the tokens of step n, makes the masks of rows
under a grammar, without which step n+1 does not draw, and plans step n+2. The loop knows neither
sockets nor torch; it is given a mailbox and an executor. Each Submit received is answered by
exactly one terminal Output, whatever fails: a bad message ends one request, a step that raises
ends the requests in it, and the end of the loop ends all that are left.
"""

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

import msgspec

from glimt.engine.expert_meter import ExpertMeter
from glimt.engine.lockstep import Wave
from glimt.engine.orders import Machine, OrderDesk
from glimt.engine.outputs import Addressed, refuse
from glimt.engine.plan import Executor, InFlight, StepPlan, StepResult, TokenMasks
from glimt.engine.scheduler import Scheduler
from glimt.engine.work_meter import WorkMeter
from glimt.errors import EngineAsleep, EngineDied, EngineFailed, ReplicaLost, StepFailed
from glimt.wire import (
    Abort,
    EngineMessage,
    EngineStats,
    ErrorInfo,
    ExpertStats,
    Order,
    OrderDone,
    Output,
    Outputs,
    Submit,
    Wake,
)

STATS_INTERVAL_S = 0.5
COMPILING_INTERVAL_S = 0.001  # at which an idle loop looks whether a grammar is compiled
ORDER_INTERVAL_S = 0.02  # at which it looks whether an operator's order is carried out

log = logging.getLogger(__name__)


class Mailbox(Protocol):
    """The engine's connection to its servers."""

    def receive(self, timeout_s: float) -> Sequence[EngineMessage]:
        """All messages that wait; blocks up to `timeout_s` for the first."""
        ...

    def send(self, server: int, outputs: Outputs) -> None:
        """Hand outputs to a server; never blocks."""
        ...


class FailedLaunch:
    """A step whose launch raised: it fails when its turn to be committed comes."""

    def __init__(self, plan: StepPlan, error: Exception) -> None:
        self.plan = plan
        self._error = error

    def draw(self, masks: TokenMasks) -> None:
        """There is nothing to draw from."""

    def result(self) -> StepResult:
        """Raises what the launch raised."""
        raise self._error


class EngineLoop:
    """Runs one engine until `stop` is called or steps fail without end.

    `servers` get statistics at least once a second, work or not. `progress` is called in every
    turn, for a watchdog: a turn takes as long as the longest step, or half a second when idle.
    `overlap` False commits each step in the turn that launched it: right where a launch returns
    only when the step is done (a CPU), since there is nothing to overlap with.
    `machine` is what the executor runs on, for orders of operators. `meter` counts what is
    launched, `expert_meter` tells which experts tokens chose. `wave` has other replicas take part
    in each step, and this one in theirs.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        executor: Executor,
        mailbox: Mailbox,
        *,
        machine: Machine | None = None,
        meter: WorkMeter | None = None,
        expert_meter: ExpertMeter | None = None,
        wave: Wave | None = None,
        servers: Sequence[int] = (0,),
        overlap: bool = True,
        clock: Callable[[], float] = time.monotonic,
        progress: Callable[[], None] = lambda: None,
        max_failed_steps: int = 8,
    ) -> None:
        self.num_violations = 0  # of the engine's invariants, found while idle
        self._scheduler = scheduler
        self._executor = executor
        self._mailbox = mailbox
        self._servers = tuple(servers)
        self._overlap = overlap
        self._clock = clock
        self._progress = progress
        self._max_failed_steps = max_failed_steps
        self._num_failed_steps = 0  # one after the other
        self._in_flight: InFlight | None = None  # launched, and not committed yet
        self._is_busy = False  # the last turn launched or committed a step
        self._is_stopping = False
        self._is_checked = True
        self._stats_due_s = clock()
        self._outputs: list[Addressed] = []  # to be sent at the end of the turn
        self._desk = OrderDesk(machine)
        self._meter = meter
        self._expert_meter = expert_meter
        self._wave = wave
        self._orders: list[tuple[int, OrderDone]] = []  # likewise

    def stop(self) -> None:
        """End after the current turn. May be called from a signal handler or another thread."""
        self._is_stopping = True

    def run(self) -> None:
        """Serve until stopped. Raises EngineFailed if a device is beyond use."""
        try:
            while not self._is_stopping:
                self.turn()
        except ReplicaLost:
            self._in_flight = None  # it waits for ranks that will not come
            raise
        finally:
            self._end()

    def turn(self) -> None:
        """One pass of the loop; waits for messages if there is nothing to compute."""
        self._progress()
        for message in self._receive():
            self._outputs += self._take(message)
        if self._desk.is_busy:
            self._carry_out_orders()
        self._outputs += self._scheduler.take_ready()
        before, self._in_flight = self._in_flight, self._begin_step()
        # After a commit, who waited for it may be planned.
        self._is_busy = self._in_flight is not None or before is not None
        if before is not None:
            self._outputs += self._commit(before)
        if self._in_flight is not None and self._in_flight.plan.waits_for_masks:
            masks, ended = self._scheduler.masks(self._in_flight.plan)
            self._outputs += ended
            self._in_flight.draw(masks)
        if self._in_flight is not None and not self._overlap:
            step, self._in_flight = self._in_flight, None
            self._outputs += self._commit(step)
        self._send()
        if self._num_failed_steps >= self._max_failed_steps:
            raise EngineFailed(f"{self._num_failed_steps} steps failed one after the other.")

    def _begin_step(self) -> InFlight | None:
        """Launch what the scheduler plans, or what other replicas need of this one."""
        plan = self._scheduler.schedule()
        if self._wave is not None:
            try:
                plan = self._wave.turn(plan, is_awake=self._desk.is_awake)
            except EngineAsleep as error:
                return None if plan is None else self._give_up(plan, error)
        return None if plan is None else self._launch(plan)

    def _receive(self) -> Sequence[EngineMessage]:
        if self._is_busy or (self._wave is not None and self._wave.is_on):
            self._is_checked = False
            return self._mailbox.receive(0.0)
        timeout_s = max(0.0, self._stats_due_s - self._clock())
        if self._scheduler.is_compiling:
            timeout_s = min(timeout_s, COMPILING_INTERVAL_S)
        if self._desk.is_busy:
            timeout_s = min(timeout_s, ORDER_INTERVAL_S)
        messages = self._mailbox.receive(timeout_s)
        if not messages and not self._is_checked:
            self._check()
        return messages

    def _take(self, message: EngineMessage) -> list[Addressed]:
        scheduler = self._scheduler
        try:
            if isinstance(message, Submit):
                if not self._desk.is_awake:
                    return [refuse(message, ErrorInfo(EngineAsleep.code, "The engine sleeps."))]
                return scheduler.add(message)
            if isinstance(message, Abort):
                return scheduler.abort(message.server, message.request_id)
            if isinstance(message, Order):
                self._desk.put(message)
                return []
            if isinstance(message, Wake):
                if self._wave is not None:
                    self._wave.woken(message.number)
                return []
            scheduler.reset_caches(prefix=message.prefix, images=message.images)
        except Exception:
            log.exception("A message could not be taken")
            if isinstance(message, Submit):
                error = ErrorInfo(EngineFailed.code, "The engine could not take the request.")
                return [refuse(message, error)]
        return []

    def _carry_out_orders(self) -> None:
        """Begin what waits, and note what is done. Before the engine sleeps, requests that have
        not ended end, and the caches, whose memory goes, are forgotten."""
        if self._desk.wants_quiet:
            step, self._in_flight = self._in_flight, None
            if step is not None:
                self._outputs += self._commit(step)
            error = ErrorInfo(EngineAsleep.code, "The engine was put to sleep.")
            self._outputs += self._scheduler.end_all(error)
            self._scheduler.reset_caches(prefix=True, images=True)
        done = self._desk.turn()
        if done:
            self._orders += done
            self._stats_due_s = self._clock()  # they tell the new state

    def _launch(self, plan: StepPlan) -> InFlight:
        if self._meter is not None:
            self._meter.count(plan)
        try:
            return self._executor.launch(plan)
        except Exception as error:
            return FailedLaunch(plan, error)

    def _give_up(self, plan: StepPlan, error: Exception) -> FailedLaunch:
        """Of a plan whose work cannot be done, the rest is: later plans rely on its rows."""
        self._launch(replace(plan, encode=(), work=(), waits_for_masks=False))
        return FailedLaunch(plan, error)

    def _commit(self, step: InFlight) -> list[Addressed]:
        try:
            result = step.result()
        except ReplicaLost:
            raise
        except EngineAsleep as asleep:
            return self._scheduler.fail(step.plan, ErrorInfo(asleep.code, asleep.message))
        except Exception as cause:
            if self._wave is not None:
                text = f"step {step.plan.step} failed, in which other replicas took part"
                raise ReplicaLost(text) from cause
            log.exception("Step %d failed", step.plan.step)
            self._num_failed_steps += 1
            error = ErrorInfo(StepFailed.code, "The step that computed this request failed.")
            return self._scheduler.fail(step.plan, error)
        self._num_failed_steps = 0
        if step.plan.is_idle:
            self._scheduler.note_encoded(result)
            return []
        return self._scheduler.commit(step.plan, result)

    def _send(self) -> None:
        by_server: defaultdict[int, list[Output]] = defaultdict(list)
        for server, output in self._outputs:
            by_server[server].append(output)
        self._outputs.clear()
        done: defaultdict[int, list[OrderDone]] = defaultdict(list)
        for server, order in self._orders:
            done[server].append(order)
            by_server[server] += ()
        self._orders.clear()
        stats = None
        now_s = self._clock()
        if now_s >= self._stats_due_s:
            self._stats_due_s = now_s + STATS_INTERVAL_S
            stats = self._stats()
            for server in self._servers:
                by_server[server] += ()
        for server, its_outputs in by_server.items():
            self._mailbox.send(server, Outputs(tuple(its_outputs), stats, tuple(done[server])))

    def _stats(self) -> EngineStats:
        stats = msgspec.structs.replace(
            self._scheduler.stats(),
            sleep_level=self._desk.sleep_level,
            is_profiling=self._desk.is_profiling,
            experts=self._expert_stats(),
            idle_steps=0 if self._wave is None else self._wave.num_idle_steps,
        )
        if (meter := self._meter) is None:
            return stats
        return msgspec.structs.replace(
            stats,
            estimated_flops=meter.flops,
            estimated_read_bytes=meter.read_bytes,
            estimated_written_bytes=meter.written_bytes,
        )

    def _expert_stats(self) -> ExpertStats | None:
        if self._expert_meter is None:
            return None
        # An engine that goes to sleep is moving its counters.
        return self._expert_meter.stats(reads=self._desk.is_awake)

    def _check(self) -> None:
        self._is_checked = True
        violations = self._scheduler.roster.check()
        self.num_violations += len(violations)
        for violation in violations:
            log.error("Invariant violated: %s", violation)

    def _end(self) -> None:
        step, self._in_flight = self._in_flight, None
        if step is not None:
            try:
                self._outputs += self._commit(step)
            except Exception:
                log.exception("The last step could not be committed")
        error = ErrorInfo(EngineDied.code, "The engine is stopping.")
        for message in self._mailbox.receive(0.0):
            if isinstance(message, Submit):
                self._outputs.append(refuse(message, error))
        self._outputs += self._scheduler.end_all(error)
        self._send()
        self._desk.close()
