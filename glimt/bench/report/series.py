"""Pages and tables of several runs: repeats and sweeps."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from glimt.bench.events import EventLog
from glimt.bench.figures.loads import highest_kept, knee
from glimt.bench.figures.objectives import Objective
from glimt.bench.figures.scalars import Scalar, scalars
from glimt.bench.figures.statistics import Interval, confidence
from glimt.bench.figures.summary import Summary

Data = dict[str, Any]
Pair = tuple[EventLog, Summary]

_GAP, _MAX_WIDTH = "  ", 80  # of a table, in characters

_UNITS = {"rate": "requests per second", "concurrency": "requests in flight at most"}
_SWEPT = (
    ("Throughput", "Output tokens per second", ("output_throughput",)),
    ("Time to first token", "Milliseconds", ("median_ttft_ms", "p99_ttft_ms")),
    ("Time per output token", "Milliseconds", ("median_tpot_ms", "p99_tpot_ms")),
    ("Requests", "Answered per second", ("request_throughput",)),
    ("Good requests", "Percent that meet all objectives", ("good_fraction",)),
)


def varied_by(logs: Sequence[EventLog]) -> str | None:
    """rate or concurrency, if the runs are those of a sweep and differ in it; None: repeats."""
    if len({log.start.request_rate for log in logs}) > 1:
        return "rate"
    return "concurrency" if len({log.start.max_concurrency for log in logs}) > 1 else None


def load_of(log: EventLog, varied: str) -> float:
    """The value of what a sweep varied: rate or concurrency."""
    value = log.start.request_rate if varied == "rate" else log.start.max_concurrency
    return float(value) if value is not None else math.inf


def grouped(runs: Sequence[Pair], varied: str) -> dict[float, list[Summary]]:
    """Summaries by load, lowest first; repeats stand together."""
    groups: dict[float, list[Summary]] = {}
    for log, summary in sorted(runs, key=lambda run: load_of(run[0], varied)):
        groups.setdefault(load_of(log, varied), []).append(summary)
    return groups


def verdicts(
    runs: Sequence[Pair], varied: str, objectives: Sequence[Objective], *, is_search: bool = False
) -> list[list[str]]:
    """[kind, text] of what the loads say together. A search looks for no knee: its runs end early.

    Kinds are good, warn (the client did not keep up), bad, plain.
    """
    groups = grouped(runs, varied)
    found = []
    if objectives:
        best = highest_kept(groups, objectives)
        if best is None:
            found.append(
                ["bad", f"not even {_load_text(min(groups), varied)} keeps every objective"]
            )
        else:
            is_trusted = all(each.client.is_trusted for each in groups[best])
            text = f"up to {_load_text(best, varied)} every objective is kept"
            found.append(["good" if is_trusted else "warn", text])
    if not is_search and (bend := knee(groups)) is not None:
        is_trusted = all(summary.client.is_trusted for _, summary in runs)
        text = f"knee at {_load_text(bend, varied)}: beyond it latency grows faster than throughput"
        found.append(["plain" if is_trusted else "warn", text])
    return found


def _load_text(load: float, varied: str) -> str:
    requests = "request" if load == 1 else "requests"
    return f"{load:g} {requests} {'per second' if varied == 'rate' else 'at once'}"


def sweep_page(runs: Sequence[Pair], varied: str, said: Sequence[Sequence[str]] = ()) -> Data:
    """Curves over the load, and throughput against latency; above them what `verdicts` gave."""
    groups = grouped(runs, varied)
    unit = _UNITS[varied]
    tables = {load: [scalars(each) for each in group] for load, group in groups.items()}
    charts = []
    for title, says, keys in _SWEPT:
        series = [one for key in keys if (one := _curve(tables, key))]
        if series:
            charts.append({"title": title, "says": says, "x": unit, "series": series})
    charts.append(_frontier(tables))
    return {
        "kind": "series",
        "name": "Sweep",
        "pills": [list(each) for each in said],
        "charts": charts,
        "tables": [sweep_table(runs, varied)],
    }


def _curve(tables: Mapping[float, list[dict[str, Scalar]]], key: str) -> Data | None:
    points, bars, name = [], [], ""
    for load, group in tables.items():
        if key not in group[0]:
            return None
        name = group[0][key].name
        interval = confidence([table[key].value for table in group])
        points.append([load, interval.mean])
        if math.isfinite(interval.low):
            bars.append([load, max(interval.low, 0.0), interval.high])
    return {"name": name, "points": points, "bars": bars}


def _frontier(tables: Mapping[float, list[dict[str, Scalar]]]) -> Data:
    """Tokens per second of a user against those of the whole server: what batching trades.

    The line joins the loads that no other beats in both (Pareto).
    """
    points: list[list[Any]] = []
    for load, group in tables.items():
        tpot = confidence([table["mean_tpot_ms"].value for table in group]).mean
        whole = confidence([table["output_throughput"].value for table in group]).mean
        if tpot > 0:
            points.append([1000 / tpot, whole, f"{load:g}"])
    points.sort()
    best = [
        point[:2]
        for k, point in enumerate(points)
        if all(point[1] > after[1] for after in points[k + 1 :])
    ]
    return {
        "title": "Server against user",
        "says": "Output tokens per second of the server, by those that one user sees, at each load",
        "x": "tokens per second of one user",
        "series": [
            {"name": "server tok/s", "points": points, "is_bare": True},
            {"name": "not beaten in both", "points": best},
        ],
    }


def sweep_table(runs: Sequence[Pair], varied: str) -> Data:
    """One row per load."""
    keys = ["request_throughput", "output_throughput", "median_ttft_ms", "p99_ttft_ms"]
    keys += ["median_tpot_ms", "p99_tpot_ms"]
    keys += ["mean_concurrent_requests"] if varied == "rate" else []  # else it is what was varied
    keys += ["failed", "good_fraction"]
    rows, head = [], [varied]
    for load, group in grouped(runs, varied).items():
        tables = [scalars(each) for each in group]
        known = [key for key in keys if key in tables[0]]
        head = [varied, *(title_of(tables[0][key]) for key in known), "Client"]
        cells = [_mean_text(confidence([table[key].value for table in tables])) for key in known]
        is_trusted = all(each.client.is_trusted for each in group)
        rows.append([f"{load:g}", *cells, "kept up" if is_trusted else ["too busy", "doubt"]])
    has_repeats = len(rows) < len(runs)
    return {
        "title": "Sweep",
        "says": "Means of repeats, ± half of the 95 % interval" if has_repeats else "By load",
        "head": head,
        "rows": rows,
    }


def repeats_table(table: Mapping[str, tuple[Scalar, Interval]], num_doubtful: int) -> Data:
    """Means over repeats with their intervals; in `num_doubtful` the client was too busy."""
    rows = [
        [title_of(scalar), f"{interval.mean:,.2f}", f"{interval.low:,.2f}", f"{interval.high:,.2f}"]
        for scalar, interval in table.values()
    ]
    count = next(iter(table.values()))[1].count
    doubt = f"; in {num_doubtful} of them the client did not keep up" if num_doubtful else ""
    return {
        "title": f"{count} repeats",
        "says": f"Means over the repeats and the 95 % interval of each{doubt}",
        "head": ["", "mean", "from", "to"],
        "rows": rows,
    }


def repeats_page(table: Data) -> Data:
    """The repeats' page, with what `repeats_table` gave."""
    return {"kind": "series", "name": "Repeats", "charts": [], "tables": [table]}


