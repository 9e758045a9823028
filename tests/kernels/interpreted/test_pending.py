"""Sums that norms carry out: the same bits as where kernels of their own carry them out."""

import pytest
import torch
from torch import Tensor

from glimt.kernels import triton_experts, triton_linear, triton_rows
from glimt.kernels.pending import ExpertRows, LinearParts
from glimt.kernels.reference import QuantizedRows, quantize_rows
from glimt.kernels.reference_experts import Fp8Mlp
from glimt.kernels.tiles import LinearTile

WIDTH = 96


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


@pytest.fixture(autouse=True, params=[0, 132], ids=["as many rows", "as few rows"])
def few_rows(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_rows, "_FEW_ROWS", request.param)


def check(delta: LinearParts | ExpertRows, alone: Tensor) -> None:
    """`alone` is the sum as a kernel of its own carries it out."""
    torch.testing.assert_close(delta.total(), alone, rtol=0.01, atol=1e-4)
    x, g = randn(*alone.shape, seed=8), randn(WIDTH, seed=9)
    rows, total = triton_rows.add_rms_norm_quantize(x, delta, g, 1e-5)
    rows_alone, total_alone = triton_rows.add_rms_norm_quantize(x, alone, g, 1e-5)
    assert torch.equal(total, total_alone)
    assert torch.equal(rows.q_TI.float(), rows_alone.q_TI.float())
    assert torch.equal(triton_rows.add_rms_norm(x, delta, g, 1e-5)[0], rows.x_TI)


@pytest.mark.parametrize("num_tokens", [1, 5])
@pytest.mark.parametrize("parts", [2, 4])
def test_a_norm_adds_the_parts_of_a_product(num_tokens: int, parts: int) -> None:
    rows = QuantizedRows.of(randn(num_tokens, 352, seed=1))
    weight, scale = quantize_rows(randn(WIDTH, 352, seed=2))
    given = (rows, weight, scale[:, 0], None, LinearTile(64, 64, parts, 4, 3))
    delta = triton_linear.fp8_linear(*given, defers=True)
    assert isinstance(delta, LinearParts)
    alone = triton_linear.fp8_linear(*given)
    assert isinstance(alone, Tensor)
    check(delta, alone)


def test_a_product_with_a_bias_or_in_one_part_leaves_nothing_to_add() -> None:
    rows = QuantizedRows.of(randn(2, 352, seed=1))
    weight, scale = quantize_rows(randn(WIDTH, 352, seed=2))
    for parts, bias in ((1, None), (2, randn(WIDTH, seed=3))):
        given = (rows, weight, scale[:, 0], bias, LinearTile(64, 64, parts, 4, 3))
        assert isinstance(triton_linear.fp8_linear(*given, defers=True), Tensor)


@pytest.mark.parametrize(("num_tokens", "has_shared"), [(1, True), (6, False), (3, True)])
def test_a_norm_adds_the_rows_of_experts(num_tokens: int, has_shared: bool) -> None:
    def mlp(*count: int) -> Fp8Mlp:
        gate_up, gate_up_scale = quantize_rows(randn(*count, 64, WIDTH, seed=1) / 8)
        down, down_scale = quantize_rows(randn(*count, WIDTH, 32, seed=2) / 8)
        return Fp8Mlp(gate_up, gate_up_scale[..., 0], down, down_scale[..., 0])

    scores = torch.rand(num_tokens, 8, generator=torch.Generator().manual_seed(3))
    weights, experts = scores.topk(3)
    experts = experts if has_shared else experts - 2  # some are elsewhere
    rows, shared = QuantizedRows.of(randn(num_tokens, WIDTH, seed=4)), mlp()
    given = (rows, weights, experts, mlp(8), shared if has_shared else None)
    delta = triton_experts.fp8_experts(*given, defers=True)
    assert isinstance(delta, ExpertRows)
    alone = triton_experts.fp8_experts(*given)
    assert isinstance(alone, Tensor)
    check(delta, alone)
