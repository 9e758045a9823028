"""A client process of several: `python -m glimt.bench.load.worker TASK`.

It maps the bodies that all share, says that it is ready, starts at the instant that it is told,
tells how far it is, and leaves its events in a file. Orders and news are lines.
"""

import asyncio
import mmap
import signal
import sys
from collections.abc import Coroutine
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
import uvloop

from glimt.bench.events import HealthEvent, RequestEvent
from glimt.bench.load.gate import Gate, OpenGate, SharedGate
from glimt.bench.load.pacing import Pacer, watch_health
from glimt.bench.load.quiet import no_garbage_collection
from glimt.bench.load.runner import Counters, Job, Recorder, Runner
from glimt.bench.load.schedule import Arrivals
from glimt.bench.load.timing import Timing
from glimt.bench.options import Options
from glimt.bench.target import Target

_NEWS_S = 0.25


class Task(msgspec.Struct, kw_only=True):
    """What one worker is to do: its part of the whole schedule."""

    options: Options
    target: Target
    arrivals: Arrivals
    seed: int
    jobs: list[Job]
    bodies: str  # file
    spans: list[tuple[int, int]]  # where each body lies in it
    number: int  # of this worker
    count: int  # of workers
    gate: tuple[int, int] | None  # reading and writing end of the shared limit
    results: str  # file


class News(msgspec.Struct, kw_only=True):
    """How far a worker is."""

    started: int = 0
    in_flight: int = 0
    done: int = 0
    failed: int = 0
    events: int = 0
    ttfts_ns: list[int] = []
    last_error: str = ""

    def tell(self, counters: Counters) -> None:
        """Bring the parent's picture of this worker up to date."""
        for name in ("started", "in_flight", "done", "failed", "events", "last_error"):
            setattr(counters, name, getattr(self, name))
        counters.ttfts_ns.extend(self.ttfts_ns)


class Results(msgspec.Struct, kw_only=True):
    """What a worker brought; times count from the start of the run."""

    requests: list[RequestEvent]
    health: list[HealthEvent]


class MappedBodies:
    """Bodies in a file that all workers map."""

    def __init__(self, path: str, spans: list[tuple[int, int]]) -> None:
        with open(path, "rb") as file:
            self._map = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        self._spans = spans

    def __getitem__(self, number: int) -> memoryview:
        start, length = self._spans[number]
        return self._map[start : start + length]


async def work(task: Task) -> None:
    """Wait for the word, run, and write the results."""
    orders = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
    client, pacer = task.target.client(), Pacer()
    gate: Gate = OpenGate() if task.gate is None else SharedGate(*task.gate)
    backend = task.options.target.backend
    recorder = Recorder(backend, keep_texts=task.options.output.keeps_texts)
    runner = Runner(
        client,
        task.target.head(client),
        task.target.request_id_prefix,
        MappedBodies(task.bodies, task.spans),
        recorder,
        gate,
        pacer,
        backend=backend,
        worker=task.number,
    )
    _say("ready")
    word = await orders.readline()
    if not word:
        return  # interrupted before it began: nobody is there to give it
    zero_ns = int(word)
    health: list[HealthEvent] = []
    watchers = [
        asyncio.create_task(watch_health(health.append, lambda: runner.counters.in_flight)),
        asyncio.create_task(_news(runner.counters)),
    ]
    with no_garbage_collection():
        await _until_done_or_told(_carry_out(task, runner, zero_ns), orders)
    await runner.cancel()
    for watcher in watchers:
        watcher.cancel()
    for sample in health:
        sample.at_ns -= zero_ns
        sample.worker = task.number
    results = Results(requests=recorder.events(zero_ns), health=health)
    Path(task.results).write_bytes(msgspec.msgpack.encode(results))
    client.close()
    pacer.close()
    _say("done")


async def _carry_out(task: Task, runner: Runner, zero_ns: int) -> None:
    timing = Timing(task.options, task.arrivals, task.seed)
    mine = islice(timing.timed_jobs(task.jobs), task.number, None, task.count)
    await runner.dispatch(mine, zero_ns, pace=timing.pace, stop_ns=timing.stop_ns(zero_ns))
    await runner.drain()


async def _until_done_or_told(
    running: Coroutine[Any, Any, None], orders: asyncio.StreamReader
) -> None:
    """Until the work is done, or the parent says stop (or is gone)."""
    work_task = asyncio.create_task(running)
    told = asyncio.create_task(orders.readline())
    await asyncio.wait((work_task, told), return_when=asyncio.FIRST_COMPLETED)
    told.cancel()
    if not work_task.done():
        work_task.cancel()
    await asyncio.gather(work_task, told, return_exceptions=True)
    if not work_task.cancelled() and (error := work_task.exception()) is not None:
        raise error


async def _news(counters: Counters) -> None:
    """Tell how far this worker is, four times a second."""
    while True:
        await asyncio.sleep(_NEWS_S)
        news = News(
            started=counters.started,
            in_flight=counters.in_flight,
            done=counters.done,
            failed=counters.failed,
            events=counters.seen(),
            ttfts_ns=list(counters.ttfts_ns),
            last_error=counters.last_error,
        )
        counters.ttfts_ns.clear()
        _say(msgspec.json.encode(news).decode())


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main(path: str) -> None:
    """Entry point; Ctrl-C is the parent's to handle."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    task = msgspec.msgpack.decode(Path(path).read_bytes(), type=Task)
    uvloop.run(work(task))


if __name__ == "__main__":
    main(sys.argv[1])
