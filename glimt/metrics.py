"""What the server counts and measures, as Prometheus text; owned by the server process.

Names and meanings are vLLM's (prefix `vllm:`), so that dashboards, autoscalers and routers made
for it keep working, with the older names beside them where that is cheap. What a vision server
needs and vLLM does not count has the prefix `glimt:`. Label values come from fixed sets only:
nothing a client writes can add a series.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import prometheus_client
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
)

from glimt.http_series import HttpSeries
from glimt.media_series import MediaSeries
from glimt.metric_series import EngineSeries, FastCounter, FastHistogram
from glimt.metric_sum import MEDIA_MEMORY_GAUGES, SUMMED_GAUGES, Ledger, SummedSeries
from glimt.wire import EngineInfo, EngineStats

CONTENT_TYPE = prometheus_client.CONTENT_TYPE_LATEST

FINISH_REASONS = ("stop", "length", "abort", "error", "repetition")
PROMPT_SOURCES = ("local_compute", "local_cache_hit", "external_kv_transfer")
STATUS_CLASSES = ("2xx", "4xx", "499", "5xx")

_TTFT_S = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
# Decode steps take 1 to 30 ms, which is where these are dense (vLLM's begin at 10 ms).
_ITL_S = (
    *(0.0005, 0.001, 0.0015, 0.002, 0.0025, 0.003, 0.004, 0.005, 0.006, 0.008, 0.01, 0.0125),
    *(0.015, 0.02, 0.025, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0),
    *(2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0),
)
_LONG_S = (
    *(0.05, 0.1, 0.2, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0),
    *(50.0, 60.0, 120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)
_PAGE_S = (0.01, 0.1, *(factor * 10.0**power for power in range(5) for factor in (1, 2, 5)))
_STEP_TOKENS = tuple(float(2**power) for power in range(15))


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationTimes:
    """The measurements of one finished choice; seconds, None where it never came so far."""

    finish_reason: str
    cached_tokens: int
    completion_tokens: int
    e2e_s: float
    queue_s: float | None = None  # arrival to first scheduled
    prefill_s: float | None = None  # first scheduled to first token
    decode_s: float | None = None  # first to last token


class Metrics:
    """All series of one server. Methods are cheap and never wait."""

    def __init__(
        self,
        *,
        model_name: str,
        max_model_len: int = 1 << 17,
        cache_config: Mapping[str, str] | None = None,
        first_copy: int = 0,
    ) -> None:
        """`cache_config`: more labels of vllm:cache_config_info. `first_copy`: number of the first
        engine, which stands for all in what is counted here.
        """
        # They double the text and are read by nobody.
        prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        self._who = {"model_name": model_name, "engine": str(first_copy)}
        self._engines = EngineSeries(model_name, cache_config or {})
        self._counts_steps = True
        self._whole: SummedSeries | None = None
        self.registry.register(self._engines)
        for collector in (ProcessCollector, GCCollector, PlatformCollector):
            collector(registry=self.registry)
        self.http = HttpSeries(self.registry)
        self._tokens = _one_two_five(max_model_len)
        self._recent_tokens = {"prompt_tokens": 0, "generated_tokens": 0}
        self._make_counts()
        self._make_times()
        self._make_gauges()
        self.media = MediaSeries(self.registry, self._who)

    def _make_counts(self) -> None:
        self._prompt_tokens = self._counter("vllm:prompt_tokens", "Prompt tokens taken in")
        self._cached_tokens = self._counter(
            "vllm:prompt_tokens_cached", "Prompt tokens found in the prefix cache"
        )
        self._tokens_by_source = self._by_label(
            Counter, "vllm:prompt_tokens_by_source", "Prompt tokens by where KV came from", "source"
        )
        self._generation_tokens = FastCounter(
            "vllm:generation_tokens", "Tokens generated", self._who, self.registry
        )
        self.rejections = self._counter("vllm:admission_rejections", "Requests answered with 429")
        self.corrupted = self._counter(
            "vllm:corrupted_requests", "Requests that ended because the model gave NaN for them"
        )
        self._finished = self._by_label(
            Counter, "vllm:request_success", "Finished generations", "finished_reason"
        )
        self._responses = self._by_label(
            Counter, "glimt:http_responses", "Answers; 499: the client left", "status"
        )
        self._prompt_size = self._histogram(
            "vllm:request_prompt_tokens", "Tokens of a prompt", self._tokens
        )
        self._computed_size = self._histogram(
            "vllm:request_prefill_kv_computed_tokens",
            "Prompt tokens that were not cached",
            self._tokens,
        )
        self._answer_size = self._histogram(
            "vllm:request_generation_tokens", "Tokens of an answer", self._tokens
        )
        self._longest_size = self._histogram(
            "vllm:request_max_num_generation_tokens", "Longest of n answers", self._tokens
        )
        self._max_tokens = self._histogram(
            "vllm:request_params_max_tokens", "max_tokens of a request", self._tokens
        )
        self._num_choices = self._histogram(
            "vllm:request_params_n", "n of a request", (1, 2, 5, 10, 20)
        )
        self._step_tokens = self._histogram(
            "vllm:iteration_tokens_total", "Tokens per step", _STEP_TOKENS
        )

    def _make_times(self) -> None:
        make = self._histogram
        self.time_to_first_token = make(
            "vllm:time_to_first_token_seconds", "Arrival to first token", _TTFT_S
        )
        self.inter_token_latency = FastHistogram(
            "vllm:inter_token_latency_seconds",
            "Between two tokens of an answer",
            self._who,
            self.registry,
            _ITL_S,
        )
        self._time_per_token = (
            make(
                "vllm:request_time_per_output_token_seconds",
                "Mean between two tokens of a request",
                _ITL_S,
            ),
            make(
                "vllm:time_per_output_token_seconds", "Older name of the mean of a request", _ITL_S
            ),
        )
        self._e2e = make("vllm:e2e_request_latency_seconds", "Arrival to end", _LONG_S)
        self._queue = make("vllm:request_queue_time_seconds", "Arrival to first scheduled", _LONG_S)
        self._prefill = make(
            "vllm:request_prefill_time_seconds", "First scheduled to first token", _LONG_S
        )
        self._decode = make("vllm:request_decode_time_seconds", "First to last token", _LONG_S)
        self._inference = make(
            "vllm:request_inference_time_seconds", "First scheduled to end", _LONG_S
        )

        # Nothing is counted in these without --kv-cache-metrics.
        self._page_life = make(
            "vllm:kv_block_lifetime_seconds", "A known KV page, from taken to evicted", _PAGE_S
        )
        self._page_idle = make(
            "vllm:kv_block_idle_before_evict_seconds", "The same, from its last use", _PAGE_S
        )
        self._page_gap = make(
            "vllm:kv_block_reuse_gap_seconds", "Between two uses of a known KV page", _PAGE_S
        )

    def _make_gauges(self) -> None:
        self._replicas = Gauge(
            "glimt:replica_up",
            "1 if the replica takes requests, 0 if it is missing",
            self._who.keys(),
            registry=self.registry,
        )
        self.preparing = self._gauge(
            "glimt:num_requests_preparing", "Requests not yet sent to an engine"
        )
        self._limits = Gauge(
            "glimt:limit",
            "What one request or the server may hold",
            ("limit",),
            registry=self.registry,
        )

    def _counter(self, name: str, text: str) -> Counter:
        return Counter(name, text, self._who.keys(), registry=self.registry).labels(**self._who)

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(name, text, self._who.keys(), registry=self.registry).labels(**self._who)

    def _histogram(self, name: str, text: str, buckets: Iterable[float]) -> Histogram:
        family = Histogram(
            name, text, self._who.keys(), registry=self.registry, buckets=tuple(buckets)
        )
        return family.labels(**self._who)

    def _by_label(self, kind: Any, name: str, text: str, label: str, **options: Any) -> Any:
        """One child for each value that `label` may have."""
        values = {
            "finished_reason": FINISH_REASONS,
            "status": STATUS_CLASSES,
            "source": PROMPT_SOURCES,
        }[label]
        family = kind(name, text, (*self._who, label), registry=self.registry, **options)
        return {value: family.labels(**self._who, **{label: value}) for value in values}

    def expect_engines(self, indexes: Iterable[int]) -> None:
        """These engines there should be."""
        for index in indexes:
            self._note_replica(index, is_up=False)

    def add_engine(self, index: int, info: EngineInfo) -> None:
        """Engine `index` begins a new incarnation."""
        self._engines.add(index, info)
        self._note_replica(index, is_up=True)

    def remove_engine(self, index: int) -> None:
        """Engine `index` is gone; its counters stay."""
        self._engines.remove(index)
        self._note_replica(index, is_up=False)

    def _note_replica(self, index: int, *, is_up: bool) -> None:
        self._replicas.labels(**{**self._who, "engine": str(index)}).set(is_up)

    def add_up(
        self, ledger: Ledger, num_preparing_elsewhere: Callable[[], int], *, shares_media: bool
    ) -> None:
        """From now on, show the series of all server processes of `ledger` together.

        `shares_media`: they have one memory for pixels. What engines tell all of them, the first
        counts.
        """
        self._counts_steps = ledger.server == 0
        self._engines.num_preparing_elsewhere = num_preparing_elsewhere
        gauges = SUMMED_GAUGES if shares_media else SUMMED_GAUGES | MEDIA_MEMORY_GAUGES
        self._whole = SummedSeries(self.registry, self._engines, ledger, gauges)

    def publish(self) -> None:
        """Tell the other server processes; due once a second."""
        if self._whole is not None:
            self._whole.publish()

    def observe_engine(self, index: int, stats: EngineStats) -> None:
        """Take over the state of an engine after a step."""
        is_new = self._engines.update(index, stats)
        if not self._counts_steps:
            return
        if is_new and stats.step_tokens:
            self._step_tokens.observe(stats.step_tokens)
        for life in stats.page_lives:
            self._page_life.observe(life.lifetime_s)
            self._page_idle.observe(life.idle_s)
            for gap_s in life.gaps_s:
                self._page_gap.observe(gap_s)

    def observe_request(self, *, prompt_tokens: int, max_tokens: int, n: int) -> None:
        """A request was sent to an engine."""
        self._prompt_tokens.inc(prompt_tokens)
        self._recent_tokens["prompt_tokens"] += prompt_tokens
        self._prompt_size.observe(prompt_tokens)
        self._max_tokens.observe(max_tokens)
        self._num_choices.observe(n)

    def observe_tokens(self, num_tokens: int) -> None:
        """Tokens of an answer have come."""
        self._generation_tokens.inc(num_tokens)
        self._recent_tokens["generated_tokens"] += num_tokens

    def observe_generation(self, times: GenerationTimes, prompt_tokens: int) -> None:
        """One choice has ended."""
        self._finished[times.finish_reason].inc()
        self._cached_tokens.inc(times.cached_tokens)
        self._tokens_by_source["local_cache_hit"].inc(times.cached_tokens)
        self._tokens_by_source["local_compute"].inc(max(0, prompt_tokens - times.cached_tokens))
        self._computed_size.observe(max(0, prompt_tokens - times.cached_tokens))
        self._answer_size.observe(times.completion_tokens)
        self._e2e.observe(times.e2e_s)
        if times.queue_s is not None:
            self._queue.observe(times.queue_s)
            self._inference.observe(max(0.0, times.e2e_s - times.queue_s))
        if times.prefill_s is not None:
            self._prefill.observe(times.prefill_s)
        if times.decode_s is not None:
            self._decode.observe(times.decode_s)
            if times.completion_tokens > 1:
                for histogram in self._time_per_token:
                    histogram.observe(times.decode_s / (times.completion_tokens - 1))

    def observe_longest(self, completion_tokens: int) -> None:
        """All choices of a request have ended; the longest had this many tokens."""
        self._longest_size.observe(completion_tokens)

    def observe_response(self, status: int) -> None:
        """An HTTP answer was given; 499 = the client left before."""
        group = "499" if status == 499 else f"{max(status, 200) // 100}xx"
        if group in self._responses:
            self._responses[group].inc()

    def hold(self, num_requests: int) -> None:
        """So many more requests are being prepared (fewer, if negative)."""
        self.preparing.inc(num_requests)
        self._engines.num_preparing += num_requests

    def set_limits(self, limits: Mapping[str, float]) -> None:
        """Show what is bounded, by name."""
        for name, value in limits.items():
            self._limits.labels(name).set(value)

    def summary(self) -> dict[str, float] | None:
        """The state in a few numbers, for a log line; tokens since the last call. None if idle."""
        fields = {**self._engines.summary(), **self._recent_tokens}
        self._recent_tokens = {"prompt_tokens": 0, "generated_tokens": 0}
        return fields if any(fields.values()) else None

    def render(self) -> bytes:
        """The text of GET /metrics."""
        return prometheus_client.generate_latest(self._whole or self.registry)


def _one_two_five(highest: int) -> tuple[float, ...]:
    """1, 2, 5, 10, … up to `highest`."""
    steps = (factor * 10.0**power for power in range(12) for factor in (1, 2, 5))
    return tuple(step for step in steps if step <= highest)
