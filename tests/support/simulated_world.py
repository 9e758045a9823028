"""World: a whole engine with an injected clock and a seeded story of clients, in one thread.

A seed decides limits, arrivals, lengths, images, aborts, client departures in reaction to tokens,
cache resets, faults of the device and the moment of shutdown. `run` plays it through the real
loop, scheduler and page pool and proves that every request got its right tokens and one end.
"""

from __future__ import annotations

import heapq
import random
from collections import defaultdict

from glimt.engine.loop import EngineLoop
from glimt.engine.scheduler import Scheduler
from glimt.engine.simulated import Faults, SimulatedExecutor
from glimt.engine.simulated_model import SimulatedModel, expected_tokens
from glimt.errors import BadGrammar
from glimt.wire import Abort, EngineInbound, ImageSpan, Output, Outputs, ResetCaches, Submit
from tests.support.grammars import (
    DESCRIBED,
    SlowPool,
    answer_text,
    thought_tokens,
    tiny_compiler,
)
from tests.support.workload import make_submit, random_limits, random_submit

MAX_TURNS = 5000
ORACLE = tiny_compiler()
NO_FAULTS = Faults()


class World:
    """The clients' side of an engine: a mailbox, a clock, and a book of what was answered."""

    def __init__(self, seed: int) -> None:
        self.rng = rng = random.Random(seed)
        self.now_s = 100.0
        self.limits = random_limits(rng)
        thoughts = thought_tokens()
        self.model = SimulatedModel(
            self.limits.vocab_size, rng.choice([0.0, 0.05, 0.3]), (thoughts.begin, thoughts.end)
        )
        self.pool = SlowPool()
        self.num_constrained = 0
        self.submits: dict[int, Submit] = {}
        self.outputs: defaultdict[int, list[Output]] = defaultdict(list)
        self.ended: set[int] = set()
        self.problems: list[str] = []
        self.malformed: set[int] = set()
        self.num_turns = 0
        self._last_stats_s = self.now_s
        self._num_quiet_ticks = 0
        self._order = 0
        self._events: list[tuple[float, int, EngineInbound]] = []
        self._leave_probability = rng.choice([0.0, 0.02, 0.1])
        self._stop_at_turn = rng.randrange(5, 60) if rng.random() < 0.1 else MAX_TURNS
        self.faults = self._draw_faults(seed)
        self._write_story()
        self.scheduler = Scheduler(
            self.limits, clock=lambda: self.now_s, compiler=tiny_compiler(self.pool)
        )
        self.executor = SimulatedExecutor(
            self.limits.num_pages,
            self.limits.page_size,
            self.limits.image_cache_tokens,
            model=self.model,
            faults=self.faults,
            on_encode=self._on_encode,
        )
        self.loop = EngineLoop(
            self.scheduler,
            self.executor,
            self,
            servers=(0, 1),
            overlap=rng.random() < 0.8,
            clock=lambda: self.now_s,
            progress=self._on_turn,
            max_failed_steps=1000,
        )

    def run(self) -> None:
        """Play the story to its end. Raises AssertionError with all that went wrong."""
        self.loop.run()
        self._judge()
        if self.problems:
            raise AssertionError("\n".join(self.problems[:10]))

    # ---------------------------------------------------------------- Mailbox of the engine

    def receive(self, timeout_s: float) -> list[EngineInbound]:
        if timeout_s == 0.0:
            self.now_s += self.rng.random() * 0.02
        elif self._events and self._events[0][0] <= self.now_s + timeout_s:
            self.now_s = max(self.now_s, self._events[0][0])
        else:
            self.now_s += timeout_s
            self._num_quiet_ticks += 1
        messages = []
        while self._events and self._events[0][0] <= self.now_s:
            message = heapq.heappop(self._events)[2]
            messages.append(message)
            if isinstance(message, Submit):
                self.submits[message.request_id] = message
        if not self._events and self._num_quiet_ticks > 3 and not self.scheduler.has_requests:
            self.loop.stop()
        return messages

    def send(self, server: int, outputs: Outputs) -> None:
        if outputs.stats is not None and server == 0:
            if self.now_s - self._last_stats_s > 1.0:
                self.problems.append("no statistics for more than a second")
            self._last_stats_s = self.now_s
        for output in outputs.outputs:
            submit = self.submits[output.request_id]
            if submit.server != server:
                self.problems.append(f"request {output.request_id} answered to server {server}")
            if output.request_id in self.ended:
                self.problems.append(f"request {output.request_id} answered after its end")
            self.outputs[output.request_id].append(output)
            if output.finish_reason is not None:
                self.ended.add(output.request_id)
            if self.rng.random() < self._leave_probability:
                self._tell(self.now_s, Abort(server, output.request_id))

    # -------------------------------------------------------------------------------- story

    def _write_story(self) -> None:
        rng = self.rng
        time_s = self.now_s
        pace_s = rng.choice([0.0, 0.02, 0.3])
        for request_id in range(rng.randint(1, 9)):
            time_s += rng.random() * pace_s
            submit = random_submit(rng, request_id, self.limits, grammars=True)
            if rng.random() < 0.03:
                self.malformed.add(request_id)
                submit = make_submit(request_id, [2, -1], server=submit.server)
            self._tell(time_s, submit)
            if rng.random() < 0.1:
                self._tell(time_s + rng.random() * 0.2, Abort(submit.server, request_id))
        if rng.random() < 0.3:
            self._tell(self.now_s + rng.random() * 0.3, ResetCaches())

    def _draw_faults(self, seed: int) -> Faults:
        rng = self.rng
        if rng.random() < 0.6:
            return NO_FAULTS
        return Faults(
            seed=seed,
            raise_in_launch=rng.choice([0.0, 0.03]),
            raise_in_result=rng.choice([0.0, 0.03]),
            nan=rng.choice([0.0, 0.02]),
            bad_image=rng.choice([0.0, 0.2]),
        )

    def _tell(self, time_s: float, message: EngineInbound) -> None:
        self._order += 1
        heapq.heappush(self._events, (time_s, self._order, message))

    # ------------------------------------------------------------------------------- checks

    def _on_turn(self) -> None:
        self.num_turns += 1
        if self.rng.random() < 0.7:
            self.pool.work()
        if self.num_turns >= self._stop_at_turn:
            self.loop.stop()
        self.problems += self.scheduler.roster.check()
        for request in self.scheduler.roster.all():
            if request.num_preemptions > 3:
                self.problems.append(f"{request.key} was preempted more than three times")

    def _on_encode(self, span: ImageSpan) -> None:
        if span.pixels.offset in self.ended:
            self.problems.append(f"pixels of request {span.pixels.offset} read after its end")

    def _judge(self) -> None:
        if self.num_turns >= MAX_TURNS:
            self.problems.append(f"not finished after {MAX_TURNS} turns")
        if self.loop.num_violations or self.executor.violations:
            self.problems += [*self.executor.violations, f"{self.loop.num_violations} violations"]
        if self.scheduler.roster.pool.num_used or self.scheduler.has_requests:
            self.problems.append("pages or requests are left")
        self.problems += self.scheduler.roster.check()
        if self.faults == NO_FAULTS and self.executor.num_missing_embeddings:
            self.problems.append("an embedding was missing without a fault")
        for request_id, submit in self.submits.items():
            self._judge_request(request_id, submit)

    def _judge_request(self, request_id: int, submit: Submit) -> None:
        outputs = self.outputs[request_id]
        if request_id not in self.ended:
            self.problems.append(f"request {request_id} was never ended")
            return
        end = outputs[-1]
        if request_id in self.malformed:
            if end.error is None or end.error.code not in ("invalid_request", "not_ready"):
                self.problems.append(f"malformed request {request_id} ended with {end}")
            return
        mine = [token for output in outputs for token in output.token_ids]
        tokens, finish_reason = self._expected(submit)
        if end.finish_reason in ("stop", "length"):
            if (mine, end.finish_reason) != (tokens, finish_reason):
                self.problems.append(f"request {request_id} got {mine}, not {tokens}")
        elif mine != tokens[: len(mine)]:
            self.problems.append(f"request {request_id} got {mine} of {tokens}")
        self._judge_grammar(submit, mine, end)
        may_fail = self.faults != NO_FAULTS or finish_reason == "error"
        if end.error is not None and not may_fail and end.error.code != "not_ready":
            self.problems.append(f"request {request_id} failed without a fault: {end.error}")

    def _expected(self, submit: Submit) -> tuple[list[int], str]:
        compiled = None
        if submit.sampling.grammar is not None:
            try:
                compiled = ORACLE.start(submit.sampling.grammar.text).result()
            except BadGrammar:
                return [], "error"
        return expected_tokens(self.model, submit, self.limits.max_model_len, compiled)

    def _judge_grammar(self, submit: Submit, token_ids: list[int], end: Output) -> None:
        """An answer that ended by itself is as its grammar says, by other means than a matcher."""
        sampling = submit.sampling
        if sampling.grammar is None or end.finish_reason != "stop":
            return
        if end.stop_token_id in sampling.stop_token_ids:
            return  # cut
        self.num_constrained += 1
        text = answer_text(token_ids, sampling)
        if text is None or not DESCRIBED[sampling.grammar.text](text):
            self.problems.append(f"request {submit.request_id} answered {text!r}")
