"""What several loads say together: which keep the objectives, and where the knee is."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from glimt.bench.figures.objectives import ATTAINMENT, Objective

if TYPE_CHECKING:
    from glimt.bench.figures.summary import Summary

_FEWEST = 3  # loads without which there is no bend to see


def keeps(summary: "Summary", objectives: Sequence[Objective]) -> bool:
    """Whether a run keeps all objectives: those of the run, and those of requests for 99 of 100
    requests; with no failed request."""
    if summary.failed or summary.completed == 0 or summary.goodput is None:
        return False
    verdict = summary.goodput.verdict
    if verdict.missed:
        return False
    return all(
        verdict.attainment[objective.name] >= ATTAINMENT
        for objective in objectives
        if objective.percent is None
    )


def highest_kept(
    groups: Mapping[float, Sequence["Summary"]], objectives: Sequence[Objective]
) -> float | None:
    """The highest load of which every repeat keeps the objectives, up to the first that does not.

    `groups` has the runs by load.
    """
    best = None
    for load in sorted(groups):
        if not all(keeps(summary, objectives) for summary in groups[load]):
            break
        best = load
    return best


def knee(groups: Mapping[float, Sequence["Summary"]]) -> float | None:
    """The load with the most throughput for its latency: beyond it latency grows faster.

    That is the maximum of Kleinrock's power, throughput / response time (ICC 1979); here generated
    tokens a second over the mean E2EL. None if it was not passed: if it is the highest load, or if
    there are fewer than three.
    """
    powers = {
        load: sum(map(_power, summaries)) / len(summaries) for load, summaries in groups.items()
    }
    if len(powers) < _FEWEST:
        return None
    best = max(powers, key=lambda load: powers[load])
    return best if best < max(powers) else None


def _power(summary: "Summary") -> float:
    latency = summary.metrics["e2el"].mean
    return summary.output_throughput / latency if latency > 0 else 0.0
