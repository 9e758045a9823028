"""Rotary embedding and the write to the KV cache as one kernel: each head is read once.

Twins of `reference_attention.turn_and_write_kv` and `reference.rope`. Letters as there; J rotary
pairs of a head.
"""

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from glimt.kernels.triton_support import (
    launch,
    power_of_two,
    row_scale,
    tiles_of,
    to_bf16,
    to_fp8,
)


class Tiles(NamedTuple):
    """Heads of a program, and its warps."""

    block_n: int
    num_warps: int


CONFIGS = (Tiles(16, 2), Tiles(16, 4), Tiles(8, 2), Tiles(8, 1), Tiles(32, 4))  # the first is used


def turn_and_write_kv(
    heads_TNH: Tensor,
    cos_TJ: Tensor,
    sin_TJ: Tensor,
    kv_P2GSH: Tensor,
    slots_T: Tensor,
    scale_P2GS: Tensor | None = None,
    *,
    interleaved: bool,
    tiles: Tiles = CONFIGS[0],
) -> Tensor:
    """See `reference_attention.turn_and_write_kv`.

    Raises ValueError unless heads, angles and cache are contiguous, as layers and runner make them.
    """
    if not all(t.is_contiguous() for t in (heads_TNH, cos_TJ, sin_TJ, kv_P2GSH)):
        raise ValueError("heads, angles and cache must be contiguous in memory")
    num_groups, page_size = kv_P2GSH.shape[2:4]
    cache = (slots_T, kv_P2GSH, scale_P2GS)
    return _turn(heads_TNH, cos_TJ, sin_TJ, cache, num_groups, page_size, interleaved, tiles)


def rope(x_TNH: Tensor, cos_TJ: Tensor, sin_TJ: Tensor, *, interleaved: bool) -> Tensor:
    """See `reference.rope`. Raises ValueError unless each token's heads are contiguous."""
    if x_TNH.stride()[1:] != (x_TNH.shape[2], 1):
        raise ValueError("the heads of a token must be contiguous in memory")
    return _turn(x_TNH, cos_TJ, sin_TJ, (None, None, None), 0, 1, interleaved, CONFIGS[0])


def _turn(
    heads_TNH: Tensor,
    cos_TJ: Tensor,
    sin_TJ: Tensor,
    cache: tuple[Tensor | None, Tensor | None, Tensor | None],
    num_groups: int,
    page_size: int,
    interleaved: bool,
    tiles: Tiles,
) -> Tensor:
    """`turn_and_write_kv` to `cache`: slots, pages, scales; with no groups, only turn."""
    num_tokens, num_heads, head_dim = heads_TNH.shape
    num_pairs, num_queries = cos_TJ.shape[1], num_heads - 2 * num_groups
    q_TNH = heads_TNH.new_empty((num_tokens, num_queries, head_dim))
    if num_tokens == 0:
        return q_TNH
    launch(
        _turn_and_write_kernel,
        (num_tokens, tiles_of(num_heads, tiles.block_n), 1),
        heads_TNH,
        cos_TJ,
        sin_TJ,
        q_TNH,
        *cache,
        heads_TNH.stride(0),
        num_queries,
        num_groups,
        head_dim,
        num_pairs,
        page_size,
        interleaved,
        tiles.block_n,
        power_of_two(num_pairs),
        power_of_two(max(head_dim - 2 * num_pairs, 1)),
        warps=tiles.num_warps,
    )
    return q_TNH


