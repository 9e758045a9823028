"""One line per request as CSV, and the figures as Markdown."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from glimt.bench.events import EventLog, RequestEvent
from glimt.bench.figures.measured import send_lag_ns
from glimt.bench.figures.summary import Summary
from glimt.bench.figures.tokens import output_tokens
from glimt.bench.report.series import plain_cell
from glimt.bench.report.table import BLOCKS, percent_name
from glimt.errors import BadSettings

_COLUMNS = (
    *(
        "repeat",
        "index",
        "phase",
        "conversation",
        "turn",
        "worker",
        "intended_s",
        "start_s",
        "end_s",
    ),
    *("queue_ms", "send_lag_ms", "connected_ms", "sent_ms", "headers_ms", "ttft_ms", "ttfo_ms"),
    *("tpot_ms", "e2el_ms"),
    *("prompt_tokens", "text_tokens", "cached_tokens", "output_tokens", "reasoning_tokens"),
    *("asked_tokens", "images", "megapixels", "body_bytes", "chunks", "status", "finish_reason"),
    *("failure", "error"),
)


def write_csv(path: Path, logs: Sequence[EventLog]) -> None:
    """Every request of every run. Raises BadSettings if the file cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(_COLUMNS)
            for log in logs:
                writer.writerows([log.start.repeat, *_row(event)] for event in log.requests)
    except OSError as error:
        raise BadSettings(f"{path} cannot be written: {error.strerror}") from None


def _row(event: RequestEvent) -> list[object]:
    tokens = output_tokens(event)
    visible = event.chunk_kinds.find("c")
    first = event.chunk_ns[0] if event.chunk_ns else None
    last = event.chunk_ns[-1] if event.chunk_ns else None
    tpot = None
    if first is not None and last is not None and tokens > 1:
        tpot = (last - first) / 1e6 / (tokens - 1)
    return [
        *(event.index, event.phase, event.conversation, event.turn, event.worker),
        *(event.intended_ns / 1e9, event.start_ns / 1e9, event.end_ns / 1e9),
        (event.admitted_ns - event.fired_ns) / 1e6,
        send_lag_ns(event) / 1e6,
        *(_since(event, at_ns) for at_ns in (event.connected_ns, event.sent_ns, event.headers_ns)),
        _since(event, first),
        _since(event, event.chunk_ns[visible] if visible >= 0 else None),
        tpot,
        _since(event, last),
        *(event.prompt_tokens, event.text_tokens, event.cached_tokens, tokens),
        *(event.reasoning_tokens, event.asked_tokens, event.num_images),
        *(event.image_pixels / 1e6, event.body_bytes, len(event.chunk_ns), event.status),
        *(event.finish_reason, event.failure, event.error),
    ]


def _since(event: RequestEvent, at_ns: int | None) -> float | None:
    """Milliseconds after the start."""
    return None if at_ns is None else (at_ns - event.start_ns) / 1e6


def markdown(runs: Sequence[tuple[EventLog, Summary]], pages: Sequence[dict[str, Any]] = ()) -> str:
    """The figures of each run as a table, for a pull request or a page; before these what several
    runs say together, as on `pages` of `series.py` and `comparison.py`."""
    parts = [_several(page) for page in pages]
    for log, summary in runs:
        rate = "all at once" if log.start.request_rate is None else f"{log.start.request_rate:g}/s"
        lines = [f"## {log.start.model}, {summary.completed} requests, {rate}", ""]
        lines += ["| figure | value |", "|---|---:|"]
        lines += [f"| {name} | {value} |" for name, value in _totals(summary)]
        percents = list(next(iter(summary.metrics.values())).percentiles)
        head = [
            "ms",
            "mean",
            "median",
            *(f"P{percent_name(percent)}" for percent in percents),
            "max",
        ]
        lines += ["", f"| {' | '.join(head)} |", "|---" + "|---:" * (len(head) - 1) + "|"]
        for metric, (heading, _) in BLOCKS.items():
            values = summary.metrics[metric]
            if values.count:
                numbers = [values.mean, values.median, *values.percentiles.values(), values.max]
                cells = " | ".join(f"{number * 1e3:,.2f}" for number in numbers)
                lines.append(f"| {heading} | {cells} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def _several(page: dict[str, Any]) -> str:
    lines = [f"- {text}" for _, text in page.get("pills", ())]
    for table in page["tables"]:
        head = [cell or " " for cell in table["head"]]
        says = table["says"].partition("\n")[0]  # what follows are the page's pills
        lines += [] if not lines else [""]
        lines += [f"## {table['title']}", "", says, "", f"| {' | '.join(head)} |"]
        lines.append("|---" + "|---:" * (len(head) - 1) + "|")
        lines += [f"| {' | '.join(map(plain_cell, row))} |" for row in table["rows"]]
    return "\n".join(lines)


def _totals(summary: Summary) -> list[tuple[str, str]]:
    health = "kept up" if summary.client.is_trusted else "; ".join(summary.client.doubts)
    rows = [
        ("successful, failed requests", f"{summary.completed:,}, {summary.failed:,}"),
        ("duration (s)", f"{summary.duration_s:,.2f}"),
        (
            "input, generated tokens",
            f"{summary.inputs.total_tokens:,}, {summary.outputs.total_tokens:,}",
        ),
        ("requests per second", f"{summary.request_throughput:,.2f}"),
        ("output tokens per second", f"{summary.output_throughput:,.2f}"),
        (
            "mean, peak requests in flight",
            f"{summary.mean_concurrency:,.1f}, {summary.peak_concurrency}",
        ),
        ("the client", health),
    ]
    if summary.goodput is not None:
        rows.insert(-1, ("good requests", f"{summary.goodput.fraction:.1%}"))
    return rows
