"""The result as JSON: vLLM's keys with vLLM's meanings, and this client's own beside them."""

import math
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec

from glimt.bench.events import EventLog, RequestEvent, RunStart
from glimt.bench.figures.statistics import Distribution
from glimt.bench.figures.summary import Summary
from glimt.bench.figures.tokens import gaps_per_chunk, output_tokens, token_times
from glimt.bench.report.table import Wording, percent_name
from glimt.errors import BadSettings

_USUAL_PERCENTILES = (50.0, 90.0, 95.0, 99.0, 99.9)


def result(
    log: EventLog,
    summary: Summary,
    wording: Wording,
    metadata: dict[str, str],
    *,
    label: str | None = None,
    is_detailed: bool = False,
) -> dict[str, Any]:
    """The result of one run: rates per second, durations in seconds, keys in _ms."""
    start = log.start
    content: dict[str, Any] = {
        "date": start.date,
        "endpoint_type": start.backend,
        "backend": start.backend,
        "label": label,
        "model_id": start.model,
        "tokenizer_id": start.tokenizer,
        "num_prompts": start.num_prompts,
        "repeat": start.repeat,
        **metadata,
        **_traffic(start),
        **_totals(summary),
    }
    for metric in wording.metrics:
        content |= _flat(metric, summary.metrics[metric])
    if summary.probes is not None:
        content |= _probes(summary)
    if steps := _ramp_steps(log):
        content["rps_change_events"] = steps
    content |= _speculative(summary)
    content["glimt"] = _own(log, summary)
    if is_detailed:
        content |= _arrays([event for event in log.requests if event.phase == "run"])
    return content


def _traffic(start: RunStart) -> dict[str, Any]:
    traffic: dict[str, Any] = {
        "request_rate": "inf" if start.request_rate is None else start.request_rate,
        "burstiness": start.burstiness if math.isfinite(start.burstiness) else "inf",
        "max_concurrency": start.max_concurrency,
    }
    if start.ramp_up is not None:
        strategy, first, last = start.ramp_up
        traffic |= {
            "ramp_up_strategy": strategy,
            "ramp_up_start_rps": first,
            "ramp_up_end_rps": last,
        }
    return traffic


def _totals(summary: Summary) -> dict[str, Any]:
    return {
        "duration": summary.duration_s,
        "completed": summary.completed,
        "failed": summary.failed,
        "total_input_tokens": summary.inputs.total_tokens,
        "total_output_tokens": summary.outputs.total_tokens,
        "request_throughput": summary.request_throughput,
        "request_goodput": summary.goodput.requests_per_s if summary.goodput else None,
        "output_throughput": summary.output_throughput,
        "total_token_throughput": summary.total_token_throughput,
        "max_output_tokens_per_s": summary.peak_output_throughput,
        "max_concurrent_requests": summary.peak_concurrency,
        "rtfx": 0.0,
    }


def _flat(metric: str, values: Distribution) -> dict[str, float]:
    flat = {
        f"mean_{metric}_ms": values.mean * 1e3,
        f"median_{metric}_ms": values.median * 1e3,
        f"std_{metric}_ms": values.std * 1e3,
    }
    for percent, value in values.percentiles.items():
        flat[f"p{percent_name(percent)}_{metric}_ms"] = value * 1e3
    return flat


def _probes(summary: Summary) -> dict[str, Any]:
    if summary.probes is None:
        return {}
    return {
        "probe_completed": summary.probes.count,
        "probe_failed": summary.probes_failed,
        "probe_median_e2el_ms": summary.probes.median * 1e3,
        "probe_max_e2el_ms": summary.probes.max * 1e3,
    } | {
        f"probe_p{percent_name(percent)}_e2el_ms": value * 1e3
        for percent, value in summary.probes.percentiles.items()
    }


def _speculative(summary: Summary) -> dict[str, Any]:
    if summary.server is None or summary.server.speculative is None:
        return {}
    speculative = summary.server.speculative
    return {
        "spec_decode_acceptance_rate": speculative.acceptance_rate,
        "spec_decode_acceptance_length": speculative.acceptance_length,
        "spec_decode_num_drafts": speculative.drafts,
        "spec_decode_draft_tokens": speculative.draft_tokens,
        "spec_decode_accepted_tokens": speculative.accepted_tokens,
    }


def _distribution(values: Distribution) -> dict[str, Any]:
    """In milliseconds."""
    return {
        "count": values.count,
        "mean_ms": values.mean * 1e3,
        "median_ms": values.median * 1e3,
        "std_ms": values.std * 1e3,
        "max_ms": values.max * 1e3,
        **{
            f"p{percent_name(percent)}_ms": value * 1e3
            for percent, value in values.percentiles.items()
        },
    }


