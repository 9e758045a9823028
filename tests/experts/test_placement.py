"""Placing experts by load: tables that hold every expert, and a fullest GPU with less to do."""

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from glimt.cli import app
from glimt.errors import BadSettings
from glimt.experts.load import ExpertLoad, added, read_load
from glimt.experts.packing import place_by_load
from glimt.experts.placement import (
    Placement,
    by_strategy,
    check_fits,
    imbalance,
    places_of,
    problems_of,
    read_placement,
    shares_of,
)


def skewed(num_experts: int, num_layers: int = 3, alpha: float = 0.6) -> ExpertLoad:
    """Few experts have most of the tokens, others in each layer."""
    random = np.random.default_rng(0)
    by_rank = 1e6 / np.arange(1, num_experts + 1) ** alpha
    layers = {n: tuple(random.permutation(by_rank).astype(int).tolist()) for n in range(num_layers)}
    return ExpertLoad(num_experts=num_experts, layers=layers, seconds=2.0)


def test_a_placement_by_load_evens_out_what_linear_leaves_uneven() -> None:
    load = skewed(64, alpha=0.4)
    linear = imbalance(by_strategy("linear", [*load.layers], 64, 8), load.layers)
    packed = imbalance(place_by_load(load, 8), load.layers)
    assert min(linear.values()) > 1.1
    assert max(packed.values()) < 1.01


def test_an_expert_with_more_than_a_gpus_part_needs_copies() -> None:
    load = ExpertLoad(num_experts=8, layers={1: (90, 1, 1, 1, 1, 1, 1, 4)})
    assert imbalance(place_by_load(load, 4), load.layers)[1] > 3.5
    copied = place_by_load(load, 4, num_redundant=4)
    assert copied.num_redundant == 4
    assert imbalance(copied, load.layers)[1] < 1.1
    held = [expert for rank in copied.layers[1] for expert in rank]
    assert held.count(0) == 4


@given(st.data())
def test_every_table_is_complete_and_shares_out_whole_experts(data: st.DataObject) -> None:
    num_ranks = data.draw(st.integers(1, 6))
    num_places = data.draw(st.integers(1, 5))
    least = max(1, num_places)  # more places than experts would be copies on one GPU
    num_experts = data.draw(st.integers(least, num_ranks * num_places))
    counts = data.draw(
        st.lists(st.integers(0, 1000), min_size=num_experts, max_size=num_experts).map(tuple)
    )
    load = ExpertLoad(num_experts=num_experts, layers={2: counts, 5: counts[::-1]})
    placement = place_by_load(load, num_ranks, num_ranks * num_places - num_experts)
    assert problems_of(placement) == []
    check_fits(placement, [2, 5], num_experts, num_ranks)
    np.testing.assert_allclose(shares_of(placement).sum(1), 1.0)
    for layer in placement.layers.values():
        flat = [expert for rank in layer for expert in rank]
        for row_E in places_of(layer, num_experts):
            assert [flat[place] for place in row_E] == [*range(num_experts)]


@pytest.mark.parametrize(
    ("layers", "complaint"),
    [
        ({}, "no layers"),
        ({1: ((0, 1), (2,))}, "places"),
        ({1: ((0, 1), (2, 2))}, "experts 3 lie nowhere"),
        ({1: ((0, 1), (2, 7))}, "no experts 7"),
        ({1: ((0, 1, 1), (2, 3, 0))}, "GPU 0 has an expert twice"),
        ({1: ((0, 1), (2, 3)), 2: ((0, 1, 2, 3),)}, "layer 2: all layers must have 2 GPUs"),
    ],
    ids=str,
)
def test_a_file_that_is_wrong_is_refused_by_layer(
    layers: Any, complaint: str, tmp_path: Path
) -> None:
    file = tmp_path / "placement.json"
    file.write_bytes(msgspec.json.encode(Placement(num_experts=4, layers=layers)))
    with pytest.raises(BadSettings, match=complaint) as caught:
        read_placement(file)
    assert str(file) in caught.value.message


def test_a_placement_for_another_model_or_number_of_gpus_says_so() -> None:
    placement = by_strategy("round_robin", [1, 2], 8, 4)
    assert placement.layers[1][1] == (1, 5)
    check_fits(placement, [1, 2], 8, 4)
    for layers, experts, ranks, complaint in (
        ([1, 2], 16, 4, "of 8 experts, the model has 16"),
        ([1, 2, 3], 8, 4, "layers 3"),
        ([1, 2], 8, 2, "for 4 GPUs .* over 2 here"),
    ):
        with pytest.raises(BadSettings, match=complaint):
            check_fits(placement, layers, experts, ranks)
    with pytest.raises(BadSettings, match="cannot be divided"):
        by_strategy("linear", [1], 8, 3)


def test_loads_are_added_and_subtracted_and_never_mixed() -> None:
    one = ExpertLoad(num_experts=2, layers={1: (3, 4)}, seconds=1.0)
    both = added([one, one])
    assert both.layers == {1: (6, 8)}
    assert both.since(one).layers == one.layers
    with pytest.raises(BadSettings, match="started anew"):
        one.since(both)
    with pytest.raises(BadSettings, match="different models"):
        added([one, ExpertLoad(num_experts=2, layers={2: (3, 4)})])


def command(*words: str) -> int:
    result: int = app(["experts", *words], result_action="return_value")
    return result


def test_the_command_places_the_sum_of_several_loads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [tmp_path / "monday.json", tmp_path / "tuesday.json"]
    for file in files:
        file.write_bytes(msgspec.json.encode(skewed(16)))
    out = tmp_path / "placement.json"
    assert command("place", *map(str, files), "--gpus", "4", "-o", str(out)) == 0
    assert read_placement(out) == place_by_load(skewed(16), 4)
    linear, _, packed = capsys.readouterr().out.splitlines()[1:]
    assert float(linear.split()[1]) > float(packed.split()[1])
    other = tmp_path / "other.json"
    other.write_bytes(msgspec.json.encode(skewed(16, alpha=0.0)))
    words = ["place", str(files[0]), "--gpus", "4", "-o", str(out)]
    assert command(*words, "--check", str(other)) == 0
    assert capsys.readouterr().out.splitlines()[-1].split()[1:] == ["1.000", "1.000"]
    other.write_bytes(msgspec.json.encode(skewed(16, num_layers=2)))
    with pytest.raises(BadSettings, match="another model"):
        command(*words, "--check", str(other))
    with pytest.raises(BadSettings, match="2 more redundant ones would do"):
        command("place", str(files[0]), "--gpus", "3", "-o", str(out))
    with pytest.raises(BadSettings, match="is no expert load"):
        read_load(out)
    gone = tmp_path / "gone.json"
    with pytest.raises(BadSettings, match=r"gone\.json: No such file or directory$"):
        read_load(gone)
    with pytest.raises(BadSettings, match=r"--expert-placement .*gone\.json: No such file"):
        read_placement(gone)


def test_collecting_needs_a_key_and_a_server_that_counts() -> None:
    with pytest.raises(BadSettings, match="--admin-key"):
        command("collect", "load.json")
    with pytest.raises(BadSettings, match="cannot be asked"):
        command("collect", "x.json", "--admin-key", "k", "--base-url", "http://127.0.0.1:9")
