"""The table of names: complete, without overlap, and right for every rank."""

import math
from collections import Counter
from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed import ProcessGroup

from glimt.errors import BadSettings
from glimt.models.config_json import read_config
from glimt.models.glm4v import Glm4v
from glimt.models.names import WHOLE, Parameter, Share, fp8_modules, parameters, scale_name
from glimt.models.split import Split, check_sizes
from glimt.parallel.mesh import Mesh
from glimt.tiny.weights import tensor_shapes
from tests.models.test_config import glm_4_1v_flat, glm_4_5v_fp8
from tests.support.configs import tiny_config

KINDS = ("glm4v_moe", "glm4v")


@st.composite
def configs(draw: st.DrawFn) -> dict[str, Any]:
    """Odd and even sizes; heads and widths divisible by 2 so that two ranks can share them."""
    kind = draw(st.sampled_from(KINDS))
    head_dim = draw(st.sampled_from([8, 16, 32]))
    kv_heads = draw(st.sampled_from([1, 2, 4]))
    heads = 2 * kv_heads * draw(st.integers(1, 2))
    text: dict[str, Any] = {
        "head_dim": head_dim,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "hidden_size": 24,
        "num_hidden_layers": draw(st.integers(1, 3)),
        "intermediate_size": 2 * draw(st.integers(1, 20)),
    }
    if kind == "glm4v_moe":
        text["n_routed_experts"] = draw(st.sampled_from([4, 6]))
        text["num_experts_per_tok"] = 2
        text["moe_intermediate_size"] = 2 * draw(st.integers(1, 12))
        text["n_shared_experts"] = draw(st.integers(1, 2))
        text["first_k_dense_replace"] = draw(st.integers(0, 2))
    return tiny_config(kind, text=text)


def elements(parameter: Parameter) -> set[tuple[int, int]]:
    """(expert, row) of everything that the sources fill; fails if two fill the same."""
    seen: set[tuple[int, int]] = set()
    for source in parameter.sources:
        for row in range(source.start, source.start + source.num_rows):
            place = (source.expert or 0, row)
            assert place not in seen
            seen.add(place)
    return seen


@given(configs(), st.sampled_from([WHOLE, Share(Split(0, 2)), Share(Split(1, 2), Split(1, 2))]))
def test_the_sources_of_a_parameter_fill_each_row_once(
    config: dict[str, Any], share: Share
) -> None:
    for parameter in parameters(read_config(config), share):
        count, rows = 1, parameter.shape[0]
        if any(source.expert is not None for source in parameter.sources):
            count, rows = parameter.shape[0], parameter.shape[1]
        assert elements(parameter) == {(e, r) for e in range(count) for r in range(rows)}
        for source in parameter.sources:
            assert 0 <= source.rows[0] < source.rows[1] <= source.shape[0]


@given(configs())
def test_one_rank_takes_every_element_of_the_checkpoint_once(config: dict[str, Any]) -> None:
    stored = dict(tensor_shapes(config if "text_config" in config else {"text_config": config}))
    taken: Counter[str] = Counter()
    for parameter in parameters(read_config(config)):
        for source in parameter.sources:
            assert source.shape == stored[source.name]
            assert source.columns is None
            taken[source.name] += source.num_rows
    assert taken == {name: shape[0] for name, shape in stored.items()}


