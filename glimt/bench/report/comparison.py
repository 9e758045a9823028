"""Two sides set next to each other: tables for the terminal, and the page with its charts."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from glimt.bench.figures.pairs import PairedChange
from glimt.bench.figures.scalars import Difference
from glimt.bench.figures.summary import Summary
from glimt.bench.report.series import span, title_of
from glimt.bench.report.thinning import SHARES, quantiles, rounded

Data = dict[str, Any]

_COMPARED = (
    ("ttft", "Time to first token"),
    ("tpot", "Time per output token"),
    ("itl", "Inter-token latency"),
    ("e2el", "End to end"),
)


def comparison_tables(
    changes: Mapping[str, Difference], pairs: Sequence[PairedChange], doubts: Sequence[str]
) -> list[Data]:
    """What changed between two sides, in all and request by request; before that what to doubt."""
    rows: list[list[Any]] = [
        [
            title_of(change.scalar),
            f"{change.before:,.2f}",
            f"{change.after:,.2f}",
            [f"{change.ratio:+.1%}" if math.isfinite(change.ratio) else "–", change.verdict],
            span(change.interval, 1),
        ]
        for change in changes.values()
    ]
    tables = [
        {
            "title": "Comparison",
            "says": "\n".join(
                ["Before and after; intervals (95 %) are those of the change over repeats", *doubts]
            ),
            "head": ["", "before", "after", "change", "interval"],
            "rows": rows,
        }
    ]
    if pairs:
        tables.append(_pairs_table(pairs))
    return tables


def comparison_page(
    changes: Mapping[str, Difference],
    pairs: Sequence[PairedChange],
    doubts: Sequence[str],
    sides: tuple[Sequence[Summary], Sequence[Summary]],
) -> Data:
    """The comparison's page: what changed by how much, and the distributions of both sides."""
    charts = [_changes_chart(changes, pairs)]
    charts += [_shares_chart(metric, title, sides) for metric, title in _COMPARED]
    return {
        "kind": "series",
        "name": "Comparison",
        "pills": [["bad", doubt] for doubt in doubts],
        "charts": [chart for chart in charts if chart is not None],
        "tables": comparison_tables(changes, pairs, doubts),
    }


def _pairs_table(pairs: Sequence[PairedChange]) -> Data:
    rows = []
    for pair in pairs:
        interval = pair.interval
        rows.append(
            [
                f"{pair.metric.upper()} (ms)",
                [f"{interval.mean * 1e3:+,.2f}", _verdict(pair)],
                span(interval, 1e3),
                f"{pair.faster:.1%}",
                f"{interval.count}",
            ]
        )
    return {
        "title": "Request by request",
        "says": "The same requests on both sides; 95 % intervals by block bootstrap",
        "head": ["", "mean change", "interval", "faster", "pairs"],
        "rows": rows,
    }


def _verdict(pair: PairedChange) -> str:
    """better, worse, or "" where the interval of the change holds both; all are latencies."""
    if pair.interval.low <= 0 <= pair.interval.high:
        return ""
    return "worse" if pair.interval.low > 0 else "better"


def _changes_chart(changes: Mapping[str, Difference], pairs: Sequence[PairedChange]) -> Data | None:
    """Changes in percent of what was, with their intervals: of repeats, else of paired requests.

    Rows are [name, change, low, high, verdict].
    """
    rows: list[list[Any]] = [
        [
            change.scalar.name,
            *_percents(
                (change.after - change.before, change.interval.low, change.interval.high),
                change.before,
            ),
            change.verdict,
        ]
        for change in changes.values()
        if change.before and math.isfinite(change.interval.low)
    ]
    says = "Percent of before; lines are 95 % intervals over repeats"
    if not rows:
        says = "Percent of before, request by request; lines are 95 % intervals"
        for pair in pairs:
            before = changes[f"mean_{pair.metric}_ms"].before / 1e3
            ends = (pair.interval.mean, pair.interval.low, pair.interval.high)
            if before:
                name = f"Mean {pair.metric.upper()}"
                rows.append([name, *_percents(ends, before), _verdict(pair)])
    return {"form": "changes", "title": "Change", "says": says, "rows": rows} if rows else None


def _percents(ends: Sequence[float], before: float) -> list[float]:
    return [rounded(100 * end / before) for end in ends]


def _shares_chart(
    metric: str, title: str, sides: tuple[Sequence[Summary], Sequence[Summary]]
) -> Data | None:
    """Which share of the values lies below each time, before and after."""
    series = []
    for name, summaries in zip(("before", "after"), sides, strict=True):
        values = [getattr(summary.measured, metric) for summary in summaries]
        pooled = np.concatenate(values) if values else np.zeros(0)
        times = quantiles(pooled[~np.isnan(pooled)] * 1e3)
        points = [[time, rounded(100 * share)] for time, share in zip(times, SHARES, strict=False)]
        series.append({"name": name, "points": points})
    if not all(one["points"] for one in series):
        return None
    says = "How many of the values are below, by milliseconds"
    return {"form": "shares", "title": title, "says": says, "x": "milliseconds", "series": series}
