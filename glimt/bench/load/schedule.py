"""When requests leave: gamma-distributed gaps, drawn exactly as `vllm bench serve` draws them.

For one seed the times are those of vLLM's client, request for request: gaps from numpy's legacy
generator, summed up, and (at a fixed rate) stretched so that the last of N requests leaves after
N / rate seconds. With a ramp the rate grows over the requests, not over time, and nothing is
stretched.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
_ENDLESS_BLOCK = 1024


@dataclass(frozen=True, kw_only=True)
class Arrivals:
    """How the times are to be drawn. `rate` is requests per second; inf sends all at once."""

    rate: float = math.inf
    burstiness: float = 1.0
    ramp: Literal["linear", "exponential"] | None = None
    ramp_start: int = 0
    ramp_end: int = 0

    def rates(self, num_requests: int) -> FloatArray:
        """The rate in force at each request."""
        if self.ramp is None:
            return np.full(num_requests, self.rate)
        progress = np.arange(num_requests) / max(num_requests - 1, 1)
        if self.ramp == "linear":
            return self.ramp_start + (self.ramp_end - self.ramp_start) * progress
        return np.asarray(self.ramp_start * (self.ramp_end / self.ramp_start) ** progress)


def gaps(rates: FloatArray, burstiness: float, random: np.random.RandomState) -> FloatArray:
    """Seconds between requests at the given rates.

    Mean 1 / rate, coefficient of variation 1 / sqrt(burstiness); no gaps at an infinite rate.
    """
    if math.isinf(burstiness):
        return np.asarray(1.0 / rates)
    drawn = [
        0.0 if math.isinf(rate) else random.gamma(shape=burstiness, scale=1.0 / (rate * burstiness))
        for rate in rates
    ]
    return np.asarray(drawn, np.float64)


def arrival_times(arrivals: Arrivals, num_requests: int, seed: int) -> FloatArray:
    """Seconds after the start at which each of `num_requests` requests leaves."""
    random = np.random.RandomState(seed)
    times = np.cumsum(gaps(arrivals.rates(num_requests), arrivals.burstiness, random))
    if arrivals.ramp is None and num_requests and times[-1] > 0:
        times *= num_requests / arrivals.rate / times[-1]
    return times


def endless_times(arrivals: Arrivals, seed: int) -> Iterator[float]:
    """Seconds after the start, without end and unstretched, for runs limited by time.

    At an infinite rate all are 0: the concurrency limit paces them.
    """
    random = np.random.RandomState(seed)
    now = 0.0
    while True:
        for gap in gaps(arrivals.rates(_ENDLESS_BLOCK), arrivals.burstiness, random):
            now += float(gap)
            yield now
