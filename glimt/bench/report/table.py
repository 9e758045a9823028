"""The table on the terminal: vLLM's rows in vLLM's order, then what only this client measures.

With `--vllm-compat` it is byte for byte what `vllm bench serve` up to 0.12 prints ("Total Token
throughput"), and nothing after it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from glimt.bench.events import RunStart
from glimt.bench.figures.objectives import Objective
from glimt.bench.figures.statistics import Distribution
from glimt.bench.figures.summary import Summary

WIDTH = 50

# (heading, name in the rows) of each block.
BLOCKS = {
    "ttft": ("Time to First Token", "TTFT"),
    "tpot": ("Time per Output Token (excl. 1st token)", "TPOT"),
    "itl": ("Inter-token Latency", "ITL"),
    "e2el": ("End-to-end Latency", "E2EL"),
    "client_queue_time": ("Client-side Queueing", "Client Queue Time"),
    "e2el_including_client_queue": (
        "Queue-inclusive End-to-end Latency",
        "E2EL incl. Client Queue",
    ),
    "e2el_per_token": ("Normalised Latency (per Token)", "E2EL per Token"),
    "ttfo": ("Time to First Visible Token", "TTFO"),
    "ttst": ("Time to Second Token", "TTST"),
    "chunk_gap": ("Gap between Chunks", "Chunk Gap"),
    "ttft_from_intended": ("TTFT from the Intended Time", "TTFT from Intended"),
    "e2el_from_intended": ("E2EL from the Intended Time", "E2EL from Intended"),
    "connect": ("Opening a Connection", "Connect"),
    "upload": ("Upload of the Request", "Upload"),
    "headers": ("From Upload to the Answer's Headers", "Headers"),
}


@dataclass(frozen=True, kw_only=True)
class Wording:
    """What the table is to show."""

    metrics: Sequence[str]
    objectives: Sequence[Objective] = ()
    vllm_compat: bool = False
    has_text_row: bool = False  # among vLLM's rows one for the input tokens of texts


def table(start: RunStart, summary: Summary, wording: Wording) -> str:
    """The whole table, without a newline at its end."""
    lines = [f"{' Serving Benchmark Result ':=^{WIDTH}}", *_load(start, summary, wording)]
    for metric in wording.metrics:
        if metric in BLOCKS and (
            summary.metrics[metric].count or metric in ("ttft", "tpot", "itl")
        ):
            lines += _block(metric, summary.metrics[metric])
    lines += _probes(summary)
    lines += _speculative(summary)
    if not wording.vllm_compat:
        lines += _more(summary)
        lines += _server(summary)
        lines += _energy(summary)
        lines += _objectives(summary, wording)
        lines += _client(summary)
    return "\n".join([*lines, "=" * WIDTH])


def percent_name(percent: float) -> str:
    """99 or 99.9."""
    return str(int(percent)) if int(percent) == percent else str(percent)


def _count(label: str, value: int) -> str:
    return f"{label + ':':<40} {value:<10}"


def _number(label: str, value: float) -> str:
    return f"{label + ':':<40} {value:<10.2f}"


def _text(label: str, value: str) -> str:
    return f"{label + ':':<40} {value:<10}"


def _load(start: RunStart, summary: Summary, wording: Wording) -> Iterator[str]:
    yield _count("Successful requests", summary.completed)
    yield _count("Failed requests", summary.failed)
    if start.max_concurrency is not None:
        yield _count("Maximum request concurrency", start.max_concurrency)
    if start.request_rate is not None:
        yield _number("Request rate configured (RPS)", start.request_rate)
    yield _number("Benchmark duration (s)", summary.duration_s)
    yield _count("Total input tokens", summary.inputs.total_tokens)
    if wording.has_text_row and summary.inputs.text_tokens is not None:
        yield _count("Total input tokens of texts", summary.inputs.text_tokens)
    yield _count("Total generated tokens", summary.outputs.total_tokens)
    yield _number("Request throughput (req/s)", summary.request_throughput)
    if summary.goodput is not None:
        yield _number("Request goodput (req/s)", summary.goodput.requests_per_s)
    yield _number("Output token throughput (tok/s)", summary.output_throughput)
    yield _number("Peak output token throughput (tok/s)", summary.peak_output_throughput)
    yield _number("Peak concurrent requests", summary.peak_concurrency)
    token = "Token" if wording.vllm_compat else "token"
    yield _number(f"Total {token} throughput (tok/s)", summary.total_token_throughput)


def _block(metric: str, values: Distribution) -> Iterator[str]:
    heading, name = BLOCKS[metric]
    yield f"{heading:-^{WIDTH}}"
    yield _number(f"Mean {name} (ms)", values.mean * 1e3)
    yield _number(f"Median {name} (ms)", values.median * 1e3)
    for percent, value in values.percentiles.items():
        yield _number(f"P{percent_name(percent)} {name} (ms)", value * 1e3)


def _probes(summary: Summary) -> Iterator[str]:
    if summary.probes is None:
        return
    yield f"{'Probe Requests':-^{WIDTH}}"
    yield _count("Probe requests completed", summary.probes.count)
    yield _count("Probe requests failed", summary.probes_failed)
    yield _number("Median probe E2EL (ms)", summary.probes.median * 1e3)
    for percent, value in summary.probes.percentiles.items():
        yield _number(f"P{percent_name(percent)} probe E2EL (ms)", value * 1e3)
    yield _number("Max probe E2EL (ms)", summary.probes.max * 1e3)


def _more(summary: Summary) -> Iterator[str]:
    """What vLLM's table does not have."""
    inputs, outputs = summary.inputs, summary.outputs
    yield f"{'Load':-^{WIDTH}}"
    yield _number("Mean concurrent requests", summary.mean_concurrency)
    if summary.steady is not None:
        steady = summary.steady
        seconds = (steady.end_ns - steady.start_ns) / 1e9
        yield _number("Steady part of the run (s)", seconds)
        yield _number("Steady request throughput (req/s)", steady.request_throughput)
        yield _number("Steady output throughput (tok/s)", steady.output_throughput)
    if inputs.text_tokens is not None:
        yield _count("Input tokens of texts", inputs.text_tokens)
    if inputs.other_tokens is not None:
        yield _count(f"Input tokens of {inputs.others}", inputs.other_tokens)
    if inputs.cached_tokens is not None:
        yield _count("Input tokens from the cache", inputs.cached_tokens)
    if inputs.images:
        yield _count("Images", inputs.images)
        yield _number("Megapixels per image", inputs.megapixels / inputs.images)
    yield _number("Sent (MB)", inputs.body_bytes / 1e6)
    if outputs.reasoning_tokens is not None:
        yield _count("Generated tokens of thinking", outputs.reasoning_tokens)
    if outputs.chunks:
        yield _number("Tokens per chunk", outputs.total_tokens / outputs.chunks)
    yield _count("Answers shorter than asked for", outputs.short)
    if outputs.long:
        yield _count("Answers longer than asked for", outputs.long)
    if outputs.undercounted:
        yield _count("Answers with fewer tokens than chunks", outputs.undercounted)
    if inputs.without_usage:
        yield _count("Answers without token counts", inputs.without_usage)
    for name, count in sorted(summary.failures.items()):
        yield _count(f"Failed: {name}", count)


