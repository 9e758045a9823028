"""One run as the report's page shows it: plain data, thinned out, for the scripts in the page."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from glimt.bench.events import EventLog, RequestEvent
from glimt.bench.figures.concurrency import sweep
from glimt.bench.figures.measured import send_lag_ns
from glimt.bench.figures.objectives import ATTAINMENT, Objective
from glimt.bench.figures.statistics import Distribution
from glimt.bench.figures.summary import Summary, failure_class
from glimt.bench.report.strips import strips
from glimt.bench.report.table import BLOCKS, percent_name
from glimt.bench.report.thinning import (
    SHARES,
    by_second,
    evenly,
    histogram,
    peaks,
    quantiles,
    rounded,
)

_MAX_BINS = 400
_MAX_POINTS = 2000
_MAX_ROWS = 300
_MAX_STEPS = 1200
_MAX_CELLS = 40  # of a row of the waterfall
_TOLD = ("model", "backend", "tokenizer")  # settings that the head of the log says better

Data = dict[str, Any]


def run_page(
    log: EventLog,
    summary: Summary,
    objectives: Sequence[Objective],
    name: str,
    detail: float = 1.0,
    gap_limits_ms: tuple[float, float] = (25.0, 50.0),
) -> Data:
    """Everything that is drawn of one run. Times in seconds, durations in milliseconds.

    `detail` is the share of points, at most 1, that are drawn where there are many. Gaps between
    chunks from each of `gap_limits_ms` on stand out in the waterfall.
    """
    max_bins, max_points = round(_MAX_BINS * detail), round(_MAX_POINTS * detail)
    requests = [event for event in log.requests if event.phase == "run"]
    steady = summary.steady
    x_name, of = _input_axis(requests)
    answered = [event for event in requests if event.failure is None]
    return {
        "kind": "run",
        "name": name,
        "duration_s": rounded(summary.duration_s),
        "num_requests": len(requests),
        "pills": _pills(summary, objectives),
        "cards": _cards(summary),
        "steady": [steady.start_ns / 1e9, steady.end_ns / 1e9] if steady else None,
        "has_thinking": any("r" in event.chunk_kinds for event in answered),
        "time": _over_time(requests, answered, summary, max_bins),
        "in_flight": _in_flight(requests, round(_MAX_STEPS * detail)),
        "x_name": x_name,
        "points": evenly([_point(event, of(event)) for event in answered], max_points),
        "shares": [rounded(share) for share in SHARES],
        "quantiles": _quantiles(summary),
        "lengths": histogram([event.prompt_tokens or event.text_tokens or 0 for event in answered]),
        "answers": histogram(
            [event.completion_tokens or len(event.chunk_ns) for event in answered]
        ),
        "gap_limits_ms": list(gap_limits_ms),
        "waterfall": [
            _row(event, gap_limits_ms) for event in evenly(requests, round(_MAX_ROWS * detail))
        ],
        "lag": peaks(
            [(event.start_ns / 1e9, send_lag_ns(event) / 1e6) for event in requests], max_bins
        ),
        "loop": peaks(
            [(each.at_ns / 1e9, each.loop_lag_ns / 1e6) for each in log.health if each.at_ns >= 0],
            max_bins,
        ),
        "strips": strips(log),
        "table": _table(summary),
        "facts": _facts(log, summary),
    }


def _pills(summary: Summary, objectives: Sequence[Objective]) -> list[list[str]]:
    """[kind, text] of each; what an overloaded client has seen is never good."""
    pills = []
    good = "good" if summary.client.is_trusted else "warn"
    if summary.goodput is not None:
        verdict = summary.goodput.verdict
        for objective in objectives:
            limit = f"{objective.name} ≤ {objective.limit_s * 1e3:g} ms"
            if objective.percent is None:
                share = verdict.attainment[objective.name]
                pills.append([good if share >= ATTAINMENT else "warn", f"{limit}: {share:.1%}"])
            else:
                missed = objective.name in verdict.missed
                value = f"{verdict.values_s[objective.name] * 1e3:.0f} ms"
                pills.append(["bad" if missed else good, f"{limit}: {value}"])
    pills += [["bad", f"{count} × {name}"] for name, count in sorted(summary.failures.items())]
    pills += [["bad", f"not trustworthy: {doubt}"] for doubt in summary.client.doubts]
    if summary.client.is_trusted:
        pills.append(["plain", "the client kept up"])
    return pills


def _cards(summary: Summary) -> list[dict[str, str]]:
    def card(name: str, value: float, unit: str, more: str, digits: int = 1) -> dict[str, str]:
        shown = f"{value:,.0f}" if value >= 1000 else f"{value:,.{digits}f}"
        return {"name": name, "value": shown, "unit": unit, "more": more}

    def latency(metric: str, name: str) -> dict[str, str]:
        values = summary.metrics[metric]
        tail = ", ".join(
            f"P{percent_name(percent)} {value * 1e3:,.1f}"
            for percent, value in values.percentiles.items()
        )
        more = f"mean {values.mean * 1e3:,.1f}, {tail}"
        return card(name, values.median * 1e3, "ms", more)

    inputs, outputs = summary.inputs, summary.outputs
    cards = [
        card("Requests", summary.request_throughput, "per s", _requests_text(summary), 2),
        card(
            "Output",
            summary.output_throughput,
            "tokens/s",
            f"{outputs.total_tokens:,} tokens; peak {summary.peak_output_throughput:,.0f}",
        ),
        latency("ttft", "Time to first token, median"),
        latency("tpot", "Time per output token, median"),
        latency("e2el", "End to end, median"),
        card(
            "In flight, mean",
            summary.mean_concurrency,
            "",
            f"peak {summary.peak_concurrency}",
        ),
        card(
            "Input",
            inputs.total_tokens / max(summary.completed, 1),
            "tokens each",
            _inputs_text(summary),
            0,
        ),
    ]
    if summary.goodput is not None:
        good = summary.goodput
        cards.append(
            card("Good requests", good.fraction * 100, "%", f"{good.requests_per_s:.2f} per s")
        )
    return cards


def _requests_text(summary: Summary) -> str:
    failed = f", {summary.failed} failed" if summary.failed else ""
    return f"{summary.completed} in {summary.duration_s:.1f} s{failed}"


def _inputs_text(summary: Summary) -> str:
    inputs = summary.inputs
    if not inputs.images:
        return f"{inputs.total_tokens:,} in all"
    return f"{inputs.images} images of {inputs.megapixels / inputs.images:.2f} megapixels"


def _input_axis(requests: Sequence[RequestEvent]) -> tuple[str, Any]:
    """What a request's size is told by, and how to get it: image tokens where there are images."""
    has_images = any(event.num_images for event in requests)
    if has_images and any(event.image_tokens for event in requests):
        return "image tokens", lambda event: event.image_tokens or 0
    if has_images and all(event.text_tokens is not None for event in requests):
        return "image tokens", lambda event: max(
            (event.prompt_tokens or 0) - (event.text_tokens or 0), 0
        )
    if any(event.image_pixels for event in requests):
        return "megapixels", lambda event: event.image_pixels / 1e6
    return "input tokens", lambda event: event.prompt_tokens or event.text_tokens or 0


