"""ServerWorld: the whole server in one thread: application, client tower, engines, clients, time.

The application, the client of the engines, schedulers, engine loops and page pools are the real
ones. Simulated are the device (`SimulatedExecutor`), the lines between processes, media, the HTTP
connections, and time.
"""

from __future__ import annotations

import asyncio
import functools
import random
import re
from typing import Any

import msgspec

from glimt.api.app import create_app
from glimt.api.params import SamplingDefaults
from glimt.api.state import ApiState, HttpLimits, Lifecycle
from glimt.frontend.client import EngineClient
from glimt.frontend.grammars import GrammarChecker
from glimt.metrics import Metrics
from glimt.wire import Abort, Outputs, Submit
from tests.simulation.connection import Connection
from tests.simulation.engines import EngineProcess, info_of
from tests.simulation.event_loop import SimulatedLoop
from tests.simulation.judge import Judge
from tests.simulation.media import SimulatedMedia
from tests.simulation.oracle import EOS, USER
from tests.simulation.story import BODY_TIMEOUT_S, MAX_STALLED_S, MODEL, Ask, Death, Story
from tests.support.grammars import tiny_compiler
from tests.support.prompts import renderer, tokenizer

PATIENCE_S = 200.0  # more than any request may take, in virtual seconds
_GAUGE = re.compile(
    rb"^(?:vllm:num_requests_(?:running|waiting)|vllm:kv_cache_usage_perc"
    rb"|glimt:num_requests_preparing)\{.*\} (.*)$",
    re.MULTILINE,
)
_COUNT = re.compile(
    rb"^(vllm:request_success|glimt:http_responses)_total\{.*\} (.*)$", re.MULTILINE
)


def _new_metrics() -> Metrics:
    return Metrics(model_name=MODEL, max_model_len=1024)


# Making them takes as long as all the rest of a story, so only stories that look at them have
# their own.
_shared_metrics = functools.cache(_new_metrics)