def text_table(table: Data) -> str:
    """A table for the terminal; where one line is too narrow, its head has a word on each."""
    head, rows = [table["head"]], [[plain_cell(cell) for cell in row] for row in table["rows"]]
    widths = _widths([*head, *rows])
    if sum(widths) + len(_GAP) * (len(widths) - 1) > _MAX_WIDTH:
        words = [cell.split() for cell in table["head"]]
        height = max(map(len, words))
        head = [[""] * (height - len(cell)) + cell for cell in words]
        head = [list(line) for line in zip(*head, strict=True)]
        widths = _widths([*head, *rows])
    rows = [*head, *rows]
    lines = [f"{table['title']}: {table['says']}"]
    for row in rows:
        first, *rest = (
            cell.ljust(width) if k == 0 else cell.rjust(width)
            for k, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        lines.append(_GAP.join((first, *rest)).rstrip())
    return "\n".join(lines)


def _widths(rows: Sequence[Sequence[str]]) -> list[int]:
    return [max(map(len, column)) for column in zip(*rows, strict=True)]


def plain_cell(cell: Any) -> str:
    """A cell's text, with the verdict of a change in words."""
    if isinstance(cell, list):
        text, kind = cell
        return f"{text} {kind}" if kind in ("better", "worse") else str(text)
    return str(cell)


def title_of(scalar: Scalar) -> str:
    """A number's name with its unit."""
    return f"{scalar.name} ({scalar.unit})" if scalar.unit else scalar.name


def _mean_text(interval: Interval) -> str:
    if math.isfinite(interval.half):
        return f"{interval.mean:,.2f} ± {interval.half:,.2f}"
    return f"{interval.mean:,.2f}"


def span(interval: Interval, factor: float) -> str:
    """An interval in words, times `factor`."""
    if not math.isfinite(interval.low):
        return "needs repeats"
    return f"{interval.low * factor:+,.2f} … {interval.high * factor:+,.2f}"
