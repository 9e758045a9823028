"""When a client that was refused had better ask again."""

from collections.abc import Callable


class Pace:
    """How fast requests finish lately, for Retry-After."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._last_s: float | None = None
        self._interval_s = 0.25  # a guess until something has finished
        self._num_asked = 0

    def count(self) -> None:
        """A request has finished."""
        now_s = self._clock()
        if self._last_s is not None:
            self._interval_s += 0.05 * (min(now_s - self._last_s, 5.0) - self._interval_s)
        self._last_s = now_s

    def seconds_for(self, num_requests: int) -> float:
        """Until so many have finished: 1 to 30 s, spread by a quarter so that not all come back
        at once."""
        self._num_asked += 1
        spread = 1.0 + 0.25 * (self._num_asked * 0.6180339887 % 1.0)
        return min(30.0, max(1.0, self._interval_s * num_requests)) * spread
