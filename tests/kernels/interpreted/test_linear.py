"""The FP8 linear of few rows."""

import pytest
import torch
from torch import Tensor

from glimt.kernels import reference, triton_linear
from glimt.kernels.reference import MeasuredRows, QuantizedRows
from glimt.kernels.tiles import LinearTile

ONE_ROW = [LinearTile(4, 512, 1, 1, 2, "fma"), LinearTile(8, 1024, 2, 2, 3, "fma")]


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


@pytest.mark.parametrize(("num_outputs", "num_inputs"), [(96, 2048), (90, 1376)])
@pytest.mark.parametrize("tile", ONE_ROW)
@pytest.mark.parametrize("bias", [False, True])
def test_a_single_row_needs_no_tensor_cores(
    num_outputs: int, num_inputs: int, tile: LinearTile, bias: bool
) -> None:
    check(1, num_outputs, num_inputs, bias, tile)


@pytest.mark.parametrize("num_tokens", [1, 5])
@pytest.mark.parametrize("num_inputs", [512, 352])
@pytest.mark.parametrize("parts", [1, 2])
def test_weights_may_come_by_tma(num_tokens: int, num_inputs: int, parts: int) -> None:
    check(num_tokens, 96, num_inputs, True, LinearTile(64, 128, parts, 4, 3, "tma"))


def test_a_tile_for_a_single_row_takes_no_others() -> None:
    with pytest.raises(ValueError, match="single row, not for 2"):
        check(2, 96, 1024, False, ONE_ROW[0])


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


@pytest.mark.parametrize(
    ("num_tokens", "tile"),
    [
        *[(n, LinearTile(64, 128, parts, 4, 3)) for n in (1, 5) for parts in (1, 2)],
        (5, LinearTile(64, 128, 2, 4, 3, "tma")),
        (1, LinearTile(4, 512, 1, 1, 2, "fma")),
        (1, LinearTile(4, 512, 2, 1, 3, "fma")),
    ],
)
def test_measured_rows_are_quantised_on_the_way_in(num_tokens: int, tile: LinearTile) -> None:
    x = randn(num_tokens, 384)
    w8, scale = reference.quantize_rows(randn(96, 384, seed=1))
    largest = x.view(num_tokens, 3, 128).float().abs().amax(-1)
    got = triton_linear.fp8_linear(MeasuredRows(x, largest), w8, scale[:, 0], None, tile)
    expected = triton_linear.fp8_linear(QuantizedRows.of(x), w8, scale[:, 0], None, tile)
    assert isinstance(got, Tensor)
    assert torch.equal(got, expected)
