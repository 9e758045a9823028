"""The FP8 experts' feed-forward for few tokens: each expert's weights are read once.

Work is cut into tiles of (token, expert) pairs (`triton_plan.py`). `gate_up_kernel` gives a pair's
inner row with its largest values, `down_kernel` quantises it by these and gives the pair's output
row, and `combine_kernel` adds a token's rows, weighted.

Letters: T tokens, K experts of a token, P pairs (T · K, then T of the shared expert), D width,
I expert width, F = 2I, E experts, N tiles, B pairs of a tile, C column tiles of an inner row.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from glimt.kernels.pending import ALL_HERE, ExpertRows
from glimt.kernels.reference import QuantizedRows
from glimt.kernels.reference_experts import Fp8Mlp
from glimt.kernels.tiles import ExpertTile, down_tile, gate_up_tile
from glimt.kernels.triton_expert_tiles import store_inner, store_narrow_inner, store_output
from glimt.kernels.triton_plan import Tiles, locate, plan
from glimt.kernels.triton_support import (
    launch,
    power_of_two,
    tiles_of,
    to_bf16,
)

MAX_TOKENS = 256  # above, torch's grouped GEMM is as fast
_COMBINE_BLOCK = 512
_ALL_HERE = tl.constexpr(ALL_HERE)


@triton.jit(do_not_specialize=["num_tokens", "shared_tiles"])
def gate_up_kernel(
    q_ptr,
    scale_ptr,
    tile_expert_ptr,
    tile_pair_ptr,
    weight_ptr,
    weight_scale_ptr,
    shared_weight_ptr,
    shared_scale_ptr,
    inner_ptr,
    largest_ptr,
    num_tokens,
    shared_tiles,
    num_experts: tl.constexpr,
    per_token: tl.constexpr,
    num_inputs: tl.constexpr,
    width: tl.constexpr,
    shared_width: tl.constexpr,
    column_tiles: tl.constexpr,
    block_t: tl.constexpr,
    block_o: tl.constexpr,
    block_i: tl.constexpr,
):
    """silu(gate x) · up x of a tile's pairs, `block_o` columns of it, and their largest value."""
    expert, pair = locate(
        shared_tiles, tile_expert_ptr, tile_pair_ptr, num_tokens, num_experts, per_token, block_t
    )
    if expert < 0:
        return
    if shared_width != width and expert == num_experts:
        store_narrow_inner(
            q_ptr, scale_ptr, shared_weight_ptr, shared_scale_ptr, inner_ptr, largest_ptr,
            pair, num_tokens * per_token, tl.program_id(0), num_inputs, width, shared_width,
            column_tiles, block_o, block_i,
        )  # fmt: skip
        return
    if expert == num_experts:
        weights = shared_weight_ptr
        weight_scales = shared_scale_ptr
        token = pair - num_tokens * per_token
    else:
        weights = weight_ptr + expert * (2 * width * num_inputs)
        weight_scales = weight_scale_ptr + expert * (2 * width)
        token = pair // per_token
    store_inner(
        q_ptr, scale_ptr, weights, weight_scales, inner_ptr, largest_ptr, pair, token,
        tl.program_id(0), num_inputs, width, column_tiles, block_o, block_i,
    )  # fmt: skip