def _speculative(summary: Summary) -> Iterator[str]:
    """vLLM's block; only there if the server speculates."""
    if summary.server is None or summary.server.speculative is None:
        return
    speculative = summary.server.speculative
    yield f"{'Speculative Decoding':-^{WIDTH}}"
    yield _number("Acceptance rate (%)", speculative.acceptance_rate)
    yield _number("Acceptance length", speculative.acceptance_length)
    yield _count("Drafts", speculative.drafts)
    yield _count("Draft tokens", speculative.draft_tokens)
    yield _count("Accepted tokens", speculative.accepted_tokens)


def _server(summary: Summary) -> Iterator[str]:
    server = summary.server
    if server is None:
        return
    rows = []
    if server.prefix_cache_hit_rate is not None:
        rows.append(_number("Prefix cache hits (% of tokens)", 100 * server.prefix_cache_hit_rate))
    if server.image_cache_hit_rate is not None:
        rows.append(_number("Image cache hits (%)", 100 * server.image_cache_hit_rate))
    if server.preemptions is not None:
        rows.append(_count("Preemptions", server.preemptions))
    if rows:
        yield f"{'Server':-^{WIDTH}}"
        yield from rows


def _energy(summary: Summary) -> Iterator[str]:
    if summary.energy is None:
        return
    yield f"{'GPUs':-^{WIDTH}}"
    yield _number("Mean power (W)", summary.energy.mean_watts)
    if summary.energy.mean_utilisation is not None:
        yield _number("Mean use (%)", summary.energy.mean_utilisation * 100)
    yield _number("Energy (J)", summary.energy.joules)
    if summary.energy.joules_per_token is not None:
        yield _text("Energy per generated token (J)", f"{summary.energy.joules_per_token:.4f}")


def _objectives(summary: Summary, wording: Wording) -> Iterator[str]:
    if summary.goodput is None:
        return
    verdict = summary.goodput.verdict
    yield f"{'Objectives':-^{WIDTH}}"
    doubt = "" if summary.client.is_trusted else ", if the client can be believed"
    yield _number("Good requests (%)", summary.goodput.fraction * 100)
    yield _number("Token goodput (tok/s)", summary.goodput.tokens_per_s)
    for objective in wording.objectives:
        limit = f"{objective.name} <= {objective.limit_s * 1e3:g} ms"
        if objective.percent is None:
            yield _text(limit, f"{verdict.attainment[objective.name]:.1%} of requests{doubt}")
        else:
            kept = "missed" if objective.name in verdict.missed else f"kept{doubt}"
            yield _text(limit, f"{verdict.values_s[objective.name] * 1e3:.2f} ms: {kept}")


def _client(summary: Summary) -> Iterator[str]:
    client = summary.client
    yield f"{'Client':-^{WIDTH}}"
    yield _number("Mean send lag (ms)", client.send_lag.mean * 1e3)
    for percent, value in client.send_lag.percentiles.items():
        yield _number(f"P{percent_name(percent)} send lag (ms)", value * 1e3)
    yield _number("Max event loop lag (ms)", client.loop_lag.max * 1e3)
    yield _number("Processor use (% of a core)", client.cpu * 100)
    yield _number("Achieved request rate (req/s)", client.achieved_rate)
    if client.is_trusted:
        yield "The client kept up."
    for doubt in client.doubts:
        yield f"NOT TRUSTWORTHY: {doubt}"
