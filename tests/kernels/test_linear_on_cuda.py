"""The ways to multiply few rows on a GPU, at the sizes of the 106B models: right, again and again.

Sums are compared with float64's, where tensor cores keep fewer bits than float32 (`dot`).
"""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from glimt.kernels import reference
from glimt.kernels.pending import settled
from glimt.kernels.reference import MeasuredRows, QuantizedRows
from glimt.kernels.tiles import LinearTile
from glimt.kernels.twins import triton_linear
from tests.support.poison import poisoned_allocations

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

SIZES = [(14336, 4096), (4096, 12288), (4096, 10944)]  # the last fits no step
ONE_ROW = [
    LinearTile(4, 512, 1, 1, 2, "fma"),
    LinearTile(8, 512, 1, 1, 3, "fma"),
    LinearTile(4, 2048, 1, 4, 2, "fma"),
    LinearTile(2, 1024, 3, 2, 3, "fma"),
]
FEW_ROWS = [
    LinearTile(64, 256, 3, 4, 4),
    LinearTile(32, 256, 2, 4, 4),
    LinearTile(64, 256, 4, 4, 3, "tma"),
    LinearTile(128, 128, 3, 8, 4, "tma"),
]
CASES = [(1, tile) for tile in ONE_ROW] + [(n, tile) for tile in FEW_ROWS for n in (1, 3, 64)]


@pytest.fixture(autouse=True)
def poison() -> Iterator[None]:
    with poisoned_allocations():
        yield


def randn(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator("cuda").manual_seed(seed)
    return torch.randn(shape, generator=generator, device="cuda")


def product(
    num_tokens: int, num_outputs: int, num_inputs: int, *, signed: bool = True
) -> tuple[QuantizedRows, Tensor, Tensor, Tensor, Tensor]:
    """(rows, weight, its scales, bias, what they give in float64)."""
    x, w = randn(num_tokens, num_inputs), randn(num_outputs, num_inputs, seed=1)
    x, w = (x, w) if signed else (x.abs(), w.abs())
    weight, scale = reference.quantize_rows(w)
    # On a CPU: on CUDA torch divides by 448 as it multiplies by 1 / 448, a bit off now and then.
    rows = QuantizedRows(*(t.cuda() for t in QuantizedRows.of(x.bfloat16().cpu())))
    bias = randn(num_outputs, seed=2).bfloat16()
    y = rows.q_TI.double() @ weight.double().t() * rows.scale_T1 * scale[:, 0] + bias
    return rows, weight, scale[:, 0].contiguous(), bias, y


def near(got: Tensor, expected: Tensor, tolerance: float) -> None:
    error = (got.double() - expected).norm(dim=-1)
    assert (error <= tolerance * expected.norm(dim=-1)).all()  # NaN is not less either


@pytest.mark.parametrize(("num_outputs", "num_inputs"), SIZES)
@pytest.mark.parametrize(("num_tokens", "tile"), CASES)
def test_every_way_gives_what_is_defined(
    num_tokens: int, tile: LinearTile, num_outputs: int, num_inputs: int
) -> None:
    *given, expected = product(num_tokens, num_outputs, num_inputs)
    near(triton_linear.fp8_linear(*given, tile), expected, 0.01)


@pytest.mark.parametrize(("num_tokens", "tile"), CASES)
def test_sums_of_one_sign_keep_their_size(num_tokens: int, tile: LinearTile) -> None:
    *given, expected = product(num_tokens, 4096, 12288, signed=False)
    # A single row's are float32's: only the result is rounded, to bfloat16.
    near(triton_linear.fp8_linear(*given, tile), expected, 0.002 if tile.way == "fma" else 0.004)


@pytest.mark.parametrize(("num_tokens", "tile"), [case for case in CASES if case[0] < 64])
def test_measured_rows_are_quantised_on_the_way_in(num_tokens: int, tile: LinearTile) -> None:
    rows, weight, scale, _, _ = product(num_tokens, 4096, 12288)
    largest = rows.x_TI.view(num_tokens, 96, 128).float().abs().amax(-1)
    measured = MeasuredRows(rows.x_TI, largest)
    expected = triton_linear.fp8_linear(rows, weight, scale, None, tile)
    for defers in (False, True):
        got = triton_linear.fp8_linear(measured, weight, scale, None, tile, defers=defers)
        assert torch.equal(settled(got), expected)


@pytest.mark.parametrize(("num_tokens", "tile"), [case for case in CASES if case[0] < 64])
def test_a_graph_gives_the_same_bits_a_thousand_times(num_tokens: int, tile: LinearTile) -> None:
    rows, weight, scale, bias, _ = product(num_tokens, 4096, 12288)
    largest = rows.x_TI.view(num_tokens, 96, 128).float().abs().amax(-1)
    measured = MeasuredRows(rows.x_TI, largest)

    def both() -> Tensor:
        first = triton_linear.fp8_linear(rows, weight, scale, bias, tile)
        second = triton_linear.fp8_linear(measured, weight, scale, bias, tile)
        return torch.stack((first, second))

    expected = both()
    assert torch.equal(expected[0], expected[1])
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = both()
    differs = torch.zeros((), dtype=torch.int64, device="cuda")
    for _ in range(1000):
        got.fill_(torch.nan)
        graph.replay()
        differs += (got != expected).sum()
    assert differs.item() == 0
