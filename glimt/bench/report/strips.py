"""Small charts of what was observed beside the requests: the server's metrics, the GPUs."""

from itertools import pairwise
from typing import Any

from glimt.bench.events import EventLog
from glimt.bench.report.thinning import peaks

_MAX_POINTS = 300
_PERCENT = "vllm:kv_cache_usage_perc"  # in spite of its name a share

# (title, what it says, names of the metrics, whether their change per second is shown). The names
# are vLLM's, which Glimt uses too.
_CHARTS: tuple[tuple[str, str, tuple[str, ...], bool], ...] = (
    (
        "Server: requests",
        "Running and waiting, by the server's own count",
        ("vllm:num_requests_running", "vllm:num_requests_waiting"),
        False,
    ),
    (
        "Server: KV cache",
        "How much of it is in use",
        (_PERCENT,),
        False,
    ),
    (
        "Server: tokens per second",
        "Prompt and generated tokens, by the server's own count",
        ("vllm:prompt_tokens_total", "vllm:generation_tokens_total"),
        True,
    ),
    (
        "Server: preemptions per second",
        "Requests that lost their place in the KV cache",
        ("vllm:num_preemptions_total",),
        True,
    ),
)


def strips(log: EventLog) -> list[dict[str, Any]]:
    """The charts for which there are data."""
    charts = []
    for title, says, names, is_rate in _CHARTS:
        series: list[dict[str, Any]] = [
            {"name": name.removeprefix("vllm:"), "points": peaks(points, _MAX_POINTS)}
            for name in names
            if len(points := _during(log, _points(log, name, is_rate=is_rate))) > 1
        ]
        if any(y for one in series for _, y in one["points"]):
            unit = " %" if _PERCENT in names else ""
            charts.append({"title": title, "says": says, "series": series, "unit": unit})
    if log.power:
        watts = [(event.at_ns / 1e9, sum(event.watts)) for event in log.power if event.at_ns >= 0]
        series = [{"name": "watts", "points": peaks(watts, _MAX_POINTS)}]
        charts.append(
            {"title": "GPUs", "says": "Power of all together", "series": series, "unit": " W"}
        )
    return charts


def _during(log: EventLog, points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Without what was read before the run began, or after its end."""
    return [point for point in points if 0 <= point[0] <= log.end.end_ns / 1e9]


def _points(log: EventLog, name: str, *, is_rate: bool) -> list[tuple[float, float]]:
    """(seconds, value) or (seconds, change per second) of one metric."""
    factor = 100 if name == _PERCENT else 1
    values = [
        (event.at_ns / 1e9, factor * event.values[name])
        for event in log.server
        if name in event.values
    ]
    if not is_rate:
        return values
    return [
        (at_s, max(after - before, 0) / max(at_s - earlier_s, 1e-3))
        for (earlier_s, before), (at_s, after) in pairwise(values)
    ]
