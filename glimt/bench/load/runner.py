"""Sends conversations when they are due, and keeps what came back.

While the clock runs, only this happens for each request: wait for its time and for the concurrency
limit, hand ready-made bytes to a connection, keep stamped bytes. Answers are read after the run,
except where the next turn of a conversation needs them, or where the kept bytes would be too many.
"""

import asyncio
from collections import deque
from collections.abc import Iterable
from typing import Any, Literal, Protocol

import msgspec

from glimt.bench.events import Phase, RequestEvent
from glimt.bench.load.bodies import DIALECTS
from glimt.bench.load.dialects import Answer
from glimt.bench.load.gate import Gate
from glimt.bench.load.http import Exchange, HttpClient
from glimt.bench.load.outcome import Circumstances, answer_of, describe, judge, told_error
from glimt.bench.load.pacing import Pacer
from glimt.bench.options import Backend

_KEPT_BYTES = 512 << 20
_RECENT = 64

Pace = Literal["schedule", "gate"]
Clear = Literal["kept", "missed"]


class LaterTurn(msgspec.Struct, frozen=True, kw_only=True):
    """A turn that comes after an answer."""

    index: int
    text: str
    output_tokens: int
    text_tokens: int | None
    pause_s: float


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """A conversation: its first request, ready-made, and the turns after it."""

    index: int
    conversation: int
    body: int  # its number in the store
    output_tokens: int
    text_tokens: int | None
    num_images: int
    image_pixels: int
    at_s: float | None = None
    model: str | None = None
    later: tuple[LaterTurn, ...] = ()


class Bodies(Protocol):
    """Encoded requests by number."""

    def __getitem__(self, number: int) -> bytes | memoryview:
        """One of them."""


class Early(Protocol):
    """Follows a run whose verdict may be clear before its end (see `bench/early.py`)."""

    why: str

    def add(self, event: RequestEvent) -> None:
        """A request that is over."""

    def look(self, now_ns: int, waiting: Iterable[tuple[int, bool]]) -> Clear | None:
        """The verdict; `waiting` has the starts of open requests, and whether they have begun."""


class Counters:
    """What the live display shows: plain numbers, read by another thread."""

    def __init__(self) -> None:
        self.started = 0
        self.in_flight = 0
        self.done = 0
        self.failed = 0
        self.events = 0  # of finished requests
        self.open: dict[int, Exchange] = {}
        self.ttfts_ns: deque[int] = deque(maxlen=_RECENT)
        self.last_error = ""

    def seen(self) -> int:
        """Events of all requests so far, those of open ones among them."""
        return self.events + sum(exchange.num_events for exchange in list(self.open.values()))


class Recorder:
    """Keeps exchanges until they are read, which is after the run unless they become too many, or
    `early` wants to know of each."""

    def __init__(self, backend: Backend, *, keep_texts: bool, early: Early | None = None) -> None:
        self._dialect = DIALECTS[backend]
        self._keep_texts = keep_texts
        self._early = early
        self._kept: list[tuple[Circumstances, Exchange]] = []
        self._kept_bytes = 0
        self._read: list[tuple[Circumstances, Exchange, Answer]] = []

    def add(self, what: Circumstances, exchange: Exchange) -> None:
        """An exchange that is over."""
        size = sum(len(read) for _, read in exchange.reads)
        if self._early is not None or self._kept_bytes + size > _KEPT_BYTES:
            self.read(what, exchange)
        else:
            self._kept_bytes += size
            self._kept.append((what, exchange))

    def read(self, what: Circumstances, exchange: Exchange) -> Answer:
        """Read an answer at once and keep only what it says."""
        answer = answer_of(exchange, self._dialect)
        exchange.failure, exchange.error = judge(exchange, answer)
        exchange.num_reads, exchange.reads = len(exchange.reads), []
        self._read.append((what, exchange, answer))
        if self._early is not None and what.phase == "run":
            self._early.add(describe(what, exchange, answer, zero_ns=0, keep_texts=False))
        return answer

    def events(self, zero_ns: int) -> list[RequestEvent]:
        """All requests, by index, with times counted from `zero_ns`."""
        for what, exchange in self._kept:
            self.read(what, exchange)
        self._kept.clear()
        events = [
            describe(what, exchange, answer, zero_ns=zero_ns, keep_texts=self._keep_texts)
            for what, exchange, answer in self._read
        ]
        return sorted(events, key=lambda event: (event.phase != "warmup", event.phase, event.index))