def _over_time(
    requests: Sequence[RequestEvent],
    answered: Sequence[RequestEvent],
    summary: Summary,
    max_bins: int,
) -> Data:
    duration_s, measured = summary.duration_s, summary.measured
    thoughts = [
        at_ns
        for event in answered
        for at_ns, kind in zip(event.chunk_ns, event.chunk_kinds, strict=True)
        if kind == "r"
    ]
    starts_s = np.array([event.start_ns / 1e9 for event in requests])
    middles, arrivals = by_second(starts_s, None, duration_s, max_bins)
    _, completions = by_second(measured.ends_ns / 1e9, None, duration_s, max_bins)
    _, tokens = by_second(measured.token_ns / 1e9, measured.token_counts, duration_s, max_bins)
    _, thinking = by_second(np.array(thoughts) / 1e9, None, duration_s, max_bins)
    return {
        "t": middles,
        "arrivals": arrivals,
        "completions": completions,
        "tokens": tokens,
        "thinking": thinking,
    }


def _in_flight(requests: Sequence[RequestEvent], max_steps: int) -> list[list[float]]:
    steps = sweep(
        np.array([event.start_ns for event in requests], np.int64),
        np.array([event.end_ns for event in requests], np.int64),
    )
    points = [
        (at_ns / 1e9, float(level))
        for at_ns, level in zip(steps.at_ns.tolist(), steps.level.tolist(), strict=True)
    ]
    return peaks(points, max_steps)


