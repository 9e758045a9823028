"""The series of how tokens spread over experts and ranks, for engines that count them."""

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from glimt.wire import ExpertStats

_WHO = ("model_name", "engine")


class ExpertSeries:
    """Computed when they are scraped. Counters go on where an earlier engine of an index ended."""

    def __init__(self, model_name: str) -> None:
        self._model_name = model_name
        self._stats: dict[int, ExpertStats] = {}
        self._before: dict[int, ExpertStats] = {}

    def remove(self, index: int) -> None:
        """Engine `index` is gone; what it counted stays."""
        last = self._stats.pop(index, None)
        if last is not None:
            counted = self._total(index, last)
            self._before[index] = counted
            self._stats[index] = ExpertStats()

    def update(self, index: int, stats: ExpertStats) -> None:
        """What engine `index` counts now."""
        self._stats[index] = stats

    def collect(self) -> Iterator[Metric]:
        """All families, without samples where nothing is counted."""
        totals = {index: self._total(index, stats) for index, stats in self._stats.items()}
        for name, label, text in (
            ("glimt:expert_tokens", "expert", "Tokens that chose an expert, over all layers"),
            ("glimt:expert_rank_tokens", "rank", "The same, by the GPU that has the expert"),
        ):
            family = CounterMetricFamily(name, text, labels=(*_WHO, label))
            for index, total in totals.items():
                counts = total.expert_tokens if label == "expert" else total.rank_tokens
                for place, count in enumerate(counts):
                    family.add_metric((self._model_name, str(index), str(place)), count)
            yield family
        imbalance = GaugeMetricFamily(
            "glimt:expert_imbalance",
            "Tokens of the fullest expert or GPU over the mean, in the last half second with work",
            labels=(*_WHO, "layer", "over"),
        )
        for index, stats in self._stats.items():
            for over, by_layer in (
                ("experts", stats.expert_imbalance),
                ("ranks", stats.rank_imbalance),
            ):
                for layer, value in by_layer.items():
                    imbalance.add_metric((self._model_name, str(index), str(layer), over), value)
        yield imbalance

    def _total(self, index: int, stats: ExpertStats) -> ExpertStats:
        before = self._before.get(index, ExpertStats())
        return ExpertStats(
            _added(before.expert_tokens, stats.expert_tokens),
            _added(before.rank_tokens, stats.rank_tokens),
        )


def _added(one: tuple[int, ...], other: tuple[int, ...]) -> tuple[int, ...]:
    """Place by place; an empty one is all zeros."""
    if not one or not other:
        return one or other
    return tuple(a + b for a, b in zip(one, other, strict=True))
