"""Service-level objectives: what is asked of each request, and of the run as a whole."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from glimt.errors import BadSettings

BoolArray = NDArray[np.bool_]
FloatArray = NDArray[np.float64]

ATTAINMENT = 0.99  # the share of requests that must meet an objective of requests, in a search
METRICS = ("ttft", "ttfo", "tpot", "e2el")
_RUN_WIDE = re.compile(r"(?:p(\d+(?:\.\d+)?)|mean|median)_(\w+)")

# MLPerf Inference rules (2026): 99th percentiles in ms for its language and vision-language tasks.
PRESETS: dict[str, tuple[str, ...]] = {
    "chat": ("ttft:1000", "tpot:50"),
    "reading": ("ttft:3000", "tpot:100"),
    "mlperf-vlm-server": ("p99_e2el:12000",),
    "mlperf-vlm-interactive": ("p99_e2el:1500",),
    "mlperf-llama2-70b": ("p99_ttft:2000", "p99_tpot:200"),
    "mlperf-llama2-70b-interactive": ("p99_ttft:450", "p99_tpot:40"),
    "mlperf-llama3.1-8b": ("p99_ttft:2000", "p99_tpot:100"),
    "mlperf-llama3.1-405b": ("p99_ttft:6000", "p99_tpot:175"),
    "mlperf-deepseek-r1": ("p99_ttft:2000", "p99_tpot:80"),
}


@dataclass(frozen=True)
class Objective:
    """At most `limit_s` seconds: for each request, or (`percent`) for a percentile of the run.

    `percent` is None for a request's own value and -1 for the run's mean.
    """

    name: str
    metric: str
    limit_s: float
    percent: float | None = None


def parse_objectives(texts: Sequence[str], preset: str | None) -> tuple[Objective, ...]:
    """From `ttft:200`, `p99_ttft:2000` (ms), or a preset's name. Raises BadSettings."""
    if preset is not None and preset not in PRESETS:
        raise BadSettings(f"--slo-preset {preset}: must be one of {', '.join(PRESETS)}")
    given = [part for text in texts for part in text.split(",") if part]
    return tuple(_parse(text) for text in (*PRESETS.get(preset or "", ()), *given))


def _parse(text: str) -> Objective:
    name, found, value = text.partition(":")
    try:
        limit_s = float(value) / 1000
    except ValueError:
        found = ""
        limit_s = -1.0
    if not found or limit_s < 0:
        raise BadSettings(f"--goodput {text}: must be a metric and its limit in ms, e.g. ttft:200")
    metric, percent = name, None
    if (match := _RUN_WIDE.fullmatch(name)) is not None:
        metric = match[2]
        percent = float(match[1]) if match[1] else (50.0 if name.startswith("median") else -1.0)
    if metric not in METRICS or (percent or 0) > 100:
        raise BadSettings(f"--goodput {text}: knows {', '.join(METRICS)}, also as p99_ttft")
    return Objective(name, metric, limit_s, percent)


@dataclass(frozen=True)
class Verdict:
    """How the objectives were met.

    `good` has one entry for each successful request. `attainment` is the fraction of all requests
    of the run, failed ones included, that meet each objective of requests; `values_s` are the
    values of the objectives of the run.
    """

    good: BoolArray
    attainment: dict[str, float]
    values_s: dict[str, float]
    missed: tuple[str, ...]


def judge(
    objectives: Sequence[Objective], values: Mapping[str, FloatArray], num_requests: int
) -> Verdict:
    """Judge a run. `values` are seconds of each successful request; TPOT is 0 for one token."""
    size = len(values["e2el"])
    good = np.ones(size, bool)
    attainment: dict[str, float] = {}
    values_s: dict[str, float] = {}
    missed = []
    for objective in objectives:
        own = values[objective.metric]
        if objective.percent is None:
            meets = own <= objective.limit_s
            good &= meets
            attainment[objective.name] = float(meets.sum()) / num_requests if num_requests else 0.0
            continue
        # A failed request has no time that would do: it counts as endless.
        whole = np.concatenate((own, np.full(max(num_requests - size, 0), np.inf)))
        value = _statistic(whole, objective.percent)
        values_s[objective.name] = value
        if not value <= objective.limit_s:
            missed.append(objective.name)
    return Verdict(good, attainment, values_s, tuple(missed))


def _statistic(values: FloatArray, percent: float) -> float:
    if len(values) == 0:
        return float("inf")
    if percent < 0:
        return float(np.mean(values))
    return float(np.percentile(values, percent, method="inverted_cdf"))