class ServerWorld:
    """One story, played by `run`."""

    def __init__(self, seed: int) -> None:
        self.story = story = Story(seed)
        self.trace: list[tuple[Any, ...]] = []
        self.problems: list[str] = []
        self.engines: list[EngineProcess] = []  # all incarnations
        self.connections: list[Connection] = []
        self.num_answers = 0
        self._rng = random.Random(seed ^ 0x5EED)
        self.loop = SimulatedLoop(self._rng, story.busy_s)
        self._metrics = _new_metrics() if story.scrapes else _shared_metrics()
        self.client = EngineClient(
            clock=self.loop.time, metrics=self._metrics, max_waiting=story.max_waiting
        )
        self.media = SimulatedMedia(self._rng, story.media_s, story.full_media)
        self._lifecycle = Lifecycle()
        self._app = create_app(self._make_state())
        self._current: dict[int, EngineProcess] = {}  # by index
        self._open: dict[int, Connection] = {}  # by ask
        # Submits at an engine, unanswered and not aborted, by request id: the choice's seed.
        self._running: dict[int, int] = {}
        self._engine_of: dict[int, EngineProcess] = {}
        self._tasks: list[asyncio.Task[None]] = []

    def _make_state(self) -> ApiState:
        story = self.story
        return ApiState(
            served_names=(MODEL,),
            model_name=MODEL,
            version="1",
            client=self.client,
            renderer=renderer(max_model_len=story.limits.max_model_len),
            media=self.media,
            tokenizer=tokenizer(),
            grammars=GrammarChecker(tiny_compiler()),
            metrics=self._metrics,
            lifecycle=self._lifecycle,
            defaults=SamplingDefaults(eos_token_ids=(EOS, USER)),
            clock=self.loop.time,
            wall_clock=self.loop.time,
            random=self._rng,
            seeds=self._rng,
            started_at=0,
            forget_pixels=lambda: None,
            api_keys=story.keys,
            limits=HttpLimits(body_timeout_s=BODY_TIMEOUT_S, max_stalled_s=MAX_STALLED_S),
            parse_reasoning=story.parse_reasoning,
            priority_policy=story.limits.policy == "priority",
        )

    def run(self) -> None:
        """Play the story to its end. Raises AssertionError with all that went wrong."""
        try:
            self.loop.run_until_complete(self._play())
            self._judge()
        finally:
            for handle in asyncio.all_tasks(self.loop):
                handle.cancel()
            self.loop.run_until_complete(asyncio.sleep(0.1))
            self.loop.close()
        if self.problems:
            raise AssertionError("\n".join(self.problems[:10]))

    def note(self, *event: Any) -> None:
        """Something happened that the world outside can see."""
        self.trace.append((self.loop.time(), *event))

    # -------------------------------------------------------------------------------- story

    async def _play(self) -> None:
        story, loop = self.story, self.loop
        for index in range(story.num_engines):
            self._start_engine(index)
        for death in story.deaths:
            loop.call_later(death.at_s, self._kill, death)
        for ask in story.asks:
            loop.call_later(ask.arrival_s, self._arrive, ask)
        if story.drain_s is not None:
            loop.call_later(story.drain_s, self._drain)
        await asyncio.sleep(story.asks[-1].arrival_s + 0.2 + (story.drain_s or 0.0))
        await asyncio.wait(self._tasks, timeout=PATIENCE_S)
        await self._settle()
        if story.scrapes:
            await self._scrape()
        for engine in self._current.values():
            if engine.is_alive:
                engine.end()
        await asyncio.sleep(1.0)
        left = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        self.problems += [f"a task is left: {task}" for task in left]

    async def _settle(self) -> None:
        """What clients left behind must come to an end, too."""
        try:
            await asyncio.wait_for(self.client.drain(), PATIENCE_S)
        except TimeoutError:
            self.problems.append(f"{self.client.num_open} submits are never answered")
        if self.client.num_open or self.client.num_preparing:
            self.problems.append("the client says it is idle and is not")
        await asyncio.sleep(1.2)  # the last statistics

    def _arrive(self, ask: Ask) -> None:
        connection = Connection(self.loop, self._rng, ask, self.note)
        self.connections.append(connection)
        self._tasks.append(self.loop.create_task(self._serve(connection)))

    async def _serve(self, connection: Connection) -> None:
        """What an HTTP server does with a request."""
        ask = connection.ask
        self.note("ask", ask.index)
        self._open[ask.index] = connection
        connection.may_be_unready |= self._lifecycle.is_draining or not self.client.num_engines
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": ask.method,
            "path": ask.path,
            "raw_path": ask.path.encode(),
            "root_path": "",
            "query_string": b"",
            "headers": ask.headers,
            "client": ("127.0.0.1", 5000),
        }
        try:
            await self._app(scope, connection.receive, connection.send)
        except Exception as error:
            self.problems.append(f"request {ask.index}: the application raised {error!r}")
        connection.close()
        del self._open[ask.index]
        self.note("end", ask.index)
        self.num_answers += 1
        for seed in ask.choice_seeds if ask.sampled is not None else ():
            if seed in self._running.values():
                self.problems.append(f"request {ask.index} is over, and a choice of it still runs")

    def _drain(self) -> None:
        self.note("drain")
        self._lifecycle.is_draining = True
        self._tasks.append(self.loop.create_task(self._leave()))

    async def _leave(self) -> None:
        """As the server process does it."""
        try:
            await asyncio.wait_for(self.client.drain(), self.story.drain_timeout_s)
        except TimeoutError:
            self._unsettle()
            self.client.end_all("the server is shutting down")
            return
        # Who was still writing the request when the drain began may have begun just now.
        is_news = any(self.loop.time() - c.uploaded_s < 0.02 for c in self._open.values())
        if not is_news and (self.client.num_open or self.client.num_preparing):
            self.problems.append("the server leaves while requests are open")

    def _unsettle(self) -> None:
        """Those who ask now may be told that there is no engine for them."""
        for connection in self._open.values():
            connection.may_be_unready = True

    # ------------------------------------------------------------------------------ engines

    def _start_engine(self, index: int) -> None:
        story = self.story
        self.note("engine up", index)
        self._unsettle()
        engine = EngineProcess(
            self.loop,
            self._rng,
            story.limits,
            story.model,
            story.faults,
            step_s=story.step_s,
            line_s=story.line_s,
            overlap=story.overlap,
            deliver=lambda outputs: self._deliver(index, outputs),
            on_encode=self.media.on_encode,
            on_death=lambda engine: self._on_own_death(index, engine),
        )
        self._forget(self._current.get(index))
        self.engines.append(engine)
        self._current[index] = engine
        info = info_of(story.limits)
        self.client.add_engine(index, lambda message: self._send(engine, message), info)

    def _kill(self, death: Death) -> None:
        engine = self._current[death.engine]
        if not engine.is_alive:
            return
        self.note("engine dies", death.engine)
        self._unsettle()
        if death.is_graceful:
            engine.end()
        else:
            engine.die()
        self.loop.call_later(death.unnoticed_s, self._notice, death, engine)

    def _on_own_death(self, index: int, engine: EngineProcess) -> None:
        """Its steps failed without end."""
        self._unsettle()
        death = Death(index, 0.0, True, 0.01, 0.1)
        self.loop.call_later(death.unnoticed_s, self._notice, death, engine)

    def _notice(self, death: Death, engine: EngineProcess) -> None:
        self.note("engine down", death.engine)
        self._unsettle()
        if death.restart_s != 0.0:  # else it is replaced without a word
            self._forget(engine)
            self.client.remove_engine(death.engine, "the engine died; it is being restarted")
        if death.restart_s is not None:
            self.loop.call_later(death.restart_s, self._start_engine, death.engine)

    def _forget(self, engine: EngineProcess | None) -> None:
        """Nothing runs on it any more."""
        for request_id, where in self._engine_of.items():
            if where is engine:
                self._running.pop(request_id, None)

    def _send(self, engine: EngineProcess, message: msgspec.Struct) -> bool:
        story = self.story
        if isinstance(message, Submit):
            if self._rng.random() < story.full_line:
                return False
            self.note("submit", message.request_id)
            if message.request_id in self._engine_of:
                self.problems.append(f"the id {message.request_id} was used twice")
            self._running[message.request_id] = message.sampling.seed
            self._engine_of[message.request_id] = engine
            room = story.num_engines * story.limits.max_num_seqs + story.max_waiting
            if self.client.num_open >= room:
                self.problems.append("more requests were taken than there is room for")
        elif isinstance(message, Abort):
            self.note("abort", message.request_id)
            self._running.pop(message.request_id, None)
        return engine.send_to(message)

    def _deliver(self, index: int, outputs: Outputs) -> None:
        for output in outputs.outputs:
            self.note("output", index, output.request_id, output.token_ids, output.finish_reason)
            if output.finish_reason is not None:
                self._running.pop(output.request_id, None)
        self.client.deliver(index, outputs)

    # ------------------------------------------------------------------------------- judging

    async def _scrape(self) -> None:
        """What the server tells of itself once it is idle."""
        ask = Ask(index=-1, arrival_s=0.0, body=b"", parts=[(0.0, b"")], method="GET")
        ask.path = "/metrics"
        if self.story.keys:
            ask.headers = [(b"authorization", b"Bearer " + self.story.keys[0].encode())]
        num_answers = self.num_answers
        connection = Connection(self.loop, self._rng, ask, self.note)
        await self._serve(connection)
        text = bytes(connection.written)
        if any(float(value) for value in _GAUGE.findall(text)):
            self.problems.append(f"not idle at the end: {_GAUGE.findall(text)}")
        counts = {b"vllm:request_success": 0.0, b"glimt:http_responses": 0.0}
        for name, value in _COUNT.findall(text):
            counts[name] += float(value)
        if counts[b"glimt:http_responses"] != num_answers:
            self.problems.append(f"{counts} for {num_answers} requests")

    def _judge(self) -> None:
        judge = Judge(self.story)
        for connection in self.connections:
            for problem in judge.problems(connection):
                self.problems.append(f"request {connection.ask.index}: {problem}")
        if len(self.connections) != len(self.story.asks):
            self.problems.append("not everyone has asked")
        self.media.judge()
        for engine in self.engines:
            engine.judge()
            self.problems += engine.problems
        self.problems += [*self.media.problems, *self.loop.complaints]
