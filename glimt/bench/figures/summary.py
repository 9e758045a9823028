"""All figures of one run, computed from its event log."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from glimt.bench.events import EventLog, RequestEvent
from glimt.bench.figures.concurrency import (
    Steps,
    peak_rate,
    steady_window,
    sweep,
    vllm_peaks,
)
from glimt.bench.figures.energy import Energy, energy
from glimt.bench.figures.likeness import tokenizer_doubt
from glimt.bench.figures.measured import FloatArray, Measured, measure
from glimt.bench.figures.objectives import Verdict, judge
from glimt.bench.figures.question import Question
from glimt.bench.figures.server import ServerFigures, server_figures
from glimt.bench.figures.statistics import Distribution
from glimt.bench.figures.tokens import output_tokens
from glimt.bench.figures.trust import ClientHealth, client_health


@dataclass(frozen=True, kw_only=True)
class Steady:
    """The part of the run in which the load was near its peak: ns, and rates in it."""

    start_ns: int
    end_ns: int
    ratio: float
    request_throughput: float
    output_throughput: float
    mean_concurrency: float


@dataclass(frozen=True, kw_only=True)
class Goodput:
    """Requests that meet all objectives."""

    requests_per_s: float
    tokens_per_s: float
    fraction: float  # of all requests, failed ones included
    verdict: Verdict


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What was asked: by the server's counts, by the client's, and as bytes."""

    total_tokens: int  # the server's, else the client's; or the texts' alone, if so asked
    text_tokens: int | None  # of texts alone, by the client's tokenizer
    other_tokens: int | None  # what else there is, as `others` says
    others: str  # images, if the server counts them apart; else all that the texts are not
    cached_tokens: int | None
    images: int
    megapixels: float
    body_bytes: int
    without_usage: int  # requests whose answers had no counts


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """What was answered."""

    total_tokens: int
    reasoning_tokens: int | None
    asked_tokens: int
    short: int  # answers with fewer tokens than asked for
    long: int
    chunks: int
    undercounted: int  # answers with more chunks that carry tokens than the server counts tokens
    reads: int  # of sockets, in which the chunks came


@dataclass(frozen=True, kw_only=True)
class Summary:
    """All figures of one run. Durations are seconds, rates per second."""

    duration_s: float
    completed: int
    failed: int
    failures: dict[str, int]
    errors: tuple[str, ...]
    notes: tuple[str, ...]  # what to think of the figures
    request_throughput: float
    output_throughput: float
    total_token_throughput: float
    peak_output_throughput: float
    peak_concurrency: int
    mean_concurrency: float
    steady: Steady | None
    goodput: Goodput | None
    inputs: Inputs
    outputs: Outputs
    metrics: dict[str, Distribution]
    client: ClientHealth
    probes: Distribution | None
    probes_failed: int
    energy: Energy | None
    server: ServerFigures | None
    measured: Measured

    def values(self, metric: str) -> FloatArray:
        """All values behind one of `metrics`, in seconds."""
        return metric_values(self.measured)[metric]


def summarise(log: EventLog, question: Question) -> Summary:
    """Evaluate one run. Warm-ups and probes are not among its requests."""
    requests = [event for event in log.requests if event.phase == "run"]
    good, bad = _sorted_out(requests, question)
    measured = measure(good, by_chunk=question.vllm_compat)
    duration_s = log.end.end_ns / 1e9
    tokens, inputs = int(measured.tokens.sum()), _inputs(good, question)
    in_flight = sweep(
        np.array([event.start_ns for event in requests], np.int64),
        np.array([event.end_ns for event in requests], np.int64),
    )
    peak_tokens, peak_concurrency = _peaks(measured, in_flight, log, question)
    probes = [event for event in log.requests if event.phase == "probe"]
    answered = [event for event in probes if event.failure is None]
    return Summary(
        duration_s=duration_s,
        completed=len(good),
        failed=len(bad),
        failures=dict(Counter(failure_class(event) for event in bad)),
        errors=tuple(text for text, _ in Counter(event.error for event in bad).most_common(10)),
        notes=() if (doubt := tokenizer_doubt(log, good)) is None else (doubt,),
        request_throughput=_rate(len(good), duration_s),
        output_throughput=_rate(tokens, duration_s),
        total_token_throughput=_rate(tokens + inputs.total_tokens, duration_s),
        peak_output_throughput=peak_tokens,
        peak_concurrency=peak_concurrency,
        mean_concurrency=in_flight.mean(0, log.end.end_ns),
        steady=_steady(in_flight, measured, question),
        goodput=_goodput(measured, question, len(requests), duration_s),
        inputs=inputs,
        outputs=_outputs(good, measured),
        metrics=_distributions(measured, question.percentiles),
        client=client_health(log, question.percentiles),
        probes=_probes(answered, question.percentiles) if probes else None,
        probes_failed=len(probes) - len(answered),
        energy=energy(log, tokens),
        server=server_figures(log),
        measured=measured,
    )


def failure_class(event: RequestEvent) -> str:
    """The class under which a failed request is counted: http_503, timeout, …"""
    return f"http_{event.status}" if event.failure == "http" else str(event.failure)


def _sorted_out(
    requests: Sequence[RequestEvent], question: Question
) -> tuple[list[RequestEvent], list[RequestEvent]]:
    """Successes and failures. For vLLM's client every answer with a token is a success."""
    good: list[RequestEvent] = []
    bad: list[RequestEvent] = []
    for event in requests:
        has_token = event.status == 200 and bool(event.chunk_ns)
        is_good = has_token if question.vllm_compat else event.failure is None
        (good if is_good else bad).append(event)
    return good, bad


