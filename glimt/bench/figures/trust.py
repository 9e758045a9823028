"""Whether the client kept up: its figures say something of the server only if it did."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from glimt.bench.events import EventLog, HealthEvent
from glimt.bench.figures.measured import send_lag_ns
from glimt.bench.figures.statistics import Distribution

FloatArray = NDArray[np.float64]

# Beyond these the client's own delays are a visible part of what it measures.
MAX_LAG_P99_S = 0.005
MAX_LOOP_LAG_P99_S = 0.010
MAX_CPU = 0.80


@dataclass(frozen=True, kw_only=True)
class ClientHealth:
    """How the client did during the measured part; `doubts` is empty if it kept up."""

    lags_s: FloatArray
    send_lag: Distribution
    loop_lag: Distribution
    cpu: float  # of one core, the busiest worker's
    achieved_rate: float  # requests that left, per second of the sending phase
    doubts: tuple[str, ...]

    @property
    def is_trusted(self) -> bool:
        """Whether the figures may be believed."""
        return not self.doubts


def client_health(log: EventLog, percentiles: Sequence[float]) -> ClientHealth:
    """Judge the client by its own events. A burst (all requests at once) is late by its nature."""
    requests = [event for event in log.requests if event.phase == "run"]
    lags = np.array([send_lag_ns(event) / 1e9 for event in requests])
    samples = [sample for sample in log.health if 0 <= sample.at_ns <= log.end.end_ns]
    loop_lags = np.array([sample.loop_lag_ns / 1e9 for sample in samples])
    cpu = _busiest(samples)
    is_burst = _is_burst(log)
    lag, loop_lag = Distribution.of(lags, percentiles), Distribution.of(loop_lags, percentiles)
    doubts = list(log.told_doubts)
    if len(lags) and not is_burst and (p99 := float(np.percentile(lags, 99))) > MAX_LAG_P99_S:
        doubts.append(f"requests left late: P99 {p99 * 1e3:.1f} ms")
    if len(loop_lags) and (p99 := float(np.percentile(loop_lags, 99))) > MAX_LOOP_LAG_P99_S:
        doubts.append(f"the event loop woke late: P99 {p99 * 1e3:.1f} ms")
    if cpu > MAX_CPU:
        doubts.append(f"the client used {cpu:.0%} of a core")
    return ClientHealth(
        lags_s=lags,
        send_lag=lag,
        loop_lag=loop_lag,
        cpu=cpu,
        achieved_rate=_achieved_rate([event.start_ns for event in requests]),
        doubts=tuple(doubts),
    )


def _is_burst(log: EventLog) -> bool:
    start = log.start
    return start.request_rate is None and start.max_concurrency is None and start.ramp_up is None


def _busiest(samples: Sequence[HealthEvent]) -> float:
    workers = {sample.worker for sample in samples}
    return max(
        (
            float(np.mean([sample.cpu for sample in samples if sample.worker == worker]))
            for worker in workers
        ),
        default=0.0,
    )


def _achieved_rate(starts_ns: Sequence[int]) -> float:
    if len(starts_ns) < 2:
        return 0.0
    span_s = (max(starts_ns) - min(starts_ns)) / 1e9
    return (len(starts_ns) - 1) / span_s if span_s > 0 else 0.0
