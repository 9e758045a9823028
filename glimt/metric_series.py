"""Series that prometheus_client cannot feed cheaply enough, or at all: computed when scraped.

What is observed per token must cost a fraction of a microsecond; the library's own metrics take a
lock each time. All of this lives on one event loop and needs none.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from glimt.expert_series import ExpertSeries
from glimt.wire import EngineInfo, EngineStats


class FastCounter(Collector):
    """A counter with one child and no lock."""

    def __init__(
        self, name: str, text: str, labels: Mapping[str, str], registry: CollectorRegistry
    ) -> None:
        self._name, self._text, self._labels = name, text, dict(labels)
        self._count = 0
        registry.register(self)

    def inc(self, amount: int) -> None:
        """Count further."""
        self._count += amount

    def collect(self) -> Iterator[Metric]:
        """One family, one sample."""
        family = CounterMetricFamily(self._name, self._text, labels=tuple(self._labels))
        family.add_metric(tuple(self._labels.values()), self._count)
        yield family


class FastHistogram(Collector):
    """A histogram with one child and no lock. `bounds` are ascending upper bounds."""

    def __init__(
        self,
        name: str,
        text: str,
        labels: Mapping[str, str],
        registry: CollectorRegistry,
        bounds: Sequence[float],
    ) -> None:
        self._name, self._text, self._labels = name, text, dict(labels)
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0
        registry.register(self)

    def observe(self, value: float) -> None:
        """Take one sample in."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def collect(self) -> Iterator[Metric]:
        """One family; bucket counts are cumulative."""
        family = HistogramMetricFamily(self._name, self._text, labels=tuple(self._labels))
        buckets: list[tuple[str, float]] = []
        total = 0
        for bound, count in zip((*self._bounds, float("inf")), self._counts, strict=True):
            total += count
            text = floatToGoString(bound)  # type: ignore[no-untyped-call]
            buckets.append((text, total))
        family.add_metric(tuple(self._labels.values()), buckets, self._sum)
        yield family


# (name, older names, help, field of EngineStats). Counters only grow within one incarnation of
# an engine, so what earlier incarnations counted is kept and added.
_COUNTERS = (
    ("vllm:prefix_cache_queries", ("vllm:gpu_prefix_cache_queries",), "prefix_query_tokens"),
    ("vllm:prefix_cache_hits", ("vllm:gpu_prefix_cache_hits",), "prefix_hit_tokens"),
    ("vllm:num_preemptions", (), "preemptions"),
    ("glimt:idle_steps", (), "idle_steps"),
    ("glimt:encoder_cache_queries", (), "image_queries"),
    ("glimt:encoder_cache_hits", (), "image_hits"),
    ("vllm:estimated_flops_per_gpu", (), "estimated_flops"),
    ("vllm:estimated_read_bytes_per_gpu", (), "estimated_read_bytes"),
    ("vllm:estimated_write_bytes_per_gpu", (), "estimated_written_bytes"),
)


