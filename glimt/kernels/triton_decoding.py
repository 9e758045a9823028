"""Attention of rows of one token: split along their contexts, then combined.

A program attends one row's queries of one key-value head to one part of the context; parts that
were not needed leave at once, and a second kernel weighs the others (Dao et al., "Flash-Decoding",
2023). X splits.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from glimt.kernels.triton_attention_block import LOG2_E, attend, mean, to_operand
from glimt.kernels.triton_pairs import attend_pairs
from glimt.kernels.triton_support import launch, power_of_two, tiles_of, to_bf16
from glimt.kernels.triton_turned import Turning, turn_own

MAX_SPLITS = 64
_BLOCK_M = 16  # the least number of rows of a product; heads are filled up with zeros
_PROGRAMS = 4 * 132  # wanted at least: four for each processor of an H200


class Tiles(NamedTuple):
    """Context tokens of a block, and at least of a part; how the compiler spreads and pipelines."""

    block_l: int
    least_tokens: int
    num_warps: int
    num_stages: int


CONFIGS = tuple(  # the first is used
    Tiles(block_l, least_tokens, num_warps, num_stages)
    for least_tokens in (128, 64, 256)
    for block_l, num_warps, num_stages in (
        (64, 4, 3),
        (64, 4, 2),
        (64, 2, 3),
        (64, 8, 3),
        (32, 1, 3),
        (32, 2, 3),
        (32, 4, 3),
        (128, 8, 3),
    )
    if block_l <= least_tokens
)
PAIR_CONFIGS = (  # likewise, of e4m3 pages in pairs
    Tiles(64, 128, 4, 5),  # two blocks on their way; with fewer stages one
    Tiles(64, 128, 4, 3),
    Tiles(64, 128, 2, 5),
    Tiles(32, 128, 2, 5),
)


def attend_singles(
    q_TNH: Tensor,
    kv_P2GSH: Tensor,
    page_table_RM: Tensor,
    query_starts_R1: Tensor,
    context_lens_R: Tensor,
    out_TNH: Tensor,
    scale_P2GS: Tensor | None,
    *,
    max_context_len: int,
    turning: Turning | None = None,
    largest_TN: Tensor | None = None,
    tiles: Tiles | None = None,
    splits: int | None = None,
) -> None:
    """Fill `out_TNH` for the rows of one token.

    With `turning` all rows are of one token, `q_TNH` has also keys and values, as in
    `reference_attention.turn_and_write_kv`, and that is done as well. `largest_TN`, float32, takes
    the largest magnitude of each head of the result.
    `splits`: parts of a context; None: as `num_splits` says.
    """
    num_rows, num_heads, head_dim = context_lens_R.shape[0], *out_TNH.shape[1:]
    in_pairs = scale_P2GS is not None and head_dim >= 32 and head_dim % 2 == 0
    tiles = tiles or (PAIR_CONFIGS if in_pairs else CONFIGS)[0]
    num_groups, page_size = kv_P2GSH.shape[2:4]
    sizes = (num_groups, num_heads // num_groups, head_dim, page_size)
    if num_rows == 0:
        return
    splits = splits or num_splits(num_rows * num_groups, max_context_len, tiles.least_tokens)
    weight_RNX = q_TNH.new_empty((num_rows, num_heads, splits), dtype=torch.float32)
    part_RNXH = weight_RNX.new_empty((*weight_RNX.shape, head_dim))
    launch(
        _split_kernel,
        (num_groups, num_rows, splits),
        *(q_TNH, kv_P2GSH, scale_P2GS, page_table_RM, query_starts_R1, context_lens_R, out_TNH),
        *(part_RNXH, weight_RNX),
        *(turning[:3] if turning else (None, None, None)),
        largest_TN,
        head_dim**-0.5 * LOG2_E,
        page_table_RM.stride(0),
        splits,
        q_TNH.stride(0),
        *sizes,
        max(_BLOCK_M, power_of_two(num_heads // num_groups)),
        *tiles[:2],
        max(16, power_of_two(head_dim)),
        *((turning.cos_TJ.shape[1], turning.interleaved) if turning else (0, False)),
        in_pairs,
        warps=tiles.num_warps,
        stages=tiles.num_stages,
    )
    if splits > 1:
        _combine(part_RNXH, weight_RNX, query_starts_R1, context_lens_R, out_TNH, largest_TN, tiles)


def num_splits(num_programs: int, max_context_len: int, least_tokens: int) -> int:
    """Parts of a context, where one part each makes `num_programs`.

    Enough for the device, not more than are worth it, and at least enough that a row of the
    longest context does not keep the others waiting.
    """
    wanted = max(_PROGRAMS // num_programs, max_context_len // 4096, 1)
    return max(1, min(wanted, tiles_of(max_context_len, least_tokens), MAX_SPLITS))


def _combine(
    part_RNXH: Tensor,
    weight_RNX: Tensor,
    query_starts_R1: Tensor,
    context_lens_R: Tensor,
    out_TNH: Tensor,
    largest_TN: Tensor | None,
    tiles: Tiles,
) -> None:
    num_rows, num_heads, num_splits, head_dim = part_RNXH.shape
    block_x = power_of_two(num_splits)
    launch(
        _combine_kernel,
        (num_heads, num_rows, 1),
        part_RNXH,
        weight_RNX,
        query_starts_R1,
        context_lens_R,
        out_TNH,
        largest_TN,
        num_splits,
        num_heads,
        head_dim,
        block_x,
        *tiles[:2],
        power_of_two(head_dim),
        warps=1 if block_x <= 8 else 4,
    )


@triton.jit
def _split_tokens(length, num_splits, BLOCK_L: tl.constexpr, LEAST: tl.constexpr):
    """Context tokens of each part but the last: whole blocks, as many as divide the row."""
    least: tl.constexpr = (LEAST + BLOCK_L - 1) // BLOCK_L
    return tl.maximum(tl.cdiv(tl.cdiv(length, BLOCK_L), num_splits), least) * BLOCK_L


@triton.jit(do_not_specialize=["table_stride", "num_splits"])
def _split_kernel(
    q_ptr, kv_ptr, scale_ptr, table_ptr, starts_ptr, lens_ptr, out_ptr, part_ptr, weight_ptr,
    cos_ptr, sin_ptr, slots_ptr, largest_ptr, unit, table_stride, num_splits,
    q_stride: tl.constexpr,
    GROUPS: tl.constexpr, QUERIES: tl.constexpr, HEAD_DIM: tl.constexpr, PAGE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_L: tl.constexpr, LEAST: tl.constexpr, BLOCK_H: tl.constexpr,
    PAIRS: tl.constexpr, INTERLEAVED: tl.constexpr, IN_PAIRS: tl.constexpr,
):  # fmt: skip
    """One part of the context of a row's one token, for the query heads of one key-value head."""
    group, row, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    token = tl.load(starts_ptr + row)
    length = tl.load(lens_ptr + row)
    size = _split_tokens(length, num_splits, BLOCK_L, LEAST)
    first = split * size
    if (tl.load(starts_ptr + row + 1) - token != 1) | ((split > 0) & (first >= length)):
        return
    m_M, h_H = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_H)
    head_M = group * QUERIES + m_M
    there_MH = (m_M < QUERIES)[:, None] & (h_H < HEAD_DIM)[None]
    place_MH = head_M[:, None] * HEAD_DIM + h_H[None]
    q_ptr += token.to(tl.int64) * q_stride
    end = tl.minimum(first + size, length)
    if cos_ptr is not None:
        at = token.to(tl.int64) * PAIRS
        q_MH = turn_own(
            q_ptr, head_M, there_MH, group, cos_ptr + at, sin_ptr + at, kv_ptr, scale_ptr,
            slots_ptr + token, end == length,
            GROUPS, QUERIES, HEAD_DIM, PAGE, BLOCK_H, PAIRS, INTERLEAVED,
        )  # fmt: skip
    else:
        q_MH = tl.load(q_ptr + place_MH, mask=there_MH, other=0.0)
    q_MH = to_operand(q_MH, kv_ptr)
    table_ptr += row.to(tl.int64) * table_stride
    if IN_PAIRS:
        mean_MH, weight_M = attend_pairs(
            q_MH, kv_ptr, scale_ptr, table_ptr, group, first, end, unit,
            GROUPS, HEAD_DIM, PAGE, BLOCK_L, BLOCK_H,
        )  # fmt: skip
    else:
        mean_MH, weight_M = _attend_part(
            q_MH, kv_ptr, scale_ptr, table_ptr, group, first, end, unit,
            GROUPS, HEAD_DIM, PAGE, BLOCK_L, BLOCK_H,
        )  # fmt: skip
    if size >= length:
        out_ptr += token.to(tl.int64) * (GROUPS * QUERIES * HEAD_DIM)
        tl.store(out_ptr + place_MH, mean_MH.to(out_ptr.dtype.element_ty), mask=there_MH)
        if largest_ptr is not None:
            largest_M = tl.max(tl.abs(to_bf16(mean_MH).to(tl.float32)), 1)
            tl.store(largest_ptr + token * (GROUPS * QUERIES) + head_M, largest_M, m_M < QUERIES)
    else:
        part_M = (row.to(tl.int64) * (GROUPS * QUERIES) + head_M) * num_splits + split
        tl.store(part_ptr + part_M[:, None] * HEAD_DIM + h_H[None], mean_MH, mask=there_MH)
        tl.store(weight_ptr + part_M, weight_M, mask=m_M < QUERIES)