@triton.jit(do_not_specialize=["num_tokens", "shared_tiles"])
def down_kernel(
    inner_ptr,
    largest_ptr,
    tile_expert_ptr,
    tile_pair_ptr,
    weight_ptr,
    weight_scale_ptr,
    shared_weight_ptr,
    shared_scale_ptr,
    out_ptr,
    num_tokens,
    shared_tiles,
    num_experts: tl.constexpr,
    per_token: tl.constexpr,
    num_outputs: tl.constexpr,
    width: tl.constexpr,
    shared_width: tl.constexpr,
    column_tiles: tl.constexpr,
    block_c: tl.constexpr,
    block_t: tl.constexpr,
    block_o: tl.constexpr,
    block_i: tl.constexpr,
):
    """down h of a tile's pairs, `block_o` columns of it; h is quantised on the way."""
    expert, pair = locate(
        shared_tiles, tile_expert_ptr, tile_pair_ptr, num_tokens, num_experts, per_token, block_t
    )
    if expert < 0:
        return
    if expert == num_experts:
        weights = shared_weight_ptr
        weight_scales = shared_scale_ptr
    else:
        weights = weight_ptr + expert * (num_outputs * width)
        weight_scales = weight_scale_ptr + expert * num_outputs
    output = tl.program_id(0) * block_o + tl.arange(0, block_o)
    if shared_width != width and expert == num_experts:
        narrow_ptr = inner_ptr + num_tokens * per_token * (width - shared_width)
        store_output(
            narrow_ptr, largest_ptr, weights, weight_scales, out_ptr, pair, output,
            num_outputs, shared_width, column_tiles, block_c, block_i,
        )  # fmt: skip
    else:
        store_output(
            inner_ptr, largest_ptr, weights, weight_scales, out_ptr, pair, output,
            num_outputs, width, column_tiles, block_c, block_i,
        )  # fmt: skip


@triton.jit
def combine_kernel(
    part_ptr,
    row_ptr,
    weight_ptr,
    expert_ptr,
    shared_ptr,
    out_ptr,
    num_experts: tl.constexpr,
    per_token: tl.constexpr,
    num_outputs: tl.constexpr,
    block: tl.constexpr,
):
    """The weighted sum of a token's rows, and the shared expert's row, in float32."""
    token = tl.program_id(1).to(tl.int64)
    output = tl.program_id(0) * block + tl.arange(0, block)
    inside = output < num_outputs
    total = tl.zeros([block], tl.float32)
    for k in tl.static_range(per_token):
        pair = token * per_token + k
        is_there = inside
        if num_experts != _ALL_HERE:
            expert = tl.load(expert_ptr + pair)
            is_there = inside & (expert >= 0) & (expert < num_experts)
        row = pair if row_ptr is None else tl.load(row_ptr + pair)
        part = tl.load(part_ptr + row * num_outputs + output, mask=is_there, other=0.0)
        total += part.to(tl.float32) * tl.load(weight_ptr + pair)
    if shared_ptr is not None:
        shared = tl.load(shared_ptr + token * num_outputs + output, mask=inside, other=0.0)
        total += shared.to(tl.float32)
    tl.store(out_ptr + token * num_outputs + output, to_bf16(total), mask=inside)


def fp8_experts(
    rows: QuantizedRows,
    weights_TK: Tensor,
    experts_TK: Tensor,
    routed: Fp8Mlp,
    shared: Fp8Mlp | None = None,
    gate_up_by: ExpertTile | None = None,
    down_by: ExpertTile | None = None,
    *,
    defers: bool = False,
) -> Tensor | ExpertRows:
    """See `reference_experts.fp8_grouped_experts`, or `fp8_moe` if there is a shared expert, which
    is no wider than the others: where these are whole, it may be a share.

    The tiles are the table's unless they are given. With `defers` a norm is left to add the rows.
    """
    num_tokens, per_token = experts_TK.shape
    num_experts, num_outputs, width = routed.down.shape
    gate_up_by = gate_up_by or gate_up_tile(width, num_outputs, num_tokens)
    down_by = down_by or down_tile(num_outputs, width, num_tokens)
    if not num_tokens:
        return torch.empty_like(rows.x_TI)
    tiles = plan(experts_TK, num_experts, shared is not None)
    num_pairs = num_tokens * (per_token + (shared is not None))
    inner_PI, largest_PC = gate_up(rows, per_token, tiles, gate_up_by, routed, shared, num_pairs)
    part_PD = down(inner_PI, largest_PC, num_tokens, per_token, tiles, down_by, routed, shared)
    pairs = ExpertRows(part_PD, weights_TK, experts_TK, num_experts, shared is not None)
    return pairs if defers else sum_of_rows(pairs)


