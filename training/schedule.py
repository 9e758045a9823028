"""Clocks and the learning rate: everything is scheduled by the share of the run that is over."""

import math
import time
from typing import Protocol


class Clock(Protocol):
    """How far the run is."""

    def progress(self, step: int) -> float:
        """Share that is over before step `step` (counted from 0): 0 … 1; 1 ends the run."""
        ...

    def elapsed(self) -> float:
        """Seconds of training so far, those of earlier invocations included."""
        ...

    def start(self) -> None:
        """Begin to count now: what was until then was no training."""
        ...


class TimeClock:
    """A budget of wall-clock time, which starts to run when the clock is made.

    `begin`: the share of the schedule at which the budget starts.
    """

    def __init__(self, budget_s: float, elapsed_before_s: float = 0.0, begin: float = 0.0) -> None:
        self._budget_s = budget_s
        self._begin = begin
        self._elapsed_before_s = elapsed_before_s
        self.start()

    def start(self) -> None:
        """See `Clock`."""
        self._start_s = time.monotonic() - self._elapsed_before_s

    def progress(self, step: int) -> float:
        """By time alone."""
        share = min(1.0, self.elapsed() / self._budget_s)
        return self._begin + (1.0 - self._begin) * share

    def elapsed(self) -> float:
        """Seconds."""
        return time.monotonic() - self._start_s


class StepClock:
    """A number of steps: the same run on every machine. `begin` as that of `TimeClock`."""

    def __init__(self, num_steps: int, elapsed_before_s: float = 0.0, begin: float = 0.0) -> None:
        self._num_steps = num_steps
        self._begin = begin
        self._elapsed_before_s = elapsed_before_s
        self.start()

    def start(self) -> None:
        """See `Clock`."""
        self._start_s = time.monotonic() - self._elapsed_before_s

    def progress(self, step: int) -> float:
        """By steps alone."""
        return self._begin + (1.0 - self._begin) * min(1.0, step / self._num_steps)

    def elapsed(self) -> float:
        """Seconds."""
        return time.monotonic() - self._start_s


WARM_UP = 0.03
FINAL_FACTOR = 0.02


def rate_factor(progress: float) -> float:
    """Of the peak learning rate: linear from 0 over the first WARM_UP, then half a cosine down to
    FINAL_FACTOR."""
    if progress < WARM_UP:
        return max(progress / WARM_UP, 1e-3)
    share = (progress - WARM_UP) / (1.0 - WARM_UP)
    return FINAL_FACTOR + (1.0 - FINAL_FACTOR) * 0.5 * (1.0 + math.cos(math.pi * min(share, 1.0)))


def average_decay(step: int, final: float) -> float:
    """Of the weights' moving average: short at first, so that it does not remember the start."""
    return min(final, (1.0 + step) / (10.0 + step))
