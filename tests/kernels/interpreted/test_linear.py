"""The FP8 linear of few rows."""

import pytest
import torch
from torch import Tensor

from glimt.kernels import reference, triton_linear
from glimt.kernels.reference import MeasuredRows, QuantizedRows
from glimt.kernels.tiles import LinearTile


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


@pytest.mark.parametrize("num_tokens", [0, 1, 3, 17, 64])
@pytest.mark.parametrize(("num_outputs", "num_inputs"), [(64, 64), (96, 160), (200, 352)])
@pytest.mark.parametrize("bias", [False, True])
def test_few_rows_give_what_is_defined(
    num_tokens: int, num_outputs: int, num_inputs: int, bias: bool
) -> None:
    check(num_tokens, num_outputs, num_inputs, bias, None)


@pytest.mark.parametrize("parts", [1, 2, 4])
@pytest.mark.parametrize("bias", [False, True])
def test_split_inputs_give_what_is_defined(parts: int, bias: bool) -> None:
    check(3, 96, 352, bias, LinearTile(64, 128, parts, 4, 3))


def check(
    num_tokens: int, num_outputs: int, num_inputs: int, bias: bool, tile: LinearTile | None
) -> None:
    x, w = randn(num_tokens, num_inputs), randn(num_outputs, num_inputs, seed=1)
    w8, scale = reference.quantize_rows(w)
    b = randn(num_outputs, seed=2) if bias else None
    rows = QuantizedRows.of(x)
    got = triton_linear.fp8_linear(rows, w8, scale[:, 0], b, tile)
    expected = reference.fp8_linear(rows, w8, scale[:, 0], b)
    torch.testing.assert_close(got, expected, rtol=0.01, atol=0.02)


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("num_tokens", [1, 5])
def test_measured_rows_are_quantised_on_the_way_in(num_tokens: int, parts: int) -> None:
    x, tile = randn(num_tokens, 384), LinearTile(64, 128, parts, 4, 3)
    w8, scale = reference.quantize_rows(randn(96, 384, seed=1))
    largest = x.view(num_tokens, 3, 128).float().abs().amax(-1)
    got = triton_linear.fp8_linear(MeasuredRows(x, largest), w8, scale[:, 0], None, tile)
    expected = triton_linear.fp8_linear(QuantizedRows.of(x), w8, scale[:, 0], None, tile)
    assert isinstance(got, Tensor)
    assert torch.equal(got, expected)
