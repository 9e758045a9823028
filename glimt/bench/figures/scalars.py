"""Single numbers of a run, for curves, repeats and comparisons: what they are called and mean."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from glimt.bench.figures.statistics import Interval, confidence, student_quantile
from glimt.bench.figures.summary import Summary


@dataclass(frozen=True)
class Scalar:
    """A number of a run. `is_more_better` is None where it says nothing of quality."""

    name: str
    unit: str
    value: float
    is_more_better: bool | None


def scalars(summary: Summary) -> dict[str, Scalar]:
    """The numbers that people compare, by the keys of the JSON result; latencies in ms."""
    found = {
        "request_throughput": Scalar("Requests", "req/s", summary.request_throughput, True),
        "output_throughput": Scalar("Output tokens", "tok/s", summary.output_throughput, True),
        "total_token_throughput": Scalar(
            "All tokens", "tok/s", summary.total_token_throughput, True
        ),
        "mean_concurrent_requests": Scalar("In flight", "", summary.mean_concurrency, None),
        "failed": Scalar("Failed", "", float(summary.failed), False),
    }
    for metric, name in (("ttft", "TTFT"), ("tpot", "TPOT"), ("itl", "ITL"), ("e2el", "E2EL")):
        values = summary.metrics[metric]
        numbers = {"mean": values.mean, "median": values.median}
        numbers |= {f"p{percent:g}": value for percent, value in values.percentiles.items()}
        for kind, seconds in numbers.items():
            title = kind.upper() if kind.startswith("p") else kind.capitalize()
            found[f"{kind}_{metric}_ms"] = Scalar(f"{title} {name}", "ms", 1e3 * seconds, False)
    if summary.goodput is not None:
        good = summary.goodput
        found["good_fraction"] = Scalar("Good requests", "%", 100 * good.fraction, True)
        found["request_goodput"] = Scalar("Goodput", "req/s", good.requests_per_s, True)
    return found


def intervals(summaries: Sequence[Summary]) -> dict[str, tuple[Scalar, Interval]]:
    """Means over repeated runs, with 95 % intervals. The scalars are those of the first run."""
    tables = [scalars(summary) for summary in summaries]
    return {
        key: (first, confidence([table[key].value for table in tables]))
        for key, first in tables[0].items()
    }


@dataclass(frozen=True)
class Difference:
    """How a number changed from one side to the other; `interval` is of the change."""

    scalar: Scalar  # of the first side
    before: float
    after: float
    interval: Interval

    @property
    def ratio(self) -> float:
        """The change as a fraction of what was."""
        return (self.after - self.before) / self.before if self.before else math.nan

    @property
    def verdict(self) -> str:
        """better, worse, or "" where the interval holds both."""
        if self.scalar.is_more_better is None or not math.isfinite(self.interval.low):
            return ""
        if self.interval.low <= 0 <= self.interval.high:
            return ""
        rises = self.interval.low > 0
        return "better" if rises == self.scalar.is_more_better else "worse"


def differences(
    before: Sequence[Summary], after: Sequence[Summary], *, is_paired: bool
) -> dict[str, Difference]:
    """What changed, number by number, with 95 % intervals where there are repeats.

    Paired: repeat k of one side belongs to repeat k of the other (same seed, same requests), and
    the interval is that of their differences, in which what both share has no part. Otherwise it
    is Welch's, of two independent means.
    """
    ours, theirs = [scalars(each) for each in before], [scalars(each) for each in after]
    found = {}
    for key, scalar in ours[0].items():
        if key not in theirs[0]:
            continue
        first = [table[key].value for table in ours]
        second = [table[key].value for table in theirs]
        if is_paired:
            interval = confidence([b - a for a, b in zip(first, second, strict=True)])
        else:
            interval = welch(first, second)
        mean_before, mean_after = sum(first) / len(first), sum(second) / len(second)
        found[key] = Difference(scalar, mean_before, mean_after, interval)
    return found


def welch(first: Sequence[float], second: Sequence[float]) -> Interval:
    """95 % interval of the difference of two independent means (Welch, 1947)."""
    a, b = confidence(first), confidence(second)
    change, count = b.mean - a.mean, a.count + b.count
    if a.count < 2 or b.count < 2:
        return Interval(change, -math.inf, math.inf, count)
    va, vb = _error(first) ** 2, _error(second) ** 2
    if va + vb == 0:
        return Interval(change, change, change, count)
    freedom = (va + vb) ** 2 / (va**2 / (a.count - 1) + vb**2 / (b.count - 1))
    half = student_quantile(0.975, max(1, int(freedom))) * math.sqrt(va + vb)
    return Interval(change, change - half, change + half, count)


def _error(values: Sequence[float]) -> float:
    """Standard error of the mean."""
    mean = sum(values) / len(values)
    return math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1) / len(values))
