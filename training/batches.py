"""Feeds: where fresh micro-batches come from. Worker processes, or this process itself.

A feed hands out micro-batches in host memory one at a time; what it handed out is valid until it
is asked for the next one.
"""

import multiprocessing
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Protocol

from training.packing import Budget, Packed, Packer
from training.worker import (
    HELD_OUT_STREAMS,
    STREAM_SEEDS,
    Arena,
    Failure,
    Reply,
    Request,
    held_out_packer,
    load_source,
    work,
)

SLOTS_PER_WORKER = 3
START_LIMIT_S = 120.0  # no worker sends anything for so long: something is wrong


@dataclass(frozen=True, slots=True)
class Arrival:
    """A micro-batch; `held_out` ones are for measuring."""

    packed: Packed
    held_out: bool


class Feed(Protocol):
    """Where micro-batches come from. `seeds`: where each stream of training stands."""

    @property
    def seeds(self) -> dict[int, int]:
        """The next seed of each stream of training."""
        ...

    def take(self, progress: float, *, block: bool) -> Arrival | None:
        """The next micro-batch; None if there is none yet and `block` is False.

        Raises RuntimeError if a worker failed.
        """
        ...

    def close(self) -> None:
        """End the workers."""
        ...


def open_feed(
    source: str, budget: Budget, workers: int, num_held_out: int, seeds: Mapping[int, int]
) -> Feed:
    """The feed of `workers` processes, or of this one if `workers` is 0.

    Args:
        source: "module:function" that makes the `Source`.
        num_held_out: so many held-out samples are handed out, as early as possible.
        seeds: where to go on, as `Feed.seeds` was; streams that it lacks begin at their start.
    """
    if workers == 0:
        return OwnFeed(source, budget, num_held_out, seeds)
    return WorkerFeed(source, budget, workers, num_held_out, seeds)


def _share(num_held_out: int, stream: int) -> int:
    """How many of the held-out samples a stream gives."""
    return num_held_out // HELD_OUT_STREAMS + (stream < num_held_out % HELD_OUT_STREAMS)


class OwnFeed:
    """Makes micro-batches in this process, when asked. Every run gives the same."""

    def __init__(
        self, source: str, budget: Budget, num_held_out: int, seeds: Mapping[int, int]
    ) -> None:
        made = load_source(source)
        self._training = Packer(made, seeds.get(0, 0), budget, held_out=False)
        self._held_out: deque[tuple[Packer, int]] = deque(  # and how many samples are missing
            (held_out_packer(made, stream, budget), _share(num_held_out, stream))
            for stream in range(HELD_OUT_STREAMS)
            if _share(num_held_out, stream)
        )

    @property
    def seeds(self) -> dict[int, int]:
        """Of the one stream."""
        return {0: self._training.next_seed}

    def take(self, progress: float, *, block: bool) -> Arrival:
        """Held-out samples first."""
        if not self._held_out:
            return Arrival(self._training.next(progress), held_out=False)
        packer, missing = self._held_out.popleft()
        packed = packer.next(1.0, missing)
        if missing > packed.counts.samples:
            self._held_out.appendleft((packer, missing - packed.counts.samples))
        return Arrival(packed, held_out=True)

    def close(self) -> None:
        """Nothing to end."""


class WorkerFeed:
    """Makes micro-batches in worker processes, ahead of need as far as slots allow."""

    def __init__(
        self,
        source: str,
        budget: Budget,
        workers: int,
        num_held_out: int,
        seeds: Mapping[int, int],
    ) -> None:
        load_source(source)  # a wrong name shall fail here, once, and not in every worker
        self._arena = Arena.create(workers * SLOTS_PER_WORKER, budget)
        self._seeds = {n: seeds.get(n, n * STREAM_SEEDS) for n in range(workers)}
        self._wanted = [
            deque((s, _share(num_held_out, s)) for s in range(n, HELD_OUT_STREAMS, workers))
            for n in range(workers)
        ]
        self._streams_open = [False] * workers  # one held-out request at a time for each worker
        self._ready: deque[tuple[int, Reply]] = deque()
        self._last: tuple[int, int] | None = None  # worker and slot of what was handed out last
        self._connections: list[Connection] = []
        self._processes: list[multiprocessing.process.BaseProcess] = []
        for number in range(workers):
            self._start(number, source)

    def _start(self, number: int, source: str) -> None:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        seed = self._seeds[number]
        process = context.Process(
            target=work, args=(theirs, self._arena, source, seed), daemon=True
        )
        process.start()
        theirs.close()
        self._connections.append(ours)
        self._processes.append(process)
        for place in range(SLOTS_PER_WORKER):
            self._ask(number, number * SLOTS_PER_WORKER + place, 0.0)

    @property
    def seeds(self) -> dict[int, int]:
        """Of each worker's stream. What was made but never taken is made again."""
        return dict(self._seeds)

    def take(self, progress: float, *, block: bool) -> Arrival | None:
        """In the order in which they were finished."""
        if self._last is not None:
            number, slot = self._last
            self._last = None
            self._ask(number, slot, progress)
        self._receive(0.0)
        started = time.monotonic()
        while block and not self._ready:
            self._receive(1.0)
            if time.monotonic() - started > START_LIMIT_S:
                raise RuntimeError(
                    f"no data worker finished a micro-batch in {START_LIMIT_S:.0f} s: is the "
                    "source too slow, or the machine out of memory?"
                )
        if not self._ready:
            return None
        number, reply = self._ready.popleft()
        request = reply.request
        self._last = number, request.slot
        if request.stream is None:
            self._seeds[number] = reply.next_seed
        packed = self._arena.read(request.slot, reply.counts)
        return Arrival(packed, held_out=request.stream is not None)

    def close(self) -> None:
        """End the workers and wait until they are gone."""
        for connection in self._connections:
            connection.close()
        for process in self._processes:
            process.terminate()
            process.join()

    def _ask(self, number: int, slot: int, progress: float) -> None:
        request = Request(slot, progress)
        wanted = self._wanted[number]
        if wanted and not self._streams_open[number]:
            stream, missing = wanted[0]
            if missing:
                request = Request(slot, 1.0, stream, missing)
                self._streams_open[number] = True
            else:
                wanted.popleft()
                return self._ask(number, slot, progress)
        try:
            self._connections[number].send(request)
        except (BrokenPipeError, ConnectionResetError):
            self._receive(0.0)  # says why, if the worker said so
            raise RuntimeError(f"data worker {number} has ended") from None

    def _receive(self, timeout_s: float) -> None:
        """Take in what workers have sent, waiting at most `timeout_s` for the first of it."""
        for connection in wait(self._connections, timeout_s):
            number = self._connections.index(connection)  # type: ignore[arg-type]
            try:
                message = self._connections[number].recv()
            except (EOFError, ConnectionResetError):
                raise RuntimeError(
                    f"data worker {number} died (out of memory?); fewer --workers need less"
                ) from None
            if isinstance(message, Failure):
                raise RuntimeError(f"data worker {number} failed:\n{message.traceback}")
            self._note(number, message)

    def _note(self, number: int, reply: Reply) -> None:
        if reply.request.stream is not None:
            stream, missing = self._wanted[number][0]
            self._wanted[number][0] = (stream, missing - reply.counts.samples)
            self._streams_open[number] = False
        self._ready.append((number, reply))
