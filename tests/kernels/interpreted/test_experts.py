"""The FP8 experts of few tokens, alone and with a shared expert."""

import pytest
import torch
from torch import Tensor

from glimt.kernels import experts as grouped
from glimt.kernels import reference_experts, triton_experts
from glimt.kernels.reference import QuantizedRows, quantize_rows
from glimt.kernels.reference_experts import Fp8Mlp
from glimt.kernels.triton_plan import plan, sort_by_expert


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


def mlps(num_experts: int, width: int, hidden: int) -> Fp8Mlp:
    gate_up, gate_up_scale = quantize_rows(randn(num_experts, 2 * width, hidden, seed=1) / 8)
    down, down_scale = quantize_rows(randn(num_experts, hidden, width, seed=2) / 8)
    return Fp8Mlp(gate_up, gate_up_scale[..., 0], down, down_scale[..., 0])


def choices(num_tokens: int, num_experts: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    experts = torch.rand(num_tokens, num_experts, generator=generator).topk(3).indices
    return torch.rand(num_tokens, 3, generator=generator), experts


def check(
    x: Tensor, weights: Tensor, experts: Tensor, routed: Fp8Mlp, shared: Fp8Mlp | None
) -> None:
    got = triton_experts.fp8_experts(QuantizedRows.of(x), weights, experts, routed, shared)
    if shared is None:
        expected = reference_experts.fp8_grouped_experts(x, weights, experts, *routed)
    else:
        expected = reference_experts.fp8_moe(x, weights, experts, routed, shared)
    assert got.dtype == expected.dtype
    torch.testing.assert_close(got, expected, rtol=0.02, atol=0.02)


@pytest.mark.parametrize(
    ("num_tokens", "has_shared"),
    [(0, False), (0, True), (1, False), (1, True), (3, True), (5, False), (17, True), (40, False)],
)
def test_few_tokens_get_what_is_defined(num_tokens: int, has_shared: bool) -> None:
    routed, (weights, experts) = mlps(8, 96, 160), choices(num_tokens, 8, seed=num_tokens)
    shared = Fp8Mlp(*(tensor[0] for tensor in mlps(1, 96, 160))) if has_shared else None
    check(randn(num_tokens, 160, seed=3), weights, experts, routed, shared)


@pytest.mark.parametrize("num_tokens", [2, 20])
def test_experts_of_other_ranks_count_nothing(num_tokens: int) -> None:
    weights, experts = choices(num_tokens, 12, seed=1)
    check(randn(num_tokens, 64, seed=3), weights, experts - 4, mlps(4, 32, 64), None)


@pytest.mark.parametrize("num_tokens", [1, 3, 20])
def test_whole_experts_have_a_share_of_the_shared_one_beside_them(num_tokens: int) -> None:
    weights, experts = choices(num_tokens, 8, seed=num_tokens)
    shared = Fp8Mlp(*(tensor[0] for tensor in mlps(1, 48, 160)))
    check(randn(num_tokens, 160, seed=3), weights, experts - 4, mlps(4, 144, 160), shared)


def test_one_expert_may_have_all_the_tokens() -> None:
    weights, experts = choices(40, 8, seed=1)
    experts = torch.tensor([[5, 2, 0]]).expand_as(experts).contiguous()
    check(randn(40, 64, seed=3), weights, experts, mlps(8, 32, 64), None)


@pytest.mark.parametrize(("num_tokens", "spread"), [(5, 9), (17, 4), (70, 8), (70, 40)])
def test_a_plan_has_each_pair_once_in_a_tile_of_its_expert(num_tokens: int, spread: int) -> None:
    _, experts = choices(num_tokens, spread, seed=num_tokens)
    experts = experts - 1  # expert -1 and those from 7 on are elsewhere
    tiles = plan(experts, 7, True)
    assert tiles.pair_NB is not None
    assert len(tiles.expert_N) == len(tiles.pair_NB) == tiles.num_routed
    of_pair = experts.flatten().tolist()
    found = []
    for expert, pairs in zip(tiles.expert_N.tolist(), tiles.pair_NB.tolist(), strict=True):
        if expert >= 0:
            here = [pair for pair in pairs if pair >= 0]
            assert here
            assert {of_pair[pair] for pair in here} == {expert}
            found += here
    assert sorted(found) == [pair for pair, e in enumerate(of_pair) if 0 <= e < 7]


def test_rows_in_another_order_are_found_and_added() -> None:
    weights, experts = choices(5, 8, seed=1)
    rows, shared = randn(15, 64, seed=3), randn(5, 64, seed=4)
    order = torch.randperm(15, generator=torch.Generator().manual_seed(5))
    place = torch.empty(15, dtype=torch.int64)
    place[order] = torch.arange(15)
    got = triton_experts.combine(rows[order], weights, experts - 2, 4, place, shared)
    is_here = (experts >= 2) & (experts < 6)
    here = (weights * is_here)[..., None] * rows.view(5, 3, 64).float()
    torch.testing.assert_close(got.float(), here.sum(1) + shared.float(), rtol=0.01, atol=0.01)


@pytest.mark.parametrize("num_tokens", [1, 40, 1400])
def test_pairs_are_sorted_by_expert_as_torch_sorts_them(num_tokens: int) -> None:
    _, experts = choices(num_tokens, 9, seed=num_tokens)
    for got, expected in zip(
        sort_by_expert(experts - 1, 7), grouped.sort_by_expert(experts - 1, 7), strict=True
    ):
        assert torch.equal(got, expected)
