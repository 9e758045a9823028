"""A mixture of experts of very few tokens in two launches."""

import pytest
import torch
from torch import Tensor

from glimt.kernels import (
    reference_experts,
    triton_experts,
    triton_mixture,
    triton_router,
    triton_support,
)
from glimt.kernels.reference import QuantizedRows, quantize_rows
from glimt.kernels.reference_experts import Fp8Mlp


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


def mlp(*count: int, width: int, hidden: int, seed: int) -> Fp8Mlp:
    gate_up, gate_up_scale = quantize_rows(randn(*count, 2 * width, hidden, seed=seed) / 8)
    down, down_scale = quantize_rows(randn(*count, hidden, width, seed=seed + 1) / 8)
    return Fp8Mlp(gate_up, gate_up_scale[..., 0], down, down_scale[..., 0])


class Mixture:
    """Tokens, and all that computes them."""

    def __init__(self, num_tokens: int, num_experts: int, width: int, hidden: int) -> None:
        self.x = randn(num_tokens, hidden, seed=3)
        self.router = randn(num_experts, hidden, seed=4) / hidden**0.5
        self.bias = torch.randn(num_experts, generator=torch.Generator().manual_seed(5)) / 4
        self.routed = mlp(num_experts, width=width, hidden=hidden, seed=6)
        self.shared = mlp(width=width, hidden=hidden, seed=8)

    def at_once(self, per_token: int = 3, *, normalizes: bool = True) -> Tensor:
        rule = {"num_experts_per_token": per_token, "norm_topk_prob": normalizes, "scale": 1.5}
        given = (QuantizedRows.of(self.x), self.router, self.bias, self.routed, self.shared)
        return triton_mixture.routed_fp8_moe(*given, **rule).total()

    def one_by_one(self, per_token: int = 3) -> Tensor:
        rule = {"num_experts_per_token": per_token, "norm_topk_prob": True, "scale": 1.5}
        chosen = triton_router.route(self.x, self.router, self.bias, **rule)
        rows = QuantizedRows.of(self.x)
        return triton_experts.fp8_experts(rows, *chosen, self.routed, self.shared)

    def defined(self, per_token: int = 3, *, normalizes: bool = True) -> Tensor:
        given = (self.x, self.router, self.bias, self.routed, self.shared)
        rule = {"num_experts_per_token": per_token, "norm_topk_prob": normalizes, "scale": 1.5}
        return reference_experts.routed_fp8_moe(
            *given, **rule, num_groups=1, num_groups_per_token=1
        )


@pytest.mark.parametrize("num_tokens", [1, 3])
@pytest.mark.parametrize(("num_experts", "width", "hidden"), [(8, 96, 160), (12, 32, 64)])
def test_tokens_get_what_is_defined(
    num_tokens: int, num_experts: int, width: int, hidden: int
) -> None:
    mixture = Mixture(num_tokens, num_experts, width, hidden)
    got = mixture.at_once()
    torch.testing.assert_close(got, mixture.defined(), rtol=0.02, atol=0.02)
    assert torch.equal(got, mixture.one_by_one())


def test_weights_may_stay_as_they_are() -> None:
    mixture = Mixture(2, 8, 32, 64)
    got = mixture.at_once(2, normalizes=False)
    torch.testing.assert_close(got, mixture.defined(2, normalizes=False), rtol=0.02, atol=0.02)


def test_scales_may_be_read_first(monkeypatch: pytest.MonkeyPatch) -> None:
    mixture = Mixture(2, 8, 32, 64)
    expected = mixture.at_once()
    monkeypatch.setattr(triton_support, "SCALES_FIRST", True)
    assert torch.equal(mixture.at_once(), expected)
    assert torch.equal(mixture.one_by_one(), expected)


def test_of_equal_scores_the_first_experts_are_taken() -> None:
    mixture = Mixture(1, 10, 32, 64)
    mixture.router, mixture.bias = torch.zeros_like(mixture.router), torch.zeros(10)
    assert torch.equal(mixture.at_once(), mixture.one_by_one())


def test_an_expert_whose_score_is_no_number_is_not_chosen() -> None:
    mixture = Mixture(2, 8, 32, 64)
    mixture.router[0] = torch.nan
    got = mixture.at_once()
    mixture.router[0], mixture.bias[0] = 0, -torch.inf
    assert torch.equal(got, mixture.at_once())
