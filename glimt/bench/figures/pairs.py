"""Two runs of the same requests compared request by request.

Requests of one run are not independent: a slow moment of the server meets many neighbours. The
interval of the mean difference is therefore drawn by a block bootstrap (Künsch, 1989), which draws
whole stretches of neighbours, in the order in which they were sent.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from glimt.bench.events import RequestEvent
from glimt.bench.figures.measured import measure
from glimt.bench.figures.statistics import Interval

FloatArray = NDArray[np.float64]
_DRAWS = 2000


@dataclass(frozen=True)
class PairedChange:
    """The mean change of one metric over requests that succeeded on both sides; seconds."""

    metric: str
    interval: Interval
    faster: float  # fraction of requests with a smaller value after than before


def paired_changes(
    before: Sequence[RequestEvent], after: Sequence[RequestEvent]
) -> list[PairedChange]:
    """Changes of TTFT, TPOT and E2EL; empty if fewer than two requests have a partner."""
    partners = {event.index: event for event in after if _counts(event)}
    pairs = [
        (event, partners[event.index])
        for event in before
        if _counts(event) and event.index in partners
    ]
    if len(pairs) < 2:
        return []
    first = measure([event for event, _ in pairs])
    second = measure([event for _, event in pairs])
    changes = []
    for metric in ("ttft", "tpot", "e2el"):
        change: FloatArray = getattr(second, metric) - getattr(first, metric)
        change = change[~np.isnan(change)]
        if len(change) > 1:
            faster = float((change < 0).mean())
            changes.append(PairedChange(metric, block_bootstrap(change), faster))
    return changes


def block_bootstrap(values: FloatArray, seed: int = 0) -> Interval:
    """95 % interval of the mean of a series with dependent neighbours."""
    size = len(values)
    length = max(1, round(size ** (1 / 3)))
    random = np.random.default_rng(seed)
    starts = random.integers(0, size, (_DRAWS, -(-size // length)))
    places = (starts[:, :, None] + np.arange(length)) % size
    means = values[places].reshape(_DRAWS, -1)[:, :size].mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return Interval(float(values.mean()), float(low), float(high), size)


def _counts(event: RequestEvent) -> bool:
    return event.phase == "run" and event.failure is None
