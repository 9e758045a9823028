"""Waits for instants, and watches how well the client keeps them.

An event loop's timers are a millisecond wide. The last part of a wait is therefore slept in a
thread, which the kernel wakes within some tens of microseconds, and without turning in circles: the
server may need the core.
"""

import asyncio
import resource
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from glimt.bench.events import HealthEvent
from glimt.bench.load.http import clock_ns

_FINE_NS = 4_000_000  # the part of a wait that a thread sleeps
_SAMPLE_S = 0.1


class Pacer:
    """Wakes its callers at instants of `clock_ns`; `now` and `until` can be replaced in tests."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="pacer")

    def now(self) -> int:
        """Nanoseconds."""
        return clock_ns()

    async def until(self, due_ns: int) -> None:
        """Returns at `due_ns`, at once if that is past."""
        left_ns = due_ns - clock_ns()
        if left_ns > 2 * _FINE_NS:
            await asyncio.sleep((left_ns - _FINE_NS) / 1e9)
            left_ns = due_ns - clock_ns()
        if left_ns > 0:
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(self._thread, _sleep_until, due_ns)

    async def pause(self, seconds: float) -> None:
        """A pause between turns; a millisecond does not matter, and many may wait at once."""
        await asyncio.sleep(seconds)

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown(wait=False)


def _sleep_until(due_ns: int) -> None:
    left_ns = due_ns - clock_ns()
    if left_ns > 0:
        time.sleep(left_ns / 1e9)


def cpu_ns() -> int:
    """Processor time of this process, all threads, user and system."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return int((usage.ru_utime + usage.ru_stime) * 1e9)


async def watch_health(note: Callable[[HealthEvent], None], in_flight: Callable[[], int]) -> None:
    """Until cancelled: every 100 ms, how late the loop wakes, and the processor time."""
    wanted_ns = int(_SAMPLE_S * 1e9)
    before_ns, before_cpu = clock_ns(), cpu_ns()
    while True:
        await asyncio.sleep(_SAMPLE_S)
        now_ns, now_cpu = clock_ns(), cpu_ns()
        passed_ns = now_ns - before_ns
        note(
            HealthEvent(
                at_ns=now_ns,
                cpu=(now_cpu - before_cpu) / passed_ns,
                loop_lag_ns=max(0, passed_ns - wanted_ns),
                in_flight=in_flight(),
            )
        )
        before_ns, before_cpu = now_ns, now_cpu