class EngineSeries(Collector):
    """The series that come from `EngineStats`, computed when they are scraped."""

    def __init__(self, model_name: str, cache_config: Mapping[str, str]) -> None:
        """`cache_config`: more labels of vllm:cache_config_info."""
        self.num_preparing = 0  # requests on their way to an engine
        self.num_preparing_elsewhere: Callable[[], int] = lambda: 0  # by other server processes
        self._model_name = model_name
        self._cache_config = dict(cache_config)
        self._infos: dict[int, EngineInfo] = {}
        self._stats: dict[int, EngineStats] = {}
        self._before: dict[tuple[int, str], float] = {}
        self._experts = ExpertSeries(model_name)

    def add(self, index: int, info: EngineInfo) -> None:
        """A new incarnation of engine `index`."""
        self.remove(index)
        self._infos[index] = info

    def remove(self, index: int) -> None:
        """Engine `index` is gone; what it counted stays."""
        last = self._stats.pop(index, EngineStats())
        for _, _, field in _COUNTERS:
            key = index, field
            self._before[key] = self._before.get(key, 0) + getattr(last, field)
        self._experts.remove(index)
        # An engine that is gone still has a row, with zeros: a series that vanishes alarms nobody.
        self._stats[index] = EngineStats()

    def update(self, index: int, stats: EngineStats) -> bool:
        """False if these stats were seen before."""
        is_new = self._stats.get(index, EngineStats()).step != stats.step
        self._stats[index] = stats
        if stats.experts is not None:
            self._experts.update(index, stats.experts)
        return is_new

    def summary(self) -> dict[str, float]:
        """Over all engines, in a few numbers."""
        stats = self._stats.values()
        num_pages = max(1, sum(each.num_pages for each in stats))
        return {
            "running": sum(each.num_running for each in stats),
            "waiting": sum(each.num_waiting for each in stats),
            "kv_usage": sum(each.num_used_pages for each in stats) / num_pages,
        }

    def collect(self) -> Iterator[Metric]:
        """All families; one sample per engine."""
        yield from self._gauges()
        for name, older_names, field in _COUNTERS:
            for each in (name, *older_names):
                text = field.replace("_", " ").capitalize()
                family = CounterMetricFamily(each, text, labels=("model_name", "engine"))
                for index, stats in self._stats.items():
                    count = getattr(stats, field) + self._before.get((index, field), 0)
                    family.add_metric((self._model_name, str(index)), count)
                yield family
        config = GaugeMetricFamily(
            "vllm:cache_config_info",
            "Settings of the KV cache as labels",
            labels=(
                *("model_name", "engine", "block_size", "num_gpu_blocks", "cache_dtype"),
                *self._cache_config,
            ),
        )
        for index, info in self._infos.items():
            sizes = (str(info.page_size), str(info.num_pages), info.kv_cache_dtype)
            labels = (self._model_name, str(index), *sizes, *self._cache_config.values())
            config.add_metric(labels, 1)
        yield config
        yield from self._states()
        yield from self._experts.collect()

    def _states(self) -> Iterator[Metric]:
        """Gauges with a label of their own."""
        who = ("model_name", "engine")
        waiting = GaugeMetricFamily(
            "vllm:num_requests_waiting_by_reason",
            "capacity: in an engine's queue; deferred: prompts and media are being made",
            labels=(*who, "reason"),
        )
        asleep = GaugeMetricFamily(
            "vllm:engine_sleep_state", "1 for the state that holds", labels=(*who, "sleep_state")
        )
        for index, stats in self._stats.items():
            row = (self._model_name, str(index))
            waiting.add_metric((*row, "capacity"), stats.num_waiting)
            waiting.add_metric((*row, "deferred"), self._deferred(index))
            for level, state in enumerate(("awake", "weights_offloaded", "discard_all")):
                asleep.add_metric((*row, state), float(level == stats.sleep_level))
        yield waiting
        yield asleep
        for name in ("queries", "hits"):
            family = CounterMetricFamily(
                f"vllm:external_prefix_cache_{name}", "Always 0: there is none", labels=who
            )
            for index in self._stats:
                family.add_metric((self._model_name, str(index)), 0)
            yield family

    def _deferred(self, index: int) -> int:
        """Requests in preparation belong to no engine yet; they show with the first."""
        if index != min(self._stats):
            return 0
        return self.num_preparing + self.num_preparing_elsewhere()

    def _gauges(self) -> Iterator[Metric]:
        usage = {i: s.num_used_pages / max(1, s.num_pages) for i, s in self._stats.items()}
        hit_rate = {
            i: s.prefix_hit_tokens / max(1, s.prefix_query_tokens) for i, s in self._stats.items()
        }
        none = dict.fromkeys(self._stats, 0)
        waiting = {i: s.num_waiting + self._deferred(i) for i, s in self._stats.items()}
        for name, text, values in (
            ("vllm:num_requests_running", "Requests that run", _each(self._stats, "num_running")),
            (
                "vllm:num_requests_waiting",
                "Requests that wait for an engine, or for their prompts and media",
                waiting,
            ),
            ("vllm:kv_cache_usage_perc", "KV cache in use, 0 to 1", usage),
            ("vllm:gpu_cache_usage_perc", "Older name of vllm:kv_cache_usage_perc", usage),
            ("vllm:gpu_prefix_cache_hit_rate", "Older; hits per query, 0 to 1", hit_rate),
            ("vllm:num_requests_swapped", "Older; always 0", none),
            ("vllm:cpu_cache_usage_perc", "Older; always 0", none),
        ):
            family = GaugeMetricFamily(name, text, labels=("model_name", "engine"))
            for index, value in values.items():
                family.add_metric((self._model_name, str(index)), value)
            yield family


def _each(stats: dict[int, EngineStats], field: str) -> dict[int, float]:
    return {index: getattr(each, field) for index, each in stats.items()}
