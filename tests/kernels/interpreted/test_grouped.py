"""The FP8 products of many tokens' experts: ragged rows, empty experts, experts elsewhere."""

import pytest
import torch
from torch import Tensor

from glimt.kernels import triton_grouped
from glimt.kernels.reference import quantize_rows, silu_mul_quantize
from glimt.kernels.reference_experts import Fp8Mlp
from glimt.kernels.triton_grouped import GroupedTile
from tests.kernels.interpreted.test_experts import mlps, randn

RAGGED = [16, 0, 1, 17, 40, 0]
SMALL = GroupedTile(16, 64, 32, 4, 2, 0)
LOOPING = GroupedTile(16, 32, 64, 4, 2, 1)


def by_definition(q_MI: Tensor, scale_M: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """Rows of one expert, rounded to bfloat16."""
    return ((q_MI.float() @ weight.float().t()) * scale_M[:, None] * scale).bfloat16()


def expected_outputs(q: Tensor, scale: Tensor, counts: list[int], routed: Fp8Mlp) -> Tensor:
    found = []
    parts = zip(q.float().split(counts), scale.split(counts), strict=True)
    for expert, (rows, row_scale) in enumerate(parts):
        gate_up, gate_up_scale, down, down_scale = (tensor[expert] for tensor in routed)
        gate_up_MF = by_definition(rows, row_scale, gate_up, gate_up_scale)
        inner = silu_mul_quantize(gate_up_MF)
        found.append(by_definition(inner.q_TI, inner.scale_T1[:, 0], down, down_scale))
    return torch.cat(found)


@pytest.mark.parametrize("tile", [SMALL, LOOPING])
@pytest.mark.parametrize("counts", [RAGGED, [0, 0, 5]])
def test_rows_get_their_experts_outputs(
    counts: list[int], tile: GroupedTile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton_grouped, "_PROCESSORS", 3)  # so that programs have several tiles
    routed = mlps(len(counts), 48, 80)
    q, scale = quantize_rows(randn(sum(counts) + 3, 80, seed=4))  # three rows of experts elsewhere
    ends = torch.tensor(counts).cumsum(0).int()
    assert triton_grouped.takes(q, scale[:, 0].contiguous(), ends, routed)
    got = triton_grouped.outputs(q, scale[:, 0].contiguous(), ends, routed, tile)
    expected = expected_outputs(q[: sum(counts)], scale[: sum(counts), 0], counts, routed)
    assert got.dtype == torch.bfloat16
    # A last bit of an inner row may move one of its e4m3 values by a step.
    torch.testing.assert_close(got[: sum(counts)], expected, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("counts", [RAGGED, [0, 0, 0], [300], [1] * 70])
def test_tiles_cover_each_experts_rows_once(counts: list[int]) -> None:
    ends = torch.tensor(counts).cumsum(0).int()
    tiles = triton_grouped.row_tiles(ends, sum(counts), 16)
    num_tiles = int(tiles.num_1)
    found = []
    for expert, row in zip(tiles.expert_N[:num_tiles], tiles.row_N[:num_tiles], strict=True):
        last = min(int(row) + 16, int(ends[expert]))
        assert int(row) < last
        found += [(int(expert), each) for each in range(int(row), last)]
    expert_of_row = [expert for expert, count in enumerate(counts) for _ in range(count)]
    assert found == [(expert, row) for row, expert in enumerate(expert_of_row)]


def test_the_tile_follows_from_the_average_of_rows() -> None:
    assert triton_grouped.tile_for(64 * 128, 128).block_m == 64
    assert triton_grouped.tile_for(64 * 128 + 1, 128).block_m == 128