def sum_of_rows(pairs: ExpertRows) -> Tensor:
    """`pairs.total()`, in a launch of its own."""
    shared_TD = pairs.row_PD[pairs.weights_TK.numel() :] if pairs.has_shared else None
    given = (pairs.row_PD, pairs.weights_TK, pairs.experts_TK, pairs.num_experts)
    return combine(*given, None, shared_TD)


def combine(
    part_PD: Tensor,
    weights_TK: Tensor,
    experts_TK: Tensor,
    num_experts: int,
    row_P: Tensor | None = None,
    shared_TD: Tensor | None = None,
) -> Tensor:
    """The weighted sum of each token's rows, plus those of a shared expert -> bfloat16 [T, D].

    Pair p's row is `part_PD[row_P[p]]`, or p without `row_P`; rows of experts elsewhere are unread.
    """
    (num_tokens, per_token), num_outputs = experts_TK.shape, part_PD.shape[1]
    y_TD = part_PD.new_empty(num_tokens, num_outputs)
    if num_tokens:
        launch(
            combine_kernel,
            (tiles_of(num_outputs, _COMBINE_BLOCK), num_tokens, 1),
            part_PD,
            row_P,
            weights_TK,
            experts_TK,
            shared_TD,
            y_TD,
            num_experts,
            per_token,
            num_outputs,
            _COMBINE_BLOCK,
            warps=4,
        )
    return y_TD


def gate_up(
    rows: QuantizedRows,
    per_token: int,
    tiles: Tiles,
    tile: ExpertTile,
    routed: Fp8Mlp,
    shared: Fp8Mlp | None,
    num_pairs: int,
) -> tuple[Tensor, Tensor]:
    """(inner rows bfloat16 [P, I], largest magnitudes float32 [P, C]); only pairs here are set."""
    num_tokens, num_inputs = rows.q_TI.shape
    num_experts, _, width = routed.down.shape
    column_tiles = tiles_of(width, tile.block_o)
    inner_PI = rows.x_TI.new_empty(num_pairs, width)
    largest_PC = inner_PI.new_empty((num_pairs, column_tiles), dtype=torch.float32)
    also = shared or routed
    launch(
        gate_up_kernel,
        (column_tiles, tiles.num_shared + tiles.num_routed, 1),
        rows.q_TI,
        rows.scale_T1,
        tiles.expert_N,
        tiles.pair_NB,
        routed.gate_up,
        routed.gate_up_scale,
        also.gate_up,
        also.gate_up_scale,
        inner_PI,
        largest_PC,
        num_tokens,
        tiles.num_shared,
        num_experts,
        per_token,
        num_inputs,
        width,
        also.down.shape[-1],
        column_tiles,
        tiles.block_t,
        tile.block_o,
        tile.block_i,
        warps=tile.warps,
        stages=tile.stages,
    )
    return inner_PI, largest_PC


def down(
    inner_PI: Tensor,
    largest_PC: Tensor,
    num_tokens: int,
    per_token: int,
    tiles: Tiles,
    tile: ExpertTile,
    routed: Fp8Mlp,
    shared: Fp8Mlp | None,
) -> Tensor:
    """Output rows bfloat16 [P, D], not yet weighted; only those of pairs here are set."""
    num_experts, num_outputs, width = routed.down.shape
    part_PD = inner_PI.new_empty(inner_PI.shape[0], num_outputs)
    also = shared or routed
    grid = (tiles_of(num_outputs, tile.block_o), tiles.num_shared + tiles.num_routed, 1)
    launch(
        down_kernel,
        grid,
        inner_PI,
        largest_PC,
        tiles.expert_N,
        tiles.pair_NB,
        routed.down,
        routed.down_scale,
        also.down,
        also.down_scale,
        part_PD,
        num_tokens,
        tiles.num_shared,
        num_experts,
        per_token,
        num_outputs,
        width,
        also.down.shape[-1],
        largest_PC.shape[1],
        power_of_two(largest_PC.shape[1]),
        tiles.block_t,
        tile.block_o,
        tile.block_i,
        warps=tile.warps,
        stages=tile.stages,
    )
    return part_PD
