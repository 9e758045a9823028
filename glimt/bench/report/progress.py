"""Live progress on the terminal: four times a second from a thread, so the event loop need not."""

import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from glimt.bench.load.runner import Counters
from glimt.log import escaped

_PERIOD_S = 0.25
_RECENT_S = 5.0
_WIDTH = 80
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
        if self._is_terminal:  # a line that wraps could not be drawn over
            line = f"\r\x1b[K{line[: self._width() - 1]}"
        else:
            line += "\n"
        self._stream.write(line)
        self._stream.flush()

    def _width(self) -> int:
        """Columns of the terminal now; some tell none."""
        try:
            return os.get_terminal_size(self._stream.fileno()).columns or _WIDTH
        except (OSError, ValueError):
            return _WIDTH


class RunLine:
    """The line of a running benchmark: how far, how fast, how well.

    Nothing is parsed while the run goes on: tokens are the events of the streams (a few more than
    there are tokens), TTFT is that of the first bytes, and rates are those of the last seconds.
    """

    def __init__(self, counters: Callable[[], list[Counters]], total: int | None) -> None:
        self._counters = counters
        self._total = total
        self._before: deque[tuple[float, int, int]] = deque([(0.0, 0, 0)])

    def __call__(self, seconds: float) -> str:
        """The line after so many seconds."""
        parts = self._counters()
        done = sum(part.done for part in parts)
        failed = sum(part.failed for part in parts)
        requests_per_s, tokens_per_s = self._rates(
            seconds, done, sum(part.seen() for part in parts)
        )
        ttfts = sorted(ttft for part in parts for ttft in tuple(part.ttfts_ns))
        of = f"/{self._total}" if self._total else ""
        line = f"{done}{of} done, {sum(part.in_flight for part in parts)} in flight"
        line += f", {requests_per_s:.2f} req/s, ~{tokens_per_s:.0f} tok/s"
        if ttfts:
            line += f", TTFT ~{ttfts[len(ttfts) // 2] / 1e6:.0f} ms"
        if failed:
            error = next((part.last_error for part in parts if part.last_error), "")
            line += f", {failed} failed ({escaped(error, 60)})"
        return f"{seconds:5.0f} s  {line}"

    def _rates(self, seconds: float, done: int, events: int) -> tuple[float, float]:
        """Requests and events per second since some seconds ago."""
        while len(self._before) > 1 and self._before[1][0] <= seconds - _RECENT_S:
            self._before.popleft()
        then, done_then, events_then = self._before[0]
        self._before.append((seconds, done, events))
        passed = max(seconds - then, 1e-3)
        return (done - done_then) / passed, (events - events_then) / passed


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