@given(configs())
def test_two_ranks_together_take_everything_and_replicate_only_what_they_must(
    config: dict[str, Any],
) -> None:
    model = read_config(config)
    taken: Counter[tuple[str, int, int]] = Counter()
    for rank in range(2):
        for parameter in parameters(model, Share(Split(rank, 2), Split(rank, 2))):
            for source in parameter.sources:
                columns = source.columns or (0, math.prod(source.shape[1:]))
                for row in range(*source.rows):
                    taken[source.name, row, columns[0]] += columns[1] - columns[0]
    one_kv_head = model.text.num_kv_heads == 1
    for name, shape in tensor_shapes(config):
        times = {n for (stored, _, _), n in taken.items() if stored == name}
        rows = {row for stored, row, _ in taken if stored == name}
        assert rows == set(range(shape[0]))
        width = math.prod(shape[1:])
        if "k_proj" in name or "v_proj" in name:
            assert times == {2 * width if one_kv_head else width}
        elif any(word in name for word in ("q_proj", "gate_proj", "up_proj", "lm_head", "embed_t")):
            assert times == {width}
        elif any(word in name for word in ("o_proj", "down_proj", "attn.proj")):
            assert times == {width // 2}  # two halves, at different columns
        elif "qkv" in name:
            assert times == {width}
        else:
            assert times == {2 * width}  # norms, routers and small parts are on both ranks


@pytest.mark.parametrize("spread", [False, True], ids=["experts-split", "experts-spread"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1, 2])
def test_the_table_names_exactly_the_models_parameters(kind: str, size: int, spread: bool) -> None:
    config = read_config(tiny_config(kind))
    group = cast(ProcessGroup, object()) if size == 2 else None
    for rank in range(size):
        experts = {"ep_size": size, "ep_rank": rank} if spread else {}
        mesh = Mesh(tp_size=size, tp_rank=rank, tp_group=group, **experts)
        fp8 = fp8_modules(config)
        expected = {}
        for parameter in parameters(config, Share.of(mesh)):
            expected[parameter.name] = parameter.shape
            if parameter.module in fp8:
                expected[scale_name(parameter.name)] = parameter.shape[:-1]
        with torch.device("meta"):
            model = Glm4v(config, mesh, fp8)
        assert {name: tuple(p.shape) for name, p in model.named_parameters()} == expected


def test_the_published_sizes_come_out() -> None:
    """Counts of the hub's files: elements, stored tensors, FP8 scales."""
    for config, elements, tensors, scales in (
        (glm_4_5v_fp8(), 107_710_933_120, 18_106, 17_602),
        (glm_4_1v_flat(), 10_292_777_472, 704, 240),
    ):
        table = list(parameters(read_config(config)))
        assert sum(math.prod(parameter.shape) for parameter in table) == elements
        sources = [source.name for parameter in table for source in parameter.sources]
        assert len(sources) == len(set(sources)) == tensors
        fp8 = [s for parameter in table if parameter.module for s in parameter.sources]
        assert len(fp8) == scales


def test_only_projections_of_the_text_layers_are_ever_fp8() -> None:
    modules = fp8_modules(read_config(tiny_config("glm4v_moe")))
    per_layer = {"attention.qkv", "attention.o"}
    assert modules == {
        *(f"layers.{n}.{name}" for n in range(3) for name in per_layer),
        "layers.0.mlp.gate_up",
        "layers.0.mlp.down",
        *(
            f"layers.{n}.moe.{name}"
            for n in (1, 2)
            for name in ("experts", "shared.gate_up", "shared.down")
        ),
    }


def test_sizes_that_cannot_be_shared_are_refused_with_their_name() -> None:
    config = read_config(tiny_config("glm4v_moe"))
    with pytest.raises(BadSettings, match=r"attention heads \(4\) cannot be divided among 5"):
        list(parameters(config, Share(Split(0, 5))))
    with pytest.raises(BadSettings, match=r"vocabulary \(320\) cannot be divided among 7"):
        list(parameters(config, Share(Split(0, 7))))


def refusal(check: Callable[[], object]) -> str:
    try:
        check()
    except BadSettings as error:
        return str(error)
    return ""


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("spread", [False, True])
def test_what_ranks_would_refuse_is_refused_before_they_start(kind: str, spread: bool) -> None:
    config = read_config(tiny_config(kind))
    refused = set()
    for size in range(1, 9):
        experts = Split(0, 2) if spread else Split()
        share = Share(text=Split(0, size), experts=experts)
        late = refusal(lambda share=share: list(parameters(config, share)))
        early = refusal(lambda size=size: check_sizes(config.text, size, whole_experts=spread))
        assert early.partition(": --tensor-parallel-size can be 1")[0] == late
        refused.add(bool(late))
    assert refused == {True, False}


def test_neighbouring_ranks_share_a_kv_head_when_there_are_more_ranks_than_heads() -> None:
    heads = [Split(rank, 8).kv_heads(2) for rank in range(8)]
    assert heads == [(0, 1)] * 4 + [(1, 2)] * 4
    assert [Split(rank, 2).kv_heads(8) for rank in range(2)] == [(0, 4), (4, 8)]
