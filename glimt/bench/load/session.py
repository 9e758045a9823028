"""One run from the ready check to the last answer: everything that touches the server, in order."""

import asyncio
import gc
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from itertools import count, cycle, islice
from typing import Any

import msgspec
import numpy as np

from glimt.bench.events import HealthEvent, RequestEvent, ServerEvent
from glimt.bench.load.bodies import DIALECTS, BodyStore
from glimt.bench.load.gate import Gate, LocalGate, OpenGate
from glimt.bench.load.http import clock_ns
from glimt.bench.load.outcome import answer_of, judge
from glimt.bench.load.pacing import Pacer, watch_health
from glimt.bench.load.prepare import Workload
from glimt.bench.load.runner import Counters, Job, Pace, Recorder, Runner
from glimt.bench.load.schedule import Arrivals, arrival_times, endless_times
from glimt.bench.load.scrape import parse_metrics
from glimt.bench.options import Options
from glimt.bench.target import Target
from glimt.errors import BadSettings

_READY_PAUSE_S = 1.0
_SCRAPE_S = 1.0

Timed = tuple[float, Job]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All that a run needs; nothing is decided after this."""

    options: Options
    target: Target
    workload: Workload
    warmups: Workload
    probe_body: bytes
    arrivals: Arrivals
    seed: int

    @property
    def is_self_timed(self) -> bool:
        """Whether the prompts bring their own times."""
        load = self.options.load
        return load.self_timed is not False and self.options.data.dataset_name == "timed_trace"

    @property
    def is_paced_by_gate(self) -> bool:
        """Whether only the concurrency limit says when a request leaves."""
        load = self.options.load
        no_rate = load.ramp_up_strategy is None and np.isinf(load.request_rate)
        return no_rate and load.max_concurrency is not None and not self.is_self_timed

    def timed_jobs(self) -> Iterator[Timed]:
        """Jobs with their times in seconds; without end if the run is limited by time."""
        jobs = self.workload.jobs
        if self.is_self_timed:
            yield from sorted(((job.at_s or 0.0, job) for job in jobs), key=lambda pair: pair[0])
        elif self.options.load.duration is None:
            times = arrival_times(self.arrivals, len(jobs), self.seed)
            yield from ((float(time), job) for time, job in zip(times, jobs, strict=True))
        else:
            yield from zip(endless_times(self.arrivals, self.seed), _rounds(jobs), strict=False)


@dataclass(kw_only=True)
class Observed:
    """What a run brought."""

    requests: list[RequestEvent] = field(default_factory=list)
    health: list[HealthEvent] = field(default_factory=list)
    server: list[ServerEvent] = field(default_factory=list)
    end_ns: int = 0
    notes: list[str] = field(default_factory=list)


class Session:
    """Carries out a plan once."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._client = plan.target.client()
        self._side_client = plan.target.client()  # never waits for the load's connections
        self._pacer = Pacer()
        self._observed = Observed()
        self._runners: list[Runner] = []

    def counters(self) -> list[Counters]:
        """For the live display."""
        return [runner.counters for runner in self._runners]

    async def run(self) -> Observed:
        """Run to the last answer, or until cancelled, which is noted. Raises BadSettings."""
        load = self._plan.options.load
        await self._wait_until_ready()
        recorder = Recorder(self._plan.options.target.backend, keep_texts=self._keeps_texts())
        gate = LocalGate(load.max_concurrency) if load.max_concurrency else OpenGate()
        warm = self._runner(self._plan.warmups.store, recorder, gate)
        runner = self._runner(self._plan.workload.store, recorder, gate)
        probes = self._runner(self._probe_store(), recorder, OpenGate(), own_client=True)
        self._runners = [runner]
        await self._profile("start")
        zero_ns = clock_ns()
        try:
            async with _beside(self._watchers(runner, probes)):
                await self._warm_up(warm)
                with _no_garbage_collection():
                    zero_ns = clock_ns()
                    await self._dispatch(runner, zero_ns)
                    await runner.drain()
        except asyncio.CancelledError:
            self._observed.notes.append("interrupted: the figures are those of a part of the run")
            _uncancel()
        for each in (warm, runner, probes):
            await each.cancel()
        await self._profile("stop")
        return self._finish(recorder, runner, zero_ns)

    async def _dispatch(self, runner: Runner, zero_ns: int) -> None:
        plan, duration = self._plan, self._plan.options.load.duration
        await runner.dispatch(
            plan.timed_jobs(),
            zero_ns,
            pace="gate" if plan.is_paced_by_gate else "schedule",
            stop_ns=None if duration is None else zero_ns + round(duration * 1e9),
        )

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
        if options.figures.server_metrics:
            watchers.append(self._scrape())
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
        if not self._plan.options.figures.profile:
            return
        target = self._plan.target
        head = self._side_client.head("POST", f"/{what}_profile", target.headers)
        exchange = await self._side_client.send(head, b"")
        if exchange.status != 200:
            why = exchange.error or f"HTTP {exchange.status}"
            self._observed.notes.append(f"--profile: the server did not {what} it: {why}")

    async def _scrape(self) -> None:
        """A sample of the server's metrics each second."""
        for number in count():
            exchange = await self._side_client.get("/metrics", self._plan.target.headers)
            if exchange.status == 200 and exchange.failure is None:
                values = parse_metrics(exchange.body())
                self._observed.server.append(ServerEvent(at_ns=exchange.end_ns, values=values))
            elif number == 0:
                why = exchange.error or f"HTTP {exchange.status}"
                self._observed.notes.append(f"--server-metrics: /metrics cannot be read: {why}")
                return
            await asyncio.sleep(_SCRAPE_S)

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

    def _keeps_texts(self) -> bool:
        output = self._plan.options.output
        return output.save_detailed or output.raw is not None

    def _finish(self, recorder: Recorder, runner: Runner, zero_ns: int) -> Observed:
        observed = self._observed
        observed.requests = recorder.events(zero_ns)
        for sample in observed.health:
            sample.at_ns -= zero_ns
        for reading in observed.server:
            reading.at_ns -= zero_ns
        observed.end_ns = max(runner.last_end_ns - zero_ns, 0)
        self._pacer.close()
        self._client.close()
        self._side_client.close()
        return observed


def _rounds(jobs: list[Job]) -> Iterator[Job]:
    """The jobs over and over, each time under new numbers."""
    size = sum(1 + len(job.later) for job in jobs)
    for number, job in enumerate(cycle(jobs)):
        shift = number // len(jobs) * size
        yield msgspec.structs.replace(
            job,
            index=job.index + shift,
            conversation=number,
            later=tuple(
                msgspec.structs.replace(turn, index=turn.index + shift) for turn in job.later
            ),
        )


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


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """No pauses for it while the clock runs; what is there already is never looked at again."""
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()


def _uncancel() -> None:
    task = asyncio.current_task()
    if task is not None:
        task.uncancel()