class Runner:
    """Sends one run's requests from one event loop."""

    def __init__(
        self,
        client: HttpClient,
        head: bytes,
        request_id_prefix: str,
        store: Bodies,
        recorder: Recorder,
        gate: Gate,
        pacer: Pacer,
        *,
        backend: Backend,
        worker: int = 0,
    ) -> None:
        self._client = client
        self._head = head + b"X-Request-Id: " + request_id_prefix.encode()
        self._store = store
        self._recorder = recorder
        self._gate = gate
        self._pacer = pacer
        self._backend = backend
        self._worker = worker
        self._tasks: set[asyncio.Task[None]] = set()
        self.counters = Counters()

    async def dispatch(
        self,
        arrivals: Iterable[tuple[float, Job]],
        zero_ns: int,
        *,
        phase: Phase = "run",
        pace: Pace = "schedule",
        stop_ns: int | None = None,
    ) -> None:
        """Start each job at its time, seconds after `zero_ns`; returns when all are started.

        With pace "gate" there are no times: a job starts when the concurrency limit lets it. No
        job starts after `stop_ns`.
        """
        for due_s, job in arrivals:
            due_ns = zero_ns + round(due_s * 1e9)
            if pace == "gate":
                await self._gate.acquire()
                due_ns = self._pacer.now()
            elif stop_ns is None or due_ns < stop_ns:
                await self._pacer.until(due_ns)
            if stop_ns is not None and max(due_ns, self._pacer.now()) >= stop_ns:
                if pace == "gate":
                    self._gate.release()
                return
            task = asyncio.create_task(self._talk(job, due_ns, phase, is_admitted=pace == "gate"))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def drain(self) -> None:
        """Wait for everything that was started."""
        while self._tasks:
            await asyncio.gather(*self._tasks)

    def waiting(self) -> list[tuple[int, bool]]:
        """Of each open request: when it started, and whether anything of its answer has come."""
        opened = self.counters.open.values()
        return [(each.start_ns, bool(each.reads)) for each in opened if each.start_ns]

    async def cancel(self) -> None:
        """End everything that was started; what it brought so far is kept."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _talk(self, job: Job, due_ns: int, phase: Phase, *, is_admitted: bool) -> None:
        body = self._store[job.body]
        exchange, what = await self._ask(
            body, self._first(job, due_ns, phase), is_admitted=is_admitted
        )
        for number, turn in enumerate(job.later, 1):
            answer = self._recorder.read(what, exchange)
            if exchange.failure is not None:
                return
            body = next_body(body, self._backend, "".join(answer.content), turn)
            due_ns = exchange.end_ns + round(turn.pause_s * 1e9)
            await self._pacer.pause(turn.pause_s)
            what = self._following(job, turn, number, due_ns, phase)
            exchange, what = await self._ask(body, what, is_admitted=False)
        self._recorder.add(what, exchange)

    async def _ask(
        self, body: bytes | memoryview, what: Circumstances, *, is_admitted: bool
    ) -> tuple[Exchange, Circumstances]:
        if not is_admitted:
            await self._gate.acquire()
        what = what.admitted(self._pacer.now(), len(body))
        counters, exchange = self.counters, Exchange()
        counters.started += 1
        counters.in_flight += 1
        counters.open[what.index] = exchange
        try:
            head = b"%b%d\r\n" % (self._head, what.index)
            await self._client.send(head, body, exchange)
        except asyncio.CancelledError:
            self._recorder.add(what, exchange)
            raise
        finally:
            counters.in_flight -= 1
            del counters.open[what.index]
            self._gate.release()
        self._count(exchange)
        return exchange, what

    def _count(self, exchange: Exchange) -> None:
        counters = self.counters
        counters.done += 1
        counters.events += exchange.num_events
        if exchange.status != 200 or exchange.failure is not None:
            counters.failed += 1
            counters.last_error = exchange.error or f"HTTP {exchange.status}"
        elif error := told_error(exchange, DIALECTS[self._backend]):
            counters.failed += 1
            counters.last_error = error
        elif exchange.reads:
            counters.ttfts_ns.append(exchange.reads[0][0] - exchange.start_ns)

    def _first(self, job: Job, due_ns: int, phase: Phase) -> Circumstances:
        return Circumstances(
            index=job.index,
            phase=phase,
            conversation=job.conversation,
            worker=self._worker,
            intended_ns=due_ns,
            fired_ns=self._pacer.now(),
            asked_tokens=job.output_tokens,
            text_tokens=job.text_tokens,
            num_images=job.num_images,
            image_pixels=job.image_pixels,
            model=job.model,
        )

    def _following(
        self, job: Job, turn: LaterTurn, number: int, due_ns: int, phase: Phase
    ) -> Circumstances:
        return Circumstances(
            index=turn.index,
            phase=phase,
            conversation=job.conversation,
            turn=number,
            worker=self._worker,
            intended_ns=due_ns,
            fired_ns=self._pacer.now(),
            asked_tokens=turn.output_tokens,
            text_tokens=turn.text_tokens,
            num_images=job.num_images,
            image_pixels=job.image_pixels,
            model=job.model,
        )


def next_body(body: bytes | memoryview, backend: Backend, answer: str, turn: LaterTurn) -> bytes:
    """The request of the next turn: what was asked, what was answered, what is asked now."""
    fields: dict[str, Any] = msgspec.json.decode(body)
    is_chat = backend == "openai-chat"
    place = "messages" if is_chat else "input"
    history = fields[place]
    if isinstance(history, str):
        history = [{"role": "user", "content": history}]
    said = [{"role": "assistant", "content": answer}, {"role": "user", "content": turn.text}]
    fields[place] = history + said
    fields["max_completion_tokens" if is_chat else "max_output_tokens"] = turn.output_tokens
    return msgspec.json.encode(fields)
