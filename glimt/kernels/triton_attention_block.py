"""What the attention kernels do over and over: attend a block of context.

Letters as in `reference_attention.py`; M queries of a program (token and head in one), L context
tokens of a block. Softmax is to the base of two, in float32.
"""

from typing import NamedTuple

import triton
import triton.language as tl

LOG2_E = 1.4426950408889634
_WEIGHT_UNIT = tl.constexpr(256.0)  # keeps weight · scale in float16's normal range


class Tiles(NamedTuple):
    """Queries and context tokens of a block, and how the compiler is to spread and pipeline it."""

    block_m: int
    block_l: int
    num_warps: int
    num_stages: int


@triton.jit
def to_operand(q_MH, kv_ptr):
    """Queries in the type that products are taken in.

    e4m3 widens to float16 in one instruction, to bfloat16 in three, one of them slow. Queries of
    65504 and more would not fit, but no softmax of theirs would be more than one number.
    """
    if kv_ptr.dtype.element_ty == tl.float8e4nv and q_MH.dtype == tl.bfloat16:
        return q_MH.to(tl.float32).to(tl.float16)
    else:
        return q_MH


@triton.jit
def mean(acc_MH, sum_M, scale_ptr):
    """What is left to do after the last block: float32 [M, H], zeros where nothing was seen."""
    if scale_ptr is not None:
        sum_M *= _WEIGHT_UNIT
    return acc_MH / tl.where(sum_M > 0.0, sum_M, 1.0)[:, None]


@triton.jit
def absorb(
    acc_MH, top_M, sum_M, q_MH, k_LH, v_LH, is_seen_ML, unit, scale_at_L, to_values, is_there_L
):  # fmt: skip
    """(acc, top, sum) after more keys and values.

    `mean` of acc and sum is that of the values so far, `top` the largest score · `unit`. None for
    `is_seen_ML` means all. `scale_at_L` points to the keys' scales, `to_values` before the values'.
    """
    score_ML = tl.dot(q_MH, tl.trans(k_LH.to(q_MH.dtype)), input_precision="ieee")
    if scale_at_L is not None:
        score_ML *= tl.load(scale_at_L, mask=is_there_L, other=0.0)[None] * unit
    if is_seen_ML is not None:
        score_ML = tl.where(is_seen_ML, score_ML, float("-inf"))
    if scale_at_L is not None:
        new_top_M = tl.maximum(top_M, tl.max(score_ML, 1))
        weight_ML = tl.exp2(score_ML - new_top_M[:, None])
    else:  # product and difference are one instruction
        new_top_M = tl.maximum(top_M, tl.max(score_ML, 1) * unit)
        weight_ML = tl.exp2(score_ML * unit - new_top_M[:, None])
    fade_M = tl.exp2(top_M - new_top_M)
    sum_M = sum_M * fade_M + tl.sum(weight_ML, 1)
    if scale_at_L is not None:
        scale_L = tl.load(scale_at_L + to_values, mask=is_there_L, other=0.0)
        weight_ML *= (scale_L * _WEIGHT_UNIT)[None]
    acc_MH = acc_MH * fade_M[:, None]
    acc_MH = tl.dot(weight_ML.to(q_MH.dtype), v_LH.to(q_MH.dtype), acc_MH, input_precision="ieee")
    return acc_MH, new_top_M, sum_M


@triton.jit
def attend(
    acc_MH,
    top_M,
    sum_M,
    q_MH,
    limit_M,
    kv_ptr,
    scale_ptr,
    table_ptr,
    first,
    end,
    unit,
    GROUPS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PAGE: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_H: tl.constexpr,
    MASKED: tl.constexpr,
):
    """`absorb` context tokens first … first + BLOCK_L - 1 of one key-value head's pages.

    Query m sees tokens before `limit_M[m]`; none are read from `end` on. Without MASKED it sees
    all.
    """
    l_L, h_H = first + tl.arange(0, BLOCK_L), tl.arange(0, BLOCK_H)
    if PAGE % BLOCK_L == 0:  # one page, one load
        page = tl.load(table_ptr + first // PAGE)
    else:
        page = tl.load(table_ptr + l_L // PAGE, mask=l_L < end, other=0)
    # Slots of all heads: a page holds 2 · GROUPS heads' slots, its values come after its keys.
    slot_L = page.to(tl.int64) * (2 * GROUPS * PAGE) + l_L % PAGE
    place_LH = slot_L[:, None] * HEAD_DIM + h_H[None]
    to_values: tl.constexpr = GROUPS * PAGE
    if MASKED or BLOCK_H != HEAD_DIM:  # what is not yet written may be NaN
        there_LH = (l_L < end)[:, None] & (h_H < HEAD_DIM)[None]
        k_LH = tl.load(kv_ptr + place_LH, mask=there_LH, other=0.0)
        v_LH = tl.load(kv_ptr + place_LH + to_values * HEAD_DIM, mask=there_LH, other=0.0)
    else:
        k_LH = tl.load(kv_ptr + place_LH)
        v_LH = tl.load(kv_ptr + place_LH + to_values * HEAD_DIM)
    scale_at_L, is_seen_ML = None, None
    if scale_ptr is not None:
        scale_at_L = scale_ptr + slot_L
    if MASKED:
        is_seen_ML = l_L[None] < limit_M[:, None]
    return absorb(
        acc_MH, top_M, sum_M, q_MH, k_LH, v_LH, is_seen_ML, unit, scale_at_L, to_values, l_L < end
    )  # fmt: skip


@triton.jit
def row_of_block(block, starts_ptr, num_rows, QUERIES: tl.constexpr, BLOCK_M: tl.constexpr):
    """(row, its first block): the last row whose blocks begin at or before `block`.

    Row r's blocks begin at starts[r] · QUERIES // BLOCK_M + r, which leaves room for all of them.
    """
    low, high = num_rows * 0, num_rows
    while high - low > 1:
        middle = (low + high) // 2
        is_before = tl.load(starts_ptr + middle) * QUERIES // BLOCK_M + middle <= block
        low, high = tl.where(is_before, middle, low), tl.where(is_before, high, middle)
    return low, tl.load(starts_ptr + low) * QUERIES // BLOCK_M + low