@triton.jit
def _turn_and_write_kernel(
    heads_ptr,
    cos_ptr,
    sin_ptr,
    q_ptr,
    slots_ptr,
    kv_ptr,
    scale_ptr,
    token_stride: tl.constexpr,
    QUERIES: tl.constexpr,
    GROUPS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PAIRS: tl.constexpr,
    PAGE: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_J: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """BLOCK_N heads of one token; query, key and value heads follow each other."""
    token = tl.program_id(0).to(tl.int64)
    head_N = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    pair_J = tl.arange(0, BLOCK_J)
    first_J = pair_J * 2 if INTERLEAVED else pair_J
    second_J = first_J + (1 if INTERLEAVED else PAIRS)
    rest_C = 2 * PAIRS + tl.arange(0, BLOCK_C)
    heads_ptr += token * token_stride
    there_N, is_pair_J = head_N < QUERIES + 2 * GROUPS, pair_J < PAIRS
    a_NJ = _load(heads_ptr, head_N, first_J, there_N, is_pair_J, HEAD_DIM)
    b_NJ = _load(heads_ptr, head_N, second_J, there_N, is_pair_J, HEAD_DIM)
    rest_NC = _load(heads_ptr, head_N, rest_C, there_N, rest_C < HEAD_DIM, HEAD_DIM)
    cos_J = tl.load(cos_ptr + token * PAIRS + pair_J, mask=is_pair_J, other=0.0)
    sin_J = tl.load(sin_ptr + token * PAIRS + pair_J, mask=is_pair_J, other=0.0)
    is_turned_N1 = (head_N < QUERIES + GROUPS)[:, None]
    turned_a_NJ = tl.where(is_turned_N1, a_NJ * cos_J[None] - b_NJ * sin_J[None], a_NJ)
    turned_b_NJ = tl.where(is_turned_N1, b_NJ * cos_J[None] + a_NJ * sin_J[None], b_NJ)
    if q_ptr.dtype.element_ty == tl.bfloat16:  # the cache's scale is that of rounded values
        turned_a_NJ = to_bf16(turned_a_NJ).to(tl.float32)
        turned_b_NJ = to_bf16(turned_b_NJ).to(tl.float32)
    q_ptr += token * (QUERIES * HEAD_DIM)
    is_query_N = head_N < QUERIES
    _store(q_ptr, turned_a_NJ, head_N * HEAD_DIM, first_J, is_query_N, is_pair_J)
    _store(q_ptr, turned_b_NJ, head_N * HEAD_DIM, second_J, is_query_N, is_pair_J)
    _store(q_ptr, rest_NC, head_N * HEAD_DIM, rest_C, is_query_N, rest_C < HEAD_DIM)
    if GROUPS > 0:
        slot = tl.load(slots_ptr + token)
        # A page holds all heads' slots of keys, then of values; head QUERIES is the first of them.
        place_N = (slot // PAGE * (2 * GROUPS) + head_N - QUERIES) * PAGE + slot % PAGE
        is_kv_N = there_N & (head_N >= QUERIES)
        if scale_ptr is not None:
            largest_N = tl.max(tl.maximum(tl.abs(turned_a_NJ), tl.abs(turned_b_NJ)), 1)
            scale_N = row_scale(tl.maximum(largest_N, tl.max(tl.abs(rest_NC), 1)))
            tl.store(scale_ptr + place_N, scale_N, mask=is_kv_N)
            inverse_N1 = tl.div_rn(1.0, scale_N)[:, None]
            turned_a_NJ, turned_b_NJ = turned_a_NJ * inverse_N1, turned_b_NJ * inverse_N1
            rest_NC *= inverse_N1
        _store(kv_ptr, turned_a_NJ, place_N * HEAD_DIM, first_J, is_kv_N, is_pair_J)
        _store(kv_ptr, turned_b_NJ, place_N * HEAD_DIM, second_J, is_kv_N, is_pair_J)
        _store(kv_ptr, rest_NC, place_N * HEAD_DIM, rest_C, is_kv_N, rest_C < HEAD_DIM)


@triton.jit
def _load(ptr, head_N, column_C, is_head_N, is_column_C, HEAD_DIM: tl.constexpr):
    """float32 [N, C]: some dims of some heads of a token, zeros outside."""
    place_NC = head_N[:, None] * HEAD_DIM + column_C[None]
    mask_NC = is_head_N[:, None] & is_column_C[None]
    return tl.load(ptr + place_NC, mask=mask_NC, other=0.0).to(tl.float32)


@triton.jit
def _store(ptr, x_NC, place_N, column_C, is_head_N, is_column_C):
    """Some dims of heads that begin at `place_N`, rounded to the type of what `ptr` points to."""
    place_NC = place_N[:, None] + column_C[None]
    mask_NC = is_head_N[:, None] & is_column_C[None]
    if ptr.dtype.element_ty == tl.float8e4nv:
        tl.store(ptr + place_NC, to_fp8(x_NC), mask=mask_NC)
    elif ptr.dtype.element_ty == tl.bfloat16:
        tl.store(ptr + place_NC, to_bf16(x_NC), mask=mask_NC)
    else:
        tl.store(ptr + place_NC, x_NC.to(ptr.dtype.element_ty), mask=mask_NC)