@triton.jit
def _attend_part(
    q_MH, kv_ptr, scale_ptr, table_ptr, group, first, end, unit,
    GROUPS: tl.constexpr, HEAD_DIM: tl.constexpr, PAGE: tl.constexpr,
    BLOCK_L: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    """(mean [M, H], log2 of its weight [M]) of context tokens first … end - 1."""
    num_queries: tl.constexpr = q_MH.shape[0]
    limit_M = tl.full([num_queries], 0, tl.int32) + end
    acc_MH = tl.zeros([num_queries, BLOCK_H], tl.float32)
    top_M = tl.full([num_queries], float("-inf"), tl.float32)
    sum_M = tl.zeros([num_queries], tl.float32)
    kv_ptr += group * PAGE * HEAD_DIM
    if scale_ptr is not None:
        scale_ptr += group * PAGE
    for block in range(first, end, BLOCK_L):
        acc_MH, top_M, sum_M = attend(
            acc_MH, top_M, sum_M, q_MH, limit_M, kv_ptr, scale_ptr, table_ptr, block, end, unit,
            GROUPS, HEAD_DIM, PAGE, BLOCK_L, BLOCK_H, True,
        )  # fmt: skip
    return mean(acc_MH, sum_M, scale_ptr), top_M + tl.log2(sum_M)


@triton.jit(do_not_specialize=["num_splits"])
def _combine_kernel(
    part_ptr,
    weight_ptr,
    starts_ptr,
    lens_ptr,
    out_ptr,
    largest_ptr,
    num_splits,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_X: tl.constexpr,
    BLOCK_L: tl.constexpr,
    LEAST: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    """One head of a row: the mean of its parts' means, by the weights of the parts."""
    head, row = tl.program_id(0), tl.program_id(1)
    token = tl.load(starts_ptr + row)
    length = tl.load(lens_ptr + row)
    size = _split_tokens(length, num_splits, BLOCK_L, LEAST)
    if (tl.load(starts_ptr + row + 1) - token != 1) | (size >= length):
        return
    split_X, h_H = tl.arange(0, BLOCK_X), tl.arange(0, BLOCK_H)
    is_used_X = split_X < tl.cdiv(length, size)
    part_X = (row.to(tl.int64) * HEADS + head) * num_splits + split_X
    weight_X = tl.load(weight_ptr + part_X, mask=is_used_X, other=float("-inf"))
    weight_X = tl.exp2(weight_X - tl.max(weight_X, 0))
    there_XH = is_used_X[:, None] & (h_H < HEAD_DIM)[None]
    part_XH = tl.load(part_ptr + part_X[:, None] * HEAD_DIM + h_H[None], mask=there_XH, other=0.0)
    mean_H = tl.sum(part_XH * weight_X[:, None], 0) / tl.sum(weight_X, 0)
    place_H = (token.to(tl.int64) * HEADS + head) * HEAD_DIM + h_H
    tl.store(out_ptr + place_H, mean_H.to(out_ptr.dtype.element_ty), mask=h_H < HEAD_DIM)
    if largest_ptr is not None:
        largest = tl.max(tl.abs(to_bf16(mean_H).to(tl.float32)), 0)
        tl.store(largest_ptr + token * HEADS + head, largest)