def _rate(count: int, duration_s: float) -> float:
    return count / duration_s if duration_s > 0 else 0.0


def _peaks(
    measured: Measured, in_flight: Steps, log: EventLog, question: Question
) -> tuple[float, int]:
    """Peak tokens per second (in any second, or the whole run if it is shorter), and requests."""
    if question.vllm_compat:
        starts, ends, tokens = measured.starts_ns, measured.ends_ns, measured.token_ns
        return vllm_peaks(starts / 1e9, ends / 1e9, tokens / 1e9)
    window_ns = min(1_000_000_000, log.end.end_ns)
    peak = peak_rate(measured.token_ns, measured.token_counts, window_ns)
    return peak, in_flight.peak()


def _steady(in_flight: Steps, measured: Measured, question: Question) -> Steady | None:
    if question.steady_ratio is None:
        return None
    window = steady_window(in_flight, question.steady_ratio)
    if window is None:
        return None
    start, end = window
    seconds = (end - start) / 1e9
    is_inside = (measured.token_ns >= start) & (measured.token_ns < end)
    ended = (measured.ends_ns >= start) & (measured.ends_ns < end)
    return Steady(
        start_ns=start,
        end_ns=end,
        ratio=question.steady_ratio,
        request_throughput=float(ended.sum()) / seconds,
        output_throughput=float(measured.token_counts[is_inside].sum()) / seconds,
        mean_concurrency=in_flight.mean(start, end),
    )


def _goodput(
    measured: Measured, question: Question, num_requests: int, duration_s: float
) -> Goodput | None:
    if not question.objectives:
        return None
    values = {
        "ttft": measured.ttft,
        "ttfo": measured.ttfo,
        "tpot": measured.tpot_or_zero(),
        "e2el": measured.e2el,
    }
    verdict = judge(question.objectives, values, num_requests)
    num_good = int(verdict.good.sum())
    return Goodput(
        requests_per_s=_rate(num_good, duration_s),
        tokens_per_s=_rate(int(measured.tokens[verdict.good].sum()), duration_s),
        fraction=num_good / num_requests if num_requests else 0.0,
        verdict=verdict,
    )


def _inputs(events: Sequence[RequestEvent], question: Question) -> Inputs:
    totals = [event.prompt_tokens or event.text_tokens or 0 for event in events]
    texts = [event.text_tokens for event in events]
    has_texts = bool(events) and None not in texts
    text_tokens = sum(count or 0 for count in texts) if has_texts else None
    without = sum(event.prompt_tokens is None for event in events)
    told = [event.image_tokens for event in events]
    images = sum(count for count in told if count is not None) if any(told) else None
    others = "images"
    if images is None:
        names = ["images"] if any(event.num_images for event in events) else []
        names += ["earlier turns"] if any(event.turn for event in events) else []
        others = f"{', '.join(names)} and template" if names else "the template"
    if images is None and text_tokens is not None and not without:
        images = sum(totals) - text_tokens
    cached = [event.cached_tokens for event in events if event.cached_tokens is not None]
    return Inputs(
        total_tokens=(text_tokens or 0) if question.counts_texts and has_texts else sum(totals),
        text_tokens=text_tokens,
        other_tokens=images,
        others=others,
        cached_tokens=sum(cached) if cached else None,
        images=sum(event.num_images for event in events),
        megapixels=sum(event.image_pixels for event in events) / 1e6,
        body_bytes=sum(event.body_bytes for event in events),
        without_usage=without,
    )


def _outputs(events: Sequence[RequestEvent], measured: Measured) -> Outputs:
    asked = np.array([event.asked_tokens for event in events], np.int64)
    thought = [event.reasoning_tokens for event in events if event.reasoning_tokens is not None]
    return Outputs(
        total_tokens=int(measured.tokens.sum()),
        reasoning_tokens=sum(thought) if thought else None,
        asked_tokens=int(asked.sum()),
        short=int((measured.tokens < asked).sum()),
        long=int((measured.tokens > asked).sum()),
        chunks=len(measured.token_ns),
        undercounted=sum(
            len(event.chunk_kinds) - event.chunk_kinds.count("e") > output_tokens(event)
            for event in events
        ),
        reads=sum(event.num_reads for event in events),
    )


def metric_values(measured: Measured) -> dict[str, FloatArray]:
    """The values of each of METRICS, in seconds, without those that are undefined."""
    values: dict[str, FloatArray] = {
        "ttft": measured.ttft,
        "tpot": measured.tpot,
        "itl": measured.itl,
        "e2el": measured.e2el,
        "client_queue_time": measured.queue,
        "e2el_including_client_queue": measured.e2el + measured.queue,
        "e2el_per_token": measured.e2el / np.maximum(measured.tokens, 1),
        "ttfo": measured.ttfo,
        "ttst": measured.ttst,
        "chunk_gap": measured.chunk_gap,
        "ttft_from_intended": measured.ttft_from_intended,
        "e2el_from_intended": measured.e2el_from_intended,
        "connect": measured.connect,
        "upload": measured.upload,
        "headers": measured.headers,
    }
    return {name: each[~np.isnan(each)] for name, each in values.items()}


def _distributions(measured: Measured, percentiles: Sequence[float]) -> dict[str, Distribution]:
    return {
        name: Distribution.of(values, percentiles)
        for name, values in metric_values(measured).items()
    }


def _probes(answered: Sequence[RequestEvent], percentiles: Sequence[float]) -> Distribution:
    seconds = np.array([(event.chunk_ns[-1] - event.start_ns) / 1e9 for event in answered])
    return Distribution.of(seconds, percentiles)
