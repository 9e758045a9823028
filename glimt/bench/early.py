"""Says while a run goes on that its verdict is clear, so that a search need not wait for its end.

Clear is: missed, if so many requests missed an objective already, those still open included, that
no others can make up for it, or if one failed; kept, if so few of so many missed one that the share
asked for is reached with 95 % confidence (binomial), and latencies do not grow. An objective on the
run's mean is never kept before its end.
"""

import math
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from glimt.bench.events import RequestEvent
from glimt.bench.figures.measured import measure
from glimt.bench.figures.objectives import ATTAINMENT, Objective
from glimt.bench.load.runner import Clear

FloatArray = NDArray[np.float64]

_DOUBT = 0.05
_GROWTH = 1.25  # from the first third of the answers to the last
_LATENCIES = 5  # how many mean latencies a run must have lasted to count as steady
_SURELY = 1.1  # an open request's last token may have come, and only its end not
# Whether an open request of an age above the limit misses it: True, False if its answer has begun,
# None if that cannot be known.
_UNTIL_ANSWERED = {"ttft": False, "ttfo": False, "tpot": None, "e2el": True}


class EarlyStop:
    """Follows one run of `num_requests` requests and its objectives."""

    def __init__(self, objectives: Sequence[Objective], num_requests: int) -> None:
        self._objectives = objectives
        self._num_requests = num_requests
        self._starts: list[int] = []
        self._values: dict[str, list[float]] = {objective.metric: [] for objective in objectives}
        self._latencies: list[float] = []
        self._failed = 0
        self.why = ""

    def add(self, event: RequestEvent) -> None:
        """A request that is over; its times count from any moment."""
        if event.failure is not None:
            self._failed += 1
            return
        measured = measure([event])
        self._starts.append(event.start_ns)
        self._latencies.append(float(measured.e2el[0]))
        for metric, values in self._values.items():
            own = measured.tpot_or_zero() if metric == "tpot" else getattr(measured, metric)
            values.append(float(own[0]))

    def look(self, now_ns: int, waiting: Iterable[tuple[int, bool]]) -> Clear | None:
        """The verdict if it is clear, with its reason in `why`.

        `waiting` has the start of each open request, and whether anything of its answer has come.
        """
        if self._failed:
            self.why = f"{self._failed} requests failed"
            return "missed"
        opened = [((now_ns - start_ns) / 1e9, begun) for start_ns, begun in waiting]
        counts = {objective: self._misses(objective, opened) for objective in self._objectives}
        for objective, count in counts.items():
            if self._is_missed(objective, count):
                self.why = f"{objective.name} is missed: by {count} requests so far"
                return "missed"
        if self._is_steady(now_ns) and all(
            _is_kept(share(objective), len(self._starts), count)
            for objective, count in counts.items()
        ):
            self.why = f"every objective is kept: after {len(self._starts)} answers"
            return "kept"
        return None

    def _misses(self, objective: Objective, opened: Sequence[tuple[float, bool]]) -> int:
        """Requests above the limit, those that are open and will be included."""
        values = np.array(self._values[objective.metric])
        count = int((~(values <= objective.limit_s)).sum())
        counts_begun = _UNTIL_ANSWERED[objective.metric]
        if counts_begun is None:
            return count
        return count + sum(
            age > _SURELY * objective.limit_s for age, begun in opened if counts_begun or not begun
        )

    def _is_missed(self, objective: Objective, count: int) -> bool:
        if (wanted := share(objective)) is None:
            total = sum(self._values[objective.metric])
            return total > objective.limit_s * self._num_requests
        return count > math.floor((1 - wanted) * self._num_requests + 1e-9)

    def _is_steady(self, now_ns: int) -> bool:
        """Whether the run is long past its beginning and latencies do not grow."""
        if len(self._starts) < 3:
            return False
        lasted_s = (now_ns - min(self._starts)) / 1e9
        if lasted_s < _LATENCIES * sum(self._latencies) / len(self._latencies):
            return False
        order = np.argsort(self._starts)
        return not any(_grows(np.array(values)[order]) for values in self._values.values())


def share(objective: Objective) -> float | None:
    """The share of requests that must meet the limit; None for a limit of the run's mean."""
    if objective.percent is None:
        return ATTAINMENT
    return None if objective.percent < 0 else objective.percent / 100


def _is_kept(wanted: float | None, num_answers: int, misses: int) -> bool:
    """Whether so few misses would be unlikely if the share were only just what is wanted."""
    if wanted is None or wanted >= 1 or misses >= num_answers:
        return False
    if wanted <= 0:
        return True
    chance = sum(
        math.exp(
            math.lgamma(num_answers + 1)
            - math.lgamma(count + 1)
            - math.lgamma(num_answers - count + 1)
            + count * math.log1p(-wanted)
            + (num_answers - count) * math.log(wanted)
        )
        for count in range(misses + 1)
    )
    return chance < _DOUBT


def _grows(values: FloatArray) -> bool:
    third = len(values) // 3
    return bool(values[-third:].mean() > _GROWTH * values[:third].mean())
