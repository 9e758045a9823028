"""SimulatedLoop: an asyncio event loop without sockets, threads or real time.

Time moves only when the loop would wait, straight to the next timer, and by a seeded little while
the loop is busy, so that what comes from outside (always a timer) falls between any two turns of
the application. Callbacks keep asyncio's own order. The same seed gives the same run.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

THREAD_S = 0.01  # the longest that work "in a thread" takes


class NothingWillHappen(Exception):
    """The loop waits, and nothing is left that could ever wake it."""


class SimulatedLoop(asyncio.BaseEventLoop):
    """`busy_s`: the most that one turn of the busy loop takes. `complaints`: what asyncio would
    have logged, such as exceptions that nobody looked at."""

    def __init__(self, rng: random.Random, busy_s: float) -> None:
        super().__init__()
        self.complaints: list[str] = []
        self._rng = rng
        self._busy_s = busy_s
        self._now_s = 1000.0
        self._selector = self  # BaseEventLoop asks it to wait
        self.set_exception_handler(self._complain)

    def time(self) -> float:
        """Virtual seconds."""
        return self._now_s

    def select(self, timeout_s: float | None) -> list[Any]:
        """Wait without waiting."""
        if timeout_s is None:
            raise NothingWillHappen
        self._now_s += timeout_s if timeout_s > 0 else self._rng.random() * self._busy_s
        return []

    def run_in_executor(
        self, executor: object, func: Callable[..., Any], *args: Any
    ) -> asyncio.Future[Any]:
        """Run it on the loop, a little later; like a thread, it cannot be stopped once begun."""
        future: asyncio.Future[Any] = self.create_future()

        def work() -> None:
            try:
                result = func(*args)
            except Exception as error:
                if not future.done():
                    future.set_exception(error)
            else:
                if not future.done():
                    future.set_result(result)

        self.call_later(self._rng.random() * THREAD_S, work)
        return future

    def _process_events(self, event_list: list[Any]) -> None:
        """There are none."""

    def _write_to_self(self) -> None:
        raise RuntimeError("there are no threads in a simulation")

    def _complain(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self.complaints.append(f"{context['message']}: {context.get('exception')!r}")
