"""Live progress on the terminal: four times a second from a thread, so the event loop need not."""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from glimt.bench.load.runner import Counters

_PERIOD_S = 0.25
_PLAIN_PERIOD_S = 10.0  # where the output is a file


class Live:
    """A line that is drawn over and over; where that is not possible, one now and then."""

    def __init__(self, line: Callable[[float], str], stream: TextIO | None = None) -> None:
        self._line = line
        self._stream = stream or sys.stderr
        self._over = threading.Event()
        self._began_s = time.monotonic()
        self._is_terminal = self._stream.isatty()
        self._thread = threading.Thread(target=self._draw, name="progress", daemon=True)

    def __enter__(self) -> "Live":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _draw(self) -> None:
        period_s = _PERIOD_S if self._is_terminal else _PLAIN_PERIOD_S
        while not self._over.wait(period_s):
            self._write(self._line(time.monotonic() - self._began_s))
        if self._is_terminal:
            self._stream.write("\r\x1b[K")
            self._stream.flush()

    def _write(self, line: str) -> None:
        self._stream.write(f"\r\x1b[K{line}" if self._is_terminal else f"{line}\n")
        self._stream.flush()


class RunLine:
    """The line of a running benchmark: how far, how fast, how well."""

    def __init__(self, counters: Callable[[], list[Counters]], total: int | None) -> None:
        self._counters = counters
        self._total = total

    def __call__(self, seconds: float) -> str:
        """The line after so many seconds."""
        parts = self._counters()
        done = sum(part.done for part in parts)
        failed = sum(part.failed for part in parts)
        events = sum(part.events for part in parts)
        ttfts = sorted(ttft for part in parts for ttft in tuple(part.ttfts_ns))
        of = f"/{self._total}" if self._total else ""
        line = f"{done}{of} done, {sum(part.in_flight for part in parts)} in flight"
        line += (
            f", {done / max(seconds, 1e-3):.2f} req/s, {events / max(seconds, 1e-3):.0f} events/s"
        )
        if ttfts:
            line += f", first bytes after {ttfts[len(ttfts) // 2] / 1e6:.0f} ms"
        if failed:
            error = next((part.last_error for part in parts if part.last_error), "")
            line += f", {failed} failed ({error[:60]})"
        return f"{seconds:5.0f} s  {line}"


@contextmanager
def steps(what: str, total: int, *, is_shown: bool) -> Iterator[Callable[[int], None]]:
    """Shows how many of `total` steps are done, if they take long enough to be seen."""
    done = [0]

    def step(number: int) -> None:
        done[0] = number

    if not is_shown:
        yield step
        return
    with Live(lambda seconds: f"{what}: {done[0]}/{total} after {seconds:.0f} s"):
        yield step
