"""One run from the ready check to the last answer: everything that touches the server, in order."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count, islice
from typing import Any

import numpy as np

from glimt.bench.events import HealthEvent, PowerEvent, RequestEvent, ServerEvent
from glimt.bench.load.bodies import DIALECTS, BodyStore
from glimt.bench.load.fleet import Fleet
from glimt.bench.load.gate import Gate, LocalGate, OpenGate
from glimt.bench.load.http import clock_ns
from glimt.bench.load.outcome import answer_of, judge, refusal
from glimt.bench.load.pacing import Pacer, watch_health
from glimt.bench.load.plan import Plan
from glimt.bench.load.power import Gpus
from glimt.bench.load.quiet import no_garbage_collection
from glimt.bench.load.runner import Counters, Early, Job, Pace, Recorder, Runner
from glimt.bench.load.schedule import endless_times
from glimt.bench.load.scrape import parse_metrics
from glimt.bench.load.worker import Results
from glimt.errors import BadSettings

_READY_PAUSE_S = 1.0
_SCRAPE_S = 1.0
_GPU_S = 0.2
_LOOK_S = 0.1  # between looks at whether the verdict is clear
_HEAD_START_NS = 50_000_000  # from the word to several processes until the run starts


@dataclass(kw_only=True)
class Observed:
    """What a run brought."""

    requests: list[RequestEvent] = field(default_factory=list)
    health: list[HealthEvent] = field(default_factory=list)
    server: list[ServerEvent] = field(default_factory=list)
    power: list[PowerEvent] = field(default_factory=list)
    end_ns: int = 0
    notes: list[str] = field(default_factory=list)
    is_interrupted: bool = False


_PROFILE_CURE = (
    "; start it with --profiler-config (glimt serve: and --admin-key, given here as OPENAI_API_KEY)"
)


class Session:
    """Carries out a plan once."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._client = plan.target.client()
        self._side_client = plan.target.client()  # never waits for the load's connections
        self._pacer = Pacer()
        self._observed = Observed()
        self._shown: list[Counters] = []
        self._zero_ns = 0
        self._foreign: list[Results] = []
        self._gpus = Gpus() if plan.options.watch.gpu else None

    def counters(self) -> list[Counters]:
        """For the live display."""
        return self._shown

    async def run(self) -> Observed:
        """Run to the last answer, or until cancelled, which is noted. Raises BadSettings."""
        limit, workers = self._plan.options.load.max_concurrency, self._plan.options.load.workers
        await self._wait_until_ready()
        recorder = Recorder(
            self._plan.options.target.backend,
            keep_texts=self._plan.options.output.keeps_texts,
            early=self._plan.early,
        )
        gate = LocalGate(limit) if limit else OpenGate()
        warm = self._runner(self._plan.warmups.store, recorder, gate)
        runner = self._runner(self._plan.workload.store, recorder, gate)
        probes = self._runner(self._probe_store(), recorder, OpenGate(), own_client=True)
        self._shown = [runner.counters]
        await self._read_metrics()
        load = self._alone(warm, runner, recorder) if workers == 1 else self._shared(warm, recorder)
        with no_garbage_collection():
            async with _beside(self._watchers(runner, probes)):
                await load
        await probes.cancel()
        await self._profile("stop")
        await self._read_metrics()
        return self._finish(recorder)

    async def _alone(self, warm: Runner, runner: Runner, recorder: Recorder) -> None:
        """The load from this process. When cancelled, what came so far is kept."""
        try:
            await self._begin(warm)
            self._zero_ns = clock_ns()
            if self._plan.early is None:
                await self._dispatch(runner)
            else:
                await self._until_clear(runner, self._plan.early)
            await runner.drain()
        except asyncio.CancelledError:
            self._note_interrupted()
            await warm.cancel()
            await runner.cancel()

    async def _dispatch(self, runner: Runner) -> None:
        timing = self._plan.timing
        await runner.dispatch(
            timing.timed_jobs(self._plan.workload.jobs),
            self._zero_ns,
            pace=timing.pace,
            stop_ns=timing.stop_ns(self._zero_ns),
        )

    async def _until_clear(self, runner: Runner, early: Early) -> None:
        """Dispatch, and wait for the answers, as long as the verdict is not clear.

        If it is kept, no more requests leave, and the caller waits for those that are open; if it
        is missed, these are given up, so that the server is free for the next run.
        """
        dispatching = asyncio.create_task(self._dispatch(runner))
        try:
            while not (dispatching.done() and runner.counters.in_flight == 0):
                await asyncio.sleep(_LOOK_S)
                if (verdict := early.look(clock_ns(), runner.waiting())) is not None:
                    self._observed.notes.append(f"stopped early: {early.why}")
                    dispatching.cancel()
                    if verdict == "missed":
                        await runner.cancel()
                    break
        finally:
            dispatching.cancel()
        results = await asyncio.gather(dispatching, return_exceptions=True)
        if isinstance(results[0], Exception):
            raise results[0]

    async def _shared(self, warm: Runner, recorder: Recorder) -> None:
        """The load from several processes; warm-ups are this one's."""
        async with Fleet(self._plan, self._shown) as fleet:
            await fleet.start()
            await self._begin(warm)
            self._zero_ns = clock_ns() + _HEAD_START_NS
            try:
                await fleet.run(self._zero_ns)
            except asyncio.CancelledError:
                self._note_interrupted()
                await fleet.stop()
            self._foreign = fleet.results()

    def _note_interrupted(self) -> None:
        self._observed.is_interrupted = True
        self._observed.notes.append("interrupted: the figures are those of a part of the run")
        task = asyncio.current_task()
        if task is not None:
            task.uncancel()

    async def _begin(self, warm: Runner) -> None:
        """Warm-ups; a profile is of the run alone, unless they go over into it."""
        overlaps = self._plan.options.load.warmup_overlap
        if overlaps:
            await self._profile("start")
        await self._warm_up(warm)
        if not overlaps:
            await self._profile("start")

    async def _warm_up(self, runner: Runner) -> None:
        """Unmeasured requests: all at once within the limit, or at the run's own pace."""
        plan, jobs = self._plan, self._plan.warmups.jobs
        if not jobs:
            return
        overlaps = plan.options.load.warmup_overlap
        times = np.zeros(len(jobs))
        if overlaps:
            times = np.fromiter(
                islice(endless_times(plan.arrivals, plan.seed + 1), len(jobs)), float
            )
        pairs = [(float(time), job) for time, job in zip(times, jobs, strict=True)]
        is_gated = bool(plan.options.load.max_concurrency) and not times.any()
        pace: Pace = "gate" if is_gated else "schedule"
        await runner.dispatch(pairs, clock_ns(), phase="warmup", pace=pace)
        if not overlaps:
            await runner.drain()

    def _runner(
        self, store: BodyStore, recorder: Recorder, gate: Gate, *, own_client: bool = False
    ) -> Runner:
        client = self._side_client if own_client else self._client
        return Runner(
            client,
            self._plan.target.head(client),
            self._plan.target.request_id_prefix,
            store,
            recorder,
            gate,
            self._pacer,
            backend=self._plan.options.target.backend,
        )

    def _watchers(self, runner: Runner, probes: Runner) -> list[Coroutine[Any, Any, None]]:
        options = self._plan.options
        watchers = [watch_health(self._observed.health.append, lambda: runner.counters.in_flight)]
        if options.watch.server_metrics:
            watchers.append(self._scrape())
        if self._gpus is not None:
            watchers.append(self._watch_gpus(self._gpus))
        if options.load.probe_request_rate > 0:
            watchers.append(self._probe(probes))
        return watchers

    async def _wait_until_ready(self) -> None:
        """Ask for one token until it comes. Raises BadSettings when the time is up."""
        limit_s = self._plan.options.target.ready_check_timeout_sec
        deadline_ns = clock_ns() + limit_s * 1_000_000_000
        dialect = DIALECTS[self._plan.options.target.backend]
        while limit_s > 0:
            exchange = await self._side_client.send(
                self._plan.target.head(self._side_client), self._plan.probe_body
            )
            failure, error = judge(exchange, answer_of(exchange, dialect))
            if failure is None:
                return
            if clock_ns() > deadline_ns:
                raise BadSettings(f"the server is not ready after {limit_s} s: {error}")
            await asyncio.sleep(_READY_PAUSE_S)

    async def _profile(self, what: str) -> None:
        if not self._plan.options.watch.profile:
            return
        target = self._plan.target
        head = self._side_client.head("POST", f"/{what}_profile", target.headers)
        exchange = await self._side_client.send(head, b"")
        if exchange.status != 200:
            why = exchange.error or refusal(exchange)
            cure = _PROFILE_CURE if what == "start" else ""
            self._observed.notes.append(f"--profile: the server did not {what} it: {why}{cure}")

    async def _scrape(self) -> None:
        """A sample of the server's metrics each second."""
        while (failure := await self._read_metrics()) is None:
            await asyncio.sleep(_SCRAPE_S)
        self._observed.notes.append(f"--server-metrics: /metrics cannot be read: {failure}")

    async def _read_metrics(self) -> str | None:
        """One reading of the server's metrics; what was wrong if there is none."""
        exchange = await self._side_client.get("/metrics", self._plan.target.headers)
        if exchange.status != 200 or exchange.failure is not None:
            return exchange.error or f"HTTP {exchange.status}"
        values = parse_metrics(exchange.body())
        self._observed.server.append(ServerEvent(at_ns=exchange.end_ns, values=values))
        return None

    async def _watch_gpus(self, gpus: Gpus) -> None:
        """A sample of the GPUs five times a second."""
        while True:
            sample = gpus.sample(clock_ns())
            if sample is not None:
                self._observed.power.append(sample)
            await asyncio.sleep(_GPU_S)

    async def _probe(self, runner: Runner) -> None:
        """Small requests at exponential gaps, beside the load, until cancelled."""
        draw = np.random.default_rng((self._plan.seed, 9))
        for number in count():
            await asyncio.sleep(draw.exponential(1 / self._plan.options.load.probe_request_rate))
            job = Job(
                index=number,
                conversation=number,
                body=0,
                output_tokens=1,
                text_tokens=None,
                num_images=0,
                image_pixels=0,
            )
            await runner.dispatch([(0.0, job)], clock_ns(), phase="probe")

    def _probe_store(self) -> BodyStore:
        store = BodyStore()
        store.add(self._plan.probe_body)
        return store

    def _finish(self, recorder: Recorder) -> Observed:
        observed = self._observed
        observed.requests = recorder.events(self._zero_ns)
        samples: list[HealthEvent | ServerEvent | PowerEvent] = [
            *observed.health,
            *observed.server,
            *observed.power,
        ]
        for sample in samples:
            sample.at_ns -= self._zero_ns
        if self._foreign:
            observed.health = [each for results in self._foreign for each in results.health]
            observed.health.sort(key=lambda each: each.at_ns)
            theirs = [each for results in self._foreign for each in results.requests]
            observed.requests += sorted(theirs, key=lambda each: each.index)
        ends = [event.end_ns for event in observed.requests if event.phase == "run"]
        observed.end_ns = max(ends, default=0)
        self._pacer.close()
        self._client.close()
        self._side_client.close()
        return observed


@asynccontextmanager
async def _beside(coroutines: list[Coroutine[Any, Any, None]]) -> AsyncIterator[None]:
    """Runs coroutines while a block runs, and ends them with it; their errors are its errors."""
    tasks = [asyncio.create_task(each) for each in coroutines]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
    for result in results:
        if isinstance(result, Exception):
            raise result
