"""Several client processes under one schedule: started, told when to begin, heard, collected.

The schedule is one, and dealt out: worker k of n takes every n-th request. Nothing random happens
in a worker. A concurrency limit is a pipe that all share (see `gate.py`).
"""

import asyncio
import os
import sys
import tempfile
from asyncio.subprocess import PIPE, Process
from pathlib import Path
from types import TracebackType

import msgspec

from glimt.bench.load.plan import Plan
from glimt.bench.load.runner import Counters
from glimt.bench.load.worker import News, Results, Task
from glimt.errors import BadSettings

_STOP_S = 10.0


class Fleet:
    """The workers of one run; use it as a context, so that none stays behind."""

    def __init__(self, plan: Plan, shown: list[Counters]) -> None:
        """`shown` is filled with a picture of each worker, for the live display."""
        self._plan = plan
        self._shown = shown
        self._count = plan.options.load.workers
        self._folder = tempfile.TemporaryDirectory(prefix="glimt-bench-")
        self._processes: list[Process] = []
        self._pipe: tuple[int, int] | None = None

    async def __aenter__(self) -> "Fleet":
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for process in self._processes:
            await _end(process)
        for fd in self._pipe or ():
            os.close(fd)
        self._folder.cleanup()

    async def start(self) -> None:
        """Start them all; returns when each is ready. Raises BadSettings if one does not start."""
        folder = Path(self._folder.name)
        spans = self._plan.workload.store.write(folder / "bodies")
        if limit := self._plan.options.load.max_concurrency:
            self._pipe = os.pipe()
            os.write(self._pipe[1], b"+" * limit)
        for number in range(self._count):
            path = folder / f"task-{number}"
            path.write_bytes(msgspec.msgpack.encode(self._task(number, spans)))
            self._processes.append(
                await asyncio.create_subprocess_exec(
                    *(sys.executable, "-m", "glimt.bench.load.worker", str(path)),
                    stdin=PIPE,
                    stdout=PIPE,
                    stderr=None,
                    pass_fds=self._pipe or (),
                )
            )
        for process in self._processes:
            if await _line(process) != "ready":
                raise BadSettings("--workers: a client process did not start; see its error above")
        self._shown[:] = [Counters() for _ in self._processes]

    async def run(self, zero_ns: int) -> None:
        """Let them begin at `zero_ns`; returns when all are done."""
        for process in self._processes:
            await _tell(process, f"{zero_ns}\n")
        await self._listen()

    async def stop(self) -> None:
        """Have them end what they do and hand over what they have."""
        for process in self._processes:
            await _tell(process, "stop\n")
        await asyncio.wait_for(self._listen(), _STOP_S)

    def results(self) -> list[Results]:
        """What each brought; a worker that died brought nothing."""
        files = [self._results_file(number) for number in range(self._count)]
        return [
            msgspec.msgpack.decode(file.read_bytes(), type=Results)
            for file in files
            if file.exists()
        ]

    async def _listen(self) -> None:
        pairs = zip(self._processes, self._shown, strict=True)
        await asyncio.gather(*(self._follow(process, shown) for process, shown in pairs))

    async def _follow(self, process: Process, shown: Counters) -> None:
        while (line := await _line(process)) not in ("done", ""):
            msgspec.json.decode(line, type=News).tell(shown)

    def _task(self, number: int, spans: list[tuple[int, int]]) -> Task:
        plan = self._plan
        return Task(
            options=plan.options,
            target=plan.target,
            arrivals=plan.arrivals,
            seed=plan.seed,
            jobs=plan.workload.jobs,
            bodies=str(Path(self._folder.name) / "bodies"),
            spans=spans,
            number=number,
            count=self._count,
            gate=self._pipe,
            results=str(self._results_file(number)),
        )

    def _results_file(self, number: int) -> Path:
        return Path(self._folder.name) / f"results-{number}"


async def _end(process: Process) -> None:
    """Let it go: it ends by itself when nobody can give it orders any more."""
    if process.stdin is not None:
        process.stdin.close()
    try:
        await asyncio.wait_for(process.wait(), _STOP_S)
    except TimeoutError:
        process.kill()
        await process.wait()


async def _line(process: Process) -> str:
    if process.stdout is None:
        raise RuntimeError("the worker has no output")
    return (await process.stdout.readline()).decode().strip()


async def _tell(process: Process, line: str) -> None:
    if process.stdin is None:
        raise RuntimeError("the worker has no input")
    process.stdin.write(line.encode())
    await process.stdin.drain()
