"""The router."""

import pytest
import torch
from torch import Tensor

from glimt.kernels import reference_experts, triton_router


def routed(
    x: Tensor, weight: Tensor, bias: Tensor, per_token: int, normalizes: bool
) -> tuple[Tensor, Tensor]:
    rule = {"num_experts_per_token": per_token, "norm_topk_prob": normalizes, "scale": 2.5}
    return triton_router.route(x, weight, bias, **rule)


def dense(weights: Tensor, experts: Tensor, num_experts: int) -> Tensor:
    """[T, E]: in which order experts are given does not matter."""
    return torch.zeros(len(weights), num_experts).scatter_(1, experts, weights)


@pytest.mark.parametrize(
    ("num_tokens", "normalizes"), [(0, True), (1, False), (3, True), (17, False), (70, True)]
)
@pytest.mark.parametrize(("num_experts", "per_token", "width"), [(8, 3, 64), (24, 5, 352)])
def test_experts_and_weights_are_those_defined(
    num_tokens: int, num_experts: int, per_token: int, width: int, normalizes: bool
) -> None:
    generator = torch.Generator().manual_seed(num_tokens)
    x = torch.randn(num_tokens, width, generator=generator).bfloat16()
    weight = torch.randn(num_experts, width, generator=generator).bfloat16() / width**0.5
    bias = torch.randn(num_experts, generator=generator) / 4
    got = routed(x, weight, bias, per_token, normalizes)
    expected = reference_experts.route(
        x,
        weight,
        bias,
        num_experts_per_token=per_token,
        num_groups=1,
        num_groups_per_token=1,
        norm_topk_prob=normalizes,
        scale=2.5,
    )
    assert [t.dtype for t in got] == [t.dtype for t in expected]
    torch.testing.assert_close(dense(*got, num_experts), dense(*expected, num_experts))


@pytest.mark.parametrize("num_tokens", [2, 70])  # found at once, and one after the other
def test_experts_may_be_counted_from_a_rank_s_first(num_tokens: int) -> None:
    generator = torch.Generator().manual_seed(num_tokens)
    x, weight = (torch.randn(n, 64, generator=generator).bfloat16() for n in (num_tokens, 8))
    rule = {"num_experts_per_token": 3, "norm_topk_prob": True, "scale": 1.0}
    weights, experts = triton_router.route(x, weight, torch.zeros(8), **rule)
    own = triton_router.route(x, weight, torch.zeros(8), first_expert=4, **rule)
    assert torch.equal(own[0], weights)
    assert torch.equal(own[1], experts - 4)


@pytest.mark.parametrize("num_tokens", [1, 5])
@pytest.mark.parametrize("normalizes", [False, True])
def test_places_are_found_at_once_as_one_after_the_other(
    num_tokens: int, normalizes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(num_tokens)
    x = torch.randn(num_tokens, 64, generator=generator).bfloat16()
    weight = torch.randn(24, 64, generator=generator).bfloat16() / 8
    weight[3] = weight[7]  # equal scores
    placed = routed(x, weight, torch.zeros(24), 5, normalizes)
    monkeypatch.setattr(triton_router, "_MAX_PLACED_TOKENS", 0)
    taken_in_turn = routed(x, weight, torch.zeros(24), 5, normalizes)
    for got, wanted in zip(placed, taken_in_turn, strict=True):
        assert torch.equal(got, wanted)


def test_an_expert_whose_score_is_no_number_is_not_chosen() -> None:
    x, weight = torch.ones(2, 64).bfloat16(), torch.zeros(8, 64).bfloat16()
    weight[0] = torch.nan
    _, experts = routed(x, weight, torch.zeros(8), 3, True)
    assert experts.tolist() == [[1, 2, 3]] * 2


def test_of_equal_scores_the_first_experts_are_taken() -> None:
    x, weight = torch.ones(2, 64).bfloat16(), torch.zeros(10, 64).bfloat16()
    weights, experts = routed(x, weight, torch.zeros(10), 3, True)
    assert experts.tolist() == [[0, 1, 2]] * 2
    torch.testing.assert_close(weights, torch.full((2, 3), 2.5 / 3))
