"""The concurrency limit in virtual time: exact, without a clock, a socket or a server."""

import asyncio
from collections.abc import Iterator

from glimt.bench.load.bodies import BodyStore
from glimt.bench.load.gate import LocalGate
from glimt.bench.load.http import Address, Exchange, HttpClient
from glimt.bench.load.pacing import Pacer
from glimt.bench.load.runner import Job, Recorder, Runner
from glimt.bench.load.schedule import Arrivals, arrival_times

MS = 1_000_000
ANSWER = b'data: {"choices":[{"delta":{"content":"x"},"finish_reason":"stop"}]}\n\n'


class VirtualTime(Pacer):
    """A clock that jumps to the next instant somebody waits for, once nothing else can run."""

    def __init__(self) -> None:
        super().__init__()
        self.now_ns = 0
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []

    def now(self) -> int:
        return self.now_ns

    async def until(self, due_ns: int) -> None:
        if due_ns > self.now_ns:
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append((due_ns, len(self._waiting), waiter))
            await waiter

    async def run(self, task: "asyncio.Task[None]") -> None:
        """Let time pass until the task is done."""
        while not task.done():
            for _ in range(20):
                await asyncio.sleep(0)
            if self._waiting:
                self._waiting.sort(key=lambda entry: entry[:2])
                self.now_ns, _, waiter = self._waiting.pop(0)
                waiter.set_result(None)


class SlowServer(HttpClient):
    """Answers every request after 500 ms of virtual time."""

    def __init__(self, time: VirtualTime) -> None:
        super().__init__(Address("nowhere", 1, is_tls=False, prefix=""))
        self._time = time

    async def send(
        self, head: bytes, body: bytes | memoryview, exchange: Exchange | None = None
    ) -> Exchange:
        assert exchange is not None
        exchange.start_ns = self._time.now()
        await self._time.until(exchange.start_ns + 500 * MS)
        exchange.status, exchange.end_ns = 200, self._time.now()
        exchange.reads.append((exchange.end_ns, ANSWER))
        return exchange


def jobs(count: int) -> Iterator[Job]:
    for index in range(count):
        yield Job(
            index=index,
            conversation=index,
            body=0,
            output_tokens=1,
            text_tokens=None,
            num_images=0,
            image_pixels=0,
        )


async def test_the_wait_for_a_limit_of_one_is_what_queueing_theory_says() -> None:
    """Eight requests at 10 per second, 500 ms each, one at a time: request k waits until the k
    before it are done. (The example of an issue on vLLM's client: this was not in its latency.)"""
    time = VirtualTime()
    recorder = Recorder("openai-chat", keep_texts=False)
    store = BodyStore()
    store.add(b"{}")
    runner = Runner(
        SlowServer(time), b"", "r-", store, recorder, LocalGate(1), time, backend="openai-chat"
    )
    due_s = arrival_times(Arrivals(rate=10), 8, 0)

    async def whole() -> None:
        pairs = zip((float(due) for due in due_s), jobs(8), strict=True)
        await runner.dispatch(pairs, 0)
        await runner.drain()

    await time.run(asyncio.create_task(whole()))
    events = recorder.events(0)
    free_ns, expected = 0, []
    for due in due_s:
        start_ns = max(round(due * 1e9), free_ns)
        expected.append(start_ns - round(due * 1e9))
        free_ns = start_ns + 500 * MS
    waits = [event.admitted_ns - event.fired_ns for event in events]
    assert waits == expected
    assert all(event.start_ns == event.admitted_ns for event in events)
    # Saturated from the first request on: (0 + 500 + … + 3500) / 8 less the arrivals' own mean.
    mean_ms = sum(waits) / 8 / MS
    assert round(mean_ms) == round(1750 + 1e3 * (due_s[0] - due_s.mean()))


async def test_without_a_rate_the_limit_alone_paces_and_nobody_waits() -> None:
    time = VirtualTime()
    recorder = Recorder("openai-chat", keep_texts=False)
    store = BodyStore()
    store.add(b"{}")
    runner = Runner(
        SlowServer(time), b"", "r-", store, recorder, LocalGate(2), time, backend="openai-chat"
    )

    async def whole() -> None:
        await runner.dispatch(((0.0, job) for job in jobs(6)), 0, pace="gate")
        await runner.drain()

    await time.run(asyncio.create_task(whole()))
    events = recorder.events(0)
    assert [event.start_ns // MS for event in events] == [0, 0, 500, 500, 1000, 1000]
    assert all(event.intended_ns == event.admitted_ns == event.start_ns for event in events)