def _point(event: RequestEvent, size: float) -> list[float]:
    """[index, start in s, TTFT, E2EL in ms, size, tokens]."""
    return [
        event.index,
        rounded(event.start_ns / 1e9),
        rounded((event.chunk_ns[0] - event.start_ns) / 1e6),
        rounded((event.chunk_ns[-1] - event.start_ns) / 1e6),
        rounded(float(size)),
        event.completion_tokens or len(event.chunk_ns),
    ]


def _row(event: RequestEvent, gap_limits_ms: tuple[float, float]) -> list[Any]:
    """[index, came, left, first token, first visible token, last token, end (ms), failure, levels
    of its gaps, longest gap (ms)]."""
    visible = event.chunk_kinds.find("c")

    def at(at_ns: int | None) -> float | None:
        return None if at_ns is None else round(at_ns / 1e6, 1)

    gaps_ms = np.diff(np.array(event.chunk_ns, np.int64)) / 1e6
    return [
        event.index,
        at(event.fired_ns),
        at(event.start_ns),
        at(event.chunk_ns[0]) if event.chunk_ns else None,
        at(event.chunk_ns[visible]) if visible >= 0 else None,
        at(event.chunk_ns[-1]) if event.chunk_ns else None,
        at(event.end_ns),
        failure_class(event) if event.failure else "",
        _gap_levels(event, gaps_ms, gap_limits_ms),
        rounded(float(gaps_ms.max(initial=0.0))),
    ]


def _gap_levels(event: RequestEvent, gaps_ms: Any, limits_ms: tuple[float, float]) -> str:
    """A digit for each equal part of the time from the first chunk to the last: 0; 1 or 2 where a
    gap of at least the first or second limit lies."""
    levels = np.digitize(gaps_ms, limits_ms)
    if not levels.any():
        return ""
    at_ns = np.array(event.chunk_ns, np.int64)
    places = (at_ns - at_ns[0]) / (at_ns[-1] - at_ns[0]) * _MAX_CELLS
    cells = np.zeros(_MAX_CELLS, int)
    for low, high, level in zip(places[:-1], places[1:], levels, strict=True):
        if level:
            end = max(int(np.ceil(high)), int(low) + 1)
            cells[int(low) : end] = np.maximum(cells[int(low) : end], level)
    return "".join(map(str, cells))


def _quantiles(summary: Summary) -> dict[str, list[float]]:
    measured = summary.measured
    arrays = {
        "TTFT": measured.ttft,
        "TPOT": measured.tpot,
        "ITL": measured.itl,
        "E2EL": measured.e2el,
    }
    return {name: quantiles(values[~np.isnan(values)] * 1e3) for name, values in arrays.items()}


def _table(summary: Summary) -> Data:
    shown = (50.0, 90.0, 95.0, 99.0, 99.9)
    head = ["", "mean", "std", *(f"P{percent_name(percent)}" for percent in shown), "max", "count"]
    rows = []
    for metric, (heading, _) in BLOCKS.items():
        values = summary.metrics[metric]
        if values.count:
            rows.append([heading, *_cells(values, summary.values(metric), shown)])
    rows.append(["Send lag", *_cells(summary.client.send_lag, summary.client.lags_s, shown)])
    return {"head": head, "rows": rows}


def _cells(values: Distribution, raw: Any, shown: Sequence[float]) -> list[str]:
    ranks = np.percentile(raw, list(shown)) if len(raw) else np.zeros(len(shown))
    numbers = [values.mean, values.std, *(float(rank) for rank in ranks), values.max]
    return [*(f"{number * 1e3:,.2f}" for number in numbers), f"{values.count:,}"]


def _fact(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "unknown" if value is None else str(value)


def _facts(log: EventLog, summary: Summary) -> list[list[str]]:
    start, source = log.start, log.start.provenance
    facts = [
        ["date", start.date],
        ["model", start.model],
        ["backend", start.backend],
        ["tokenizer", start.tokenizer or "none"],
        *([key, _fact(value)] for key, value in start.settings.items() if key not in _TOLD),
        *([key, _fact(value)] for key, value in source.items() if key not in ("argv", "server")),
    ]
    server = source.get("server") or {}
    if server.get("version"):
        facts.append(["server version", str(server["version"])])
    facts += [["note", note] for note in (*summary.notes, *log.end.notes)]
    facts += [["error", error] for error in summary.errors]
    return facts
