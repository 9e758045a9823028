"""The FP8 experts' products for many tokens: rows sorted by expert, tile by tile through TMA.

torch's grouped product takes tiles of 256 rows for wide experts, so experts with 90 rows each pay
for 256. Here tiles have 64 or 128, and the first product ends in silu(gate) · up: half the numbers
are written, and none is read again but to quantise them.

A tile is `block_m` rows of one expert; what it has beyond the expert's rows is computed and not
stored. Tiles of one expert follow each other, so that its weights come from the L2 cache.

Letters: M rows, E experts, I inputs, O outputs, H halves (gates and ups: 2, else 1), N tiles.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from glimt.kernels.reference_experts import Fp8Mlp
from glimt.kernels.triton_rows import quantize_rows
from glimt.kernels.triton_support import (
    INTERPRETED,
    fits,
    launch,
    power_of_two,
    tiles_of,
    to_bf16,
)

_PROCESSORS = 132  # of an H100 or H200


class GroupedTile(NamedTuple):
    """Rows × outputs (of both halves) × inputs of a step.

    `programs` of each processor loop over the tiles and read ahead into the next one; 0: a program
    for each tile.
    """

    block_m: int
    block_o: int
    block_i: int
    warps: int
    stages: int
    programs: int


CONFIGS = (  # the first is the fastest on an H200 for many rows of an expert, the second for few
    GroupedTile(128, 256, 128, 8, 4, 1),
    GroupedTile(64, 128, 128, 4, 4, 0),
    GroupedTile(128, 256, 128, 8, 4, 0),
    GroupedTile(128, 128, 128, 8, 3, 0),
    GroupedTile(64, 256, 128, 8, 4, 1),
)


class RowTiles(NamedTuple):
    """Which rows each tile takes; only the first `num_1` tiles are there."""

    expert_N: Tensor
    row_N: Tensor  # the tile's first row
    num_1: Tensor
    block_m: int


@triton.jit
def row_tiles_kernel(
    end_ptr,
    expert_ptr,
    row_ptr,
    num_ptr,
    num_experts: tl.constexpr,
    bins: tl.constexpr,
    block_m: tl.constexpr,
):
    """Program e lists the tiles of expert e."""
    expert = tl.program_id(0)
    number = tl.arange(0, bins)
    is_expert = number < num_experts
    ends = tl.load(end_ptr + number, mask=is_expert, other=0)
    starts = tl.load(end_ptr + number - 1, mask=is_expert & (number > 0), other=0)
    tiles = tl.where(is_expert, (ends - starts + block_m - 1) // block_m, 0)
    first = tl.sum(tl.where(number < expert, tiles, 0), axis=0)
    start = tl.sum(tl.where(number == expert, starts, 0), axis=0)
    count = tl.sum(tl.where(number == expert, tiles, 0), axis=0)
    place = tl.arange(0, bins)
    done = 0
    while done < count:
        tile = done + place
        tl.store(expert_ptr + first + tile, expert, mask=tile < count)
        tl.store(row_ptr + first + tile, start + tile * block_m, mask=tile < count)
        done += bins
    if expert == num_experts - 1:
        tl.store(num_ptr, first + count)


@triton.jit
def _activated(total, halves: tl.constexpr):
    """silu(gate) · up of a tile, gates before ups, rounded as the definition does."""
    rows: tl.constexpr = total.shape[0]
    split = tl.reshape(to_bf16(total), [rows, halves, total.shape[1] // halves])
    gate, up = tl.split(tl.permute(split.to(tl.float32), (0, 2, 1)))
    silu = to_bf16(gate / (1.0 + tl.exp(-gate))).to(tl.float32)
    return silu * up


@triton.jit
def grouped_kernel(
    scale_ptr,
    x_desc,
    weight_desc,
    weight_scale_ptr,
    expert_ptr,
    row_ptr,
    num_ptr,
    end_ptr,
    out_ptr,
    num_inputs: tl.constexpr,
    num_outputs: tl.constexpr,
    halves: tl.constexpr,
    block_m: tl.constexpr,
    block_h: tl.constexpr,
    block_i: tl.constexpr,
    loops: tl.constexpr,
):
    """out[m, o] = s_m Σ_i s_o w[o, i] x[m, i] of a row's expert; of two halves silu(·) · the other.

    `block_h` are the outputs of one half. Every program takes each `num_programs`-th tile.
    """
    columns: tl.constexpr = (num_outputs + block_h - 1) // block_h
    num_tiles = tl.load(num_ptr) * columns
    for tile in tl.range(tl.program_id(0), num_tiles, tl.num_programs(0), flatten=loops):
        index = tile // columns
        expert = tl.load(expert_ptr + index)
        first = tl.load(row_ptr + index)
        column = tile % columns * block_h
        total = tl.zeros([block_m, halves * block_h], tl.float32)
        for step in range(0, num_inputs, block_i):
            x = x_desc.load([first, step])
            w = weight_desc.load([expert * halves, column, step])
            w = tl.reshape(w, [halves * block_h, block_i]).T
            if INTERPRETED:
                total = tl.dot(x.to(tl.float32), w.to(tl.float32), total)
            else:
                total = tl.dot(x, w, total)
        row = first + tl.arange(0, block_m)
        is_row = row < tl.load(end_ptr + expert)
        scale = tl.load(scale_ptr + row, mask=is_row, other=0.0)
        place = tl.arange(0, halves * block_h)
        output = column + place % block_h
        scale_at = weight_scale_ptr + (expert * halves + place // block_h) * num_outputs + output
        weight_scale = tl.load(scale_at, mask=output < num_outputs, other=0.0)
        total = total * scale[:, None] * weight_scale[None, :]
        if halves == 2:
            total = _activated(total, halves)
        output = column + tl.arange(0, block_h)
        out_at = out_ptr + row.to(tl.int64)[:, None] * num_outputs + output[None, :]
        mask = is_row[:, None] & (output < num_outputs)[None, :]
        tl.store(out_at, to_bf16(total), mask=mask)


def takes(q_MD: Tensor, scale_M: Tensor, ends_E: Tensor, routed: Fp8Mlp) -> bool:
    """Whether `outputs` can: there are rows, all is dense, and each row begins at 16 bytes."""
    widths = (routed.down.shape[1], routed.down.shape[2])
    rows_fit = q_MD.shape[0] > 0 and all(width % 16 == 0 for width in widths)
    return rows_fit and fits(q_MD, scale_M, ends_E, *routed)


def outputs(
    q_MD: Tensor,
    scale_M: Tensor,
    ends_E: Tensor,
    routed: Fp8Mlp,
    tile: GroupedTile | None = None,
) -> Tensor:
    """See `grouped.outputs`; bfloat16. The tile follows from the shape unless one is given."""
    num_rows = q_MD.shape[0]
    tile = tile or tile_for(num_rows, ends_E.shape[0])
    rows = row_tiles(ends_E, num_rows, tile.block_m)
    weights = (routed.gate_up, routed.gate_up_scale)
    inner_MI = grouped_product(q_MD, scale_M, *weights, ends_E, rows, tile, gated=True)
    q_MI, scale_M1 = quantize_rows(inner_MI)
    weights = (routed.down, routed.down_scale)
    return grouped_product(q_MI, scale_M1[:, 0], *weights, ends_E, rows, tile, gated=False)


def tile_for(num_rows: int, num_experts: int) -> GroupedTile:
    """By the average of rows of an expert; how many an expert really has only the device knows."""
    return CONFIGS[0] if num_rows > CONFIGS[1].block_m * num_experts else CONFIGS[1]


def row_tiles(ends_E: Tensor, num_rows: int, block_m: int) -> RowTiles:
    """Tiles of the rows of all experts, without the host."""
    num_experts = ends_E.shape[0]
    max_tiles = num_experts + num_rows // block_m
    expert_N, row_N = (ends_E.new_empty(max_tiles) for _ in range(2))
    num_1 = ends_E.new_empty(1)
    launch(
        row_tiles_kernel,
        (num_experts, 1, 1),
        ends_E,
        expert_N,
        row_N,
        num_1,
        num_experts,
        power_of_two(num_experts),
        block_m,
        warps=1,
    )
    return RowTiles(expert_N, row_N, num_1, block_m)


def grouped_product(
    q_MI: Tensor,
    scale_M: Tensor,
    weight_EOI: Tensor,
    weight_scale_EO: Tensor,
    ends_E: Tensor,
    rows: RowTiles,
    tile: GroupedTile,
    *,
    gated: bool,
) -> Tensor:
    """bfloat16 [M, O], or with `gated` silu of the first half of the outputs · the second.

    Row m belongs to the first expert e with m < ends_E[e]; rows from ends_E[-1] on are not set.
    """
    (num_rows, num_inputs), (num_experts, num_outputs, _) = q_MI.shape, weight_EOI.shape
    halves = 1 + gated
    num_outputs //= halves
    out_MO = q_MI.new_empty((num_rows, num_outputs), dtype=torch.bfloat16)
    if not num_rows:
        return out_MO
    block_h = tile.block_o // halves
    x_block, weight_block = [tile.block_m, tile.block_i], [halves, block_h, tile.block_i]
    weight = weight_EOI.view(num_experts * halves, num_outputs, num_inputs)
    num_tiles = rows.expert_N.shape[0] * tiles_of(num_outputs, block_h)
    programs = min(num_tiles, tile.programs * _PROCESSORS) if tile.programs else num_tiles
    launch(
        grouped_kernel,
        (programs, 1, 1),
        scale_M,
        TensorDescriptor.from_tensor(q_MI, x_block),
        TensorDescriptor.from_tensor(weight, weight_block),
        weight_scale_EO,
        rows.expert_N,
        rows.row_N,
        rows.num_1,
        ends_E,
        out_MO,
        num_inputs,
        num_outputs,
        halves,
        tile.block_m,
        block_h,
        tile.block_i,
        tile.programs > 0,
        warps=tile.warps,
        stages=tile.stages,
    )
    return out_MO
