"""Which program does which pairs: the tiles of the experts' kernels.

A tile is an expert and up to `block_t` of its (token, expert) pairs; tiles of a shared expert,
which takes every token, come first. Pairs are grouped without sorting and without the host. Very
few tokens rarely share an expert, so there each pair is its own tile.

Letters as in `triton_experts.py`: P pairs, N tiles, B pairs of a tile.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from glimt.kernels.triton_support import launch, power_of_two, tiles_of

_MAX_UNGROUPED_TOKENS = 4
_SORT_BLOCK = 4096  # pairs at a time


@triton.jit(do_not_specialize=["num_pairs", "max_tiles"])
def plan_kernel(
    expert_ptr,
    tile_expert_ptr,
    tile_pair_ptr,
    num_pairs,
    num_experts: tl.constexpr,
    bins: tl.constexpr,
    block_p: tl.constexpr,
    block_t: tl.constexpr,
    max_tiles,
    block_n: tl.constexpr,
):
    """Program e lists the tiles of expert e; the one after the last marks the tiles left over."""
    expert = tl.program_id(0)
    pair = tl.arange(0, block_p)
    chosen = tl.load(expert_ptr + pair, mask=pair < num_pairs, other=-1).to(tl.int32)
    is_here = (chosen >= 0) & (chosen < num_experts)
    counts = tl.histogram(tl.where(is_here, chosen, num_experts), bins)
    number = tl.arange(0, bins)
    tiles = tl.where(number < num_experts, (counts + block_t - 1) // block_t, 0)
    first = tl.sum(tl.where(number < expert, tiles, 0), axis=0)
    tile = tl.arange(0, block_n)
    if expert == num_experts:
        tl.store(tile_expert_ptr + tile, -1, mask=(tile >= first) & (tile < max_tiles))
    else:
        count = tl.sum(tl.where(number == expert, counts, 0), axis=0)
        end = first + (count + block_t - 1) // block_t
        tl.store(tile_expert_ptr + tile, expert, mask=(tile >= first) & (tile < end))
        is_ours = is_here & (chosen == expert)
        rank = tl.cumsum(is_ours.to(tl.int32), axis=0) - 1
        tl.store(tile_pair_ptr + first * block_t + rank, pair, mask=is_ours)
        spare = first * block_t + count + tl.arange(0, block_t)
        tl.store(tile_pair_ptr + spare, -1, mask=spare < end * block_t)


@triton.jit
def locate(
    shared_tiles,
    tile_expert_ptr,
    tile_pair_ptr,
    num_tokens,
    num_experts: tl.constexpr,
    per_token: tl.constexpr,
    block_t: tl.constexpr,
):
    """(expert, pairs) of this program's tile: `num_experts` is the shared expert; -1 is none."""
    tile = tl.program_id(1)
    slot = tl.arange(0, block_t)
    if tile < shared_tiles:
        expert = tl.full([], num_experts, tl.int64)
        token = tile * block_t + slot
        pair = tl.where(token < num_tokens, num_tokens * per_token + token, -1)
    else:
        index = tile - shared_tiles
        expert = tl.load(tile_expert_ptr + index).to(tl.int64)
        expert = tl.where(expert < num_experts, expert, -1)
        if tile_pair_ptr is None:
            pair = tl.where(slot == 0, index, -1)
        else:
            pair = tl.load(tile_pair_ptr + index * block_t + slot)
    return expert, pair


@triton.jit(do_not_specialize=["num_pairs"])
def sort_kernel(
    expert_ptr,
    token_ptr,
    row_ptr,
    end_ptr,
    num_pairs,
    num_experts: tl.constexpr,
    per_token: tl.constexpr,
    block: tl.constexpr,
):
    """Program e places the pairs of expert e; the one after the last those of experts elsewhere."""
    expert = tl.program_id(0)
    before = tl.zeros([block], tl.int32)
    start = 0
    while start < num_pairs:
        chosen = _chosen(expert_ptr, start, num_pairs, num_experts, block)
        before += (chosen < expert).to(tl.int32)
        start += block
    row = tl.sum(before, axis=0)
    start = 0
    while start < num_pairs:
        is_ours = _chosen(expert_ptr, start, num_pairs, num_experts, block) == expert
        pair = start + tl.arange(0, block)
        place = row + tl.cumsum(is_ours.to(tl.int32), axis=0) - 1
        tl.store(token_ptr + place, (pair // per_token).to(tl.int64), mask=is_ours)
        tl.store(row_ptr + pair, place.to(tl.int64), mask=is_ours)
        row += tl.sum(is_ours.to(tl.int32), axis=0)
        start += block
    tl.store(end_ptr + expert, row, mask=expert < num_experts)


@triton.jit
def _chosen(expert_ptr, start, num_pairs, num_experts: tl.constexpr, block: tl.constexpr):
    """The experts of a block of pairs; `num_experts` if elsewhere, more if there is no pair."""
    pair = start + tl.arange(0, block)
    chosen = tl.load(expert_ptr + pair, mask=pair < num_pairs, other=num_experts).to(tl.int32)
    chosen = tl.where((chosen < 0) | (chosen > num_experts), num_experts, chosen)
    return tl.where(pair < num_pairs, chosen, num_experts + 1)


class Tiles(NamedTuple):
    """What of the pairs each tile takes."""

    expert_N: Tensor
    pair_NB: Tensor | None  # -1 is no pair; None: tile n has only pair n
    block_t: int
    num_routed: int
    num_shared: int  # tiles of the shared expert


def plan(experts_TK: Tensor, num_experts: int, has_shared: bool) -> Tiles:
    """Cut the pairs into tiles; their number depends on the shapes alone, so some are empty."""
    num_tokens, per_token = experts_TK.shape
    num_pairs = num_tokens * per_token
    if num_tokens <= _MAX_UNGROUPED_TOKENS:
        return Tiles(experts_TK, None, 16, num_pairs, int(has_shared))
    # Small tiles leave room for more programs at once; an expert seldom has twice its share.
    block_t = 16 if num_pairs <= 10 * num_experts else 32
    max_tiles = min(num_experts, num_pairs) + num_pairs // block_t
    expert_N = experts_TK.new_empty(max_tiles, dtype=torch.int32)
    pair_NB = experts_TK.new_empty((max_tiles, block_t), dtype=torch.int32)
    launch(
        plan_kernel,
        (num_experts + 1, 1, 1),
        experts_TK,
        expert_N,
        pair_NB,
        num_pairs,
        num_experts,
        power_of_two(num_experts + 1),
        power_of_two(num_pairs),
        block_t,
        max_tiles,
        power_of_two(max_tiles),
        warps=4,
    )
    shared = tiles_of(num_tokens, block_t) if has_shared else 0
    return Tiles(expert_N, pair_NB, block_t, max_tiles, shared)


def sort_by_expert(experts_TK: Tensor, num_experts: int) -> tuple[Tensor, Tensor, Tensor]:
    """See `experts.sort_by_expert`; stable, without the host, in one launch."""
    num_tokens, per_token = experts_TK.shape
    token_M = experts_TK.new_empty(num_tokens * per_token)
    row_P = torch.empty_like(token_M)
    ends_E = experts_TK.new_empty(num_experts, dtype=torch.int32)
    launch(
        sort_kernel,
        (num_experts + 1, 1, 1),
        experts_TK,
        token_M,
        row_P,
        ends_E,
        num_tokens * per_token,
        num_experts,
        per_token,
        _SORT_BLOCK,
        warps=8,
    )
    return token_M, row_P, ends_E
