"""Choices of experts are counted on the device, in steps and in graphs, and told to servers."""

import copy
from typing import Any

import numpy as np
import pytest
import torch

from glimt.engine.expert_meter import ExpertMeter
from glimt.engine.plan import IntArray
from glimt.errors import Unsupported
from glimt.experts.placement import by_strategy, shares_of
from glimt.metric_series import EngineSeries
from glimt.processes.machine import Machine
from glimt.processes.profiling import Profiler
from glimt.runner.expert_counts import ExpertCounts
from glimt.wire import EngineStats, ExpertStats
from tests.support.schedules import Schedule
from tests.support.tiny_model import CPU, Album, make_ask, make_executor, tiny_model

ALBUM = Album()
ASKS = [make_ask(ALBUM, "tit", 1), make_ask(ALBUM, "tt", 2)]


def test_what_routers_choose_is_what_is_counted() -> None:
    model = copy.deepcopy(tiny_model("glm4v_moe"))
    counts = ExpertCounts(model, CPU)
    chosen: dict[int, list[torch.Tensor]] = {layer: [] for layer in model.mixtures}
    for layer, moe in model.mixtures.items():
        moe.router.register_forward_hook(
            lambda _, __, routed, layer=layer: chosen[layer].append(routed[1].flatten())
        )
    expected = Schedule(make_executor(tiny_model("glm4v_moe"), ALBUM), ASKS, whole=True).run()
    assert Schedule(make_executor(model, ALBUM), ASKS, whole=True).run() == expected
    load = counts.now(1.5)
    assert load.layers == {
        layer: tuple(torch.cat(rows).bincount(minlength=8).tolist())
        for layer, rows in chosen.items()
    }
    assert load.num_choices > 0
    assert (load.num_experts, load.seconds) == (8, 1.5)
    counts.latest()
    assert counts.latest().tolist() == [[*row] for row in load.layers.values()]
    counts.reset()
    assert counts.now(0).num_choices == 0


def test_a_machine_counts_only_if_it_is_told_to() -> None:
    def machine(**options: Any) -> Machine:
        return Machine(
            copy.deepcopy(tiny_model("glm4v_moe")),
            make=lambda model: make_executor(model, ALBUM),
            load=lambda: copy.deepcopy(tiny_model("glm4v_moe")),
            device=CPU,
            profiler=Profiler(None),
            **options,
        )

    with pytest.raises(Unsupported, match="--enable-expert-load-metrics"):
        machine().expert_load()
    counting = machine(counts_experts=True)
    Schedule(counting, ASKS, whole=True).run()  # type: ignore[arg-type]
    assert '"num_experts":8' in counting.expert_load()
    counting.sleep(1)
    assert '"num_experts":8' in counting.expert_load()
    counting.sleep(2)
    assert counting.counts is None
    counting.wake()
    assert counting.counts is not None
    assert counting.counts.now(0).num_choices == 0


def test_imbalance_is_the_most_over_the_mean_of_what_is_new() -> None:
    given: list[IntArray | None] = [
        np.array([[4, 4, 4, 4], [0, 0, 0, 0]]),
        np.array([[4, 4, 4, 4], [0, 0, 0, 0]]),
        np.array([[10, 4, 4, 4], [2, 2, 2, 6]]),
        None,
        np.array([[1, 0, 0, 0], [0, 0, 0, 0]]),  # the model was read anew
    ]
    shares = shares_of(by_strategy("linear", [1, 2], 4, 2))
    meter = ExpertMeter(lambda: given.pop(0), [1, 2], shares)
    even = ExpertStats((4, 4, 4, 4), (8, 8), {1: 1.0}, {1: 1.0})
    assert meter.stats() == even
    assert meter.stats() == even
    skewed = ExpertStats((12, 6, 6, 10), (18, 16), {1: 4.0, 2: 2.0}, {1: 2.0, 2: 8 / 6})
    assert meter.stats() == skewed
    assert meter.stats() == skewed
    assert meter.stats(reads=False) == skewed
    assert meter.stats().expert_tokens == (13, 6, 6, 10)


def samples(series: EngineSeries, name: str) -> dict[tuple[str, ...], float]:
    return {
        tuple(
            v for k, v in sample.labels.items() if k not in ("model_name", "engine")
        ): sample.value
        for family in series.collect()
        for sample in family.samples
        if sample.name == name
    }


def test_series_appear_when_experts_are_counted_and_never_fall() -> None:
    series = EngineSeries("m", {})
    series.update(0, EngineStats(step=1))
    assert samples(series, "glimt:expert_tokens_total") == {}
    stats = ExpertStats((3, 5), (8,), {1: 1.25}, {})
    for _ in range(2):
        series.update(0, EngineStats(step=2, experts=stats))
        last = samples(series, "glimt:expert_tokens_total")
        series.remove(0)
        assert samples(series, "glimt:expert_tokens_total") == last
    assert last == {("0",): 6, ("1",): 10}
    assert samples(series, "glimt:expert_rank_tokens_total") == {("0",): 16}
    series.update(0, EngineStats(step=3, experts=stats))
    assert samples(series, "glimt:expert_imbalance") == {("1", "experts"): 1.25}