def _own(log: EventLog, summary: Summary) -> dict[str, Any]:
    """What vLLM's result does not have."""
    client = summary.client
    own: dict[str, Any] = {
        "metrics": {
            name: _distribution(
                Distribution.of(
                    summary.values(name), sorted({*each.percentiles, *_USUAL_PERCENTILES})
                )
            )
            for name, each in summary.metrics.items()
        },
        "mean_concurrent_requests": summary.mean_concurrency,
        "steady": msgspec.to_builtins(summary.steady),
        "inputs": msgspec.to_builtins(summary.inputs),
        "outputs": msgspec.to_builtins(summary.outputs),
        "server": msgspec.to_builtins(summary.server),
        "energy": msgspec.to_builtins(summary.energy),
        "failures": summary.failures,
        "errors": list(summary.errors),
        "client": {
            "send_lag": _distribution(client.send_lag),
            "event_loop_lag": _distribution(client.loop_lag),
            "cpu": client.cpu,
            "achieved_rate": client.achieved_rate,
            "is_trusted": client.is_trusted,
            "doubts": list(client.doubts),
        },
        "notes": [*summary.notes, *log.end.notes],
        "settings": log.start.settings,
        "provenance": log.start.provenance,
    }
    if summary.goodput is not None:
        verdict = summary.goodput.verdict
        own["goodput"] = {
            "requests_per_s": summary.goodput.requests_per_s,
            "tokens_per_s": summary.goodput.tokens_per_s,
            "fraction": summary.goodput.fraction,
            "attainment": verdict.attainment,
            "values_ms": {name: value * 1e3 for name, value in verdict.values_s.items()},
            "missed": list(verdict.missed),
        }
    return own


def _arrays(events: Sequence[RequestEvent]) -> dict[str, Any]:
    """One entry per request, in seconds, as vLLM's --save-detailed has them: zeros for failures.

    The server's own times are there if it tells any.
    """
    good = [event.failure is None for event in events]
    times = [token_times(event, by_chunk=True) for event in events]
    firsts = [int(each.at_ns[0]) if len(each.at_ns) else None for each in times]
    lasts = [int(each.at_ns[-1]) if len(each.at_ns) else None for each in times]
    return {
        "input_lens": [event.prompt_tokens or event.text_tokens or 0 for event in events],
        "output_lens": [
            output_tokens(event) if ok else 0 for event, ok in zip(events, good, strict=True)
        ],
        "ttfts": [
            (first - event.start_ns) / 1e9 if first is not None else 0.0
            for event, first in zip(events, firsts, strict=True)
        ],
        "itls": [gaps_per_chunk(each).tolist() for each in times],
        "latencies": [
            (last - event.start_ns) / 1e9 if last is not None else 0.0
            for event, last in zip(events, lasts, strict=True)
        ],
        "start_times": [event.start_ns / 1e9 for event in events],
        "queue_times": [(event.admitted_ns - event.fired_ns) / 1e9 for event in events],
        "generated_texts": [event.content or "" for event in events],
        "errors": [event.error for event in events],
    } | _server_times(events)


def _server_times(events: Sequence[RequestEvent]) -> dict[str, Any]:
    columns = {
        "server_queue_times": [event.server_queue_ms for event in events],
        "server_ttfts": [event.server_ttft_ms for event in events],
    }
    if all(value is None for values in columns.values() for value in values):
        return {}
    return {
        name: [None if value is None else value / 1e3 for value in values]
        for name, values in columns.items()
    }


def _ramp_steps(log: EventLog) -> list[dict[str, Any]]:
    """When the rate of a ramp reached each whole number, by the requests' own times."""
    if log.start.ramp_up is None:
        return []
    strategy, first, last = log.start.ramp_up
    ended = datetime.strptime(log.start.date, "%Y%m%d-%H%M%S")
    began = ended - timedelta(seconds=log.end.end_ns / 1e9)
    steps, reached = [{"rps": first, "timestamp": began.isoformat()}], first
    for place, event in enumerate(event for event in log.requests if event.phase == "run"):
        progress = place / max(log.start.num_prompts - 1, 1)
        grown = first + (last - first) * progress
        rate = int(grown if strategy == "linear" else first * (last / first) ** progress)
        at = (began + timedelta(seconds=event.intended_ns / 1e9)).isoformat()
        steps += [{"rps": step, "timestamp": at} for step in range(reached + 1, rate + 1)]
        reached = max(reached, rate)
    return steps


def write_results(path: Path, results: Sequence[dict[str, Any]], *, append: bool) -> None:
    """Write results as JSON, one object a line if there are several or lines are appended.

    Raises BadSettings if the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        is_new = not append or not path.exists() or path.stat().st_size == 0
        with path.open("ab" if append else "wb") as file:
            file.write(b"" if is_new else b"\n")
            file.write(b"\n".join(msgspec.json.encode(each) for each in results))
    except OSError as error:
        raise BadSettings(f"{path} cannot be written: {error.strerror}") from None
