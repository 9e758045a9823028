"""Attention of rows of one token over e4m3 pages whose values are moved in pairs.

Products take operands of 16 bits. ldmatrix, which brings them from shared memory to registers,
turns tiles of 16-bit numbers but not of bytes, so that values would be fetched byte by byte. Hence
a head is read as 16-bit numbers, each two neighbours of H. These are moved as one and then widened,
those at even places apart from those at odd ones: a score is the sum of two products, and the
mean comes in two halves. Letters as in `triton_attention_block.py`; W pairs, H / 2.
"""

import triton
import triton.language as tl

from glimt.kernels.triton_support import INTERPRETED

_WEIGHT_BITS = tl.constexpr(8.0)  # weights are 2^8 times as large: in float16's normal range


@triton.jit
def attend_pairs(
    q_MH, kv_ptr, scale_ptr, table_ptr, group, first, end, unit,
    GROUPS: tl.constexpr, HEAD_DIM: tl.constexpr, PAGE: tl.constexpr,
    BLOCK_L: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    """(mean [M, H], log2 of its weight [M]) of context tokens first … end - 1, float32.

    Queries are those of `to_operand`.
    """
    BLOCK_W: tl.constexpr = BLOCK_H // 2
    num_queries: tl.constexpr = q_MH.shape[0]
    q_even_MW, q_odd_MW = tl.split(tl.reshape(q_MH, (num_queries, BLOCK_W, 2)))
    even_MW = tl.zeros([num_queries, BLOCK_W], tl.float32)
    odd_MW = tl.zeros([num_queries, BLOCK_W], tl.float32)
    top_M = tl.full([num_queries], float("-inf"), tl.float32)
    sum_M = tl.zeros([num_queries], tl.float32)
    pair_ptr = kv_ptr.to(tl.pointer_type(tl.int16), bitcast=True) + group * PAGE * (HEAD_DIM // 2)
    scale_ptr += group * PAGE
    for start in range(first, end, BLOCK_L):
        k_LW, v_LW, k_scale_L, v_scale_L = _load(
            pair_ptr, scale_ptr, table_ptr, start, end, GROUPS, HEAD_DIM, PAGE, BLOCK_L, BLOCK_W
        )
        score_ML = _dot(q_even_MW, tl.trans(_widen(k_LW, False).to(q_even_MW.dtype)), None)
        score_ML = _dot(q_odd_MW, tl.trans(_widen(k_LW, True).to(q_even_MW.dtype)), score_ML)
        score_ML *= (k_scale_L * unit)[None]
        is_seen_L = start + tl.arange(0, BLOCK_L) < end
        score_ML = tl.where(is_seen_L[None], score_ML, float("-inf"))
        new_top_M = tl.maximum(top_M, tl.max(score_ML, 1))
        weight_ML = tl.exp2(score_ML - (new_top_M - _WEIGHT_BITS)[:, None])
        fade_M = tl.exp2(top_M - new_top_M)
        top_M = new_top_M
        sum_M = sum_M * fade_M + tl.sum(weight_ML, 1)
        weight_ML = (weight_ML * v_scale_L[None]).to(q_even_MW.dtype)
        v_even_LW, v_odd_LW = _widen(v_LW, False), _widen(v_LW, True)
        even_MW = _dot(weight_ML, v_even_LW.to(q_even_MW.dtype), even_MW * fade_M[:, None])
        odd_MW = _dot(weight_ML, v_odd_LW.to(q_even_MW.dtype), odd_MW * fade_M[:, None])
    mean_MH = tl.reshape(tl.join(even_MW, odd_MW), (num_queries, BLOCK_H))
    mean_MH /= tl.where(sum_M > 0.0, sum_M, 1.0)[:, None]
    return mean_MH, top_M - _WEIGHT_BITS + tl.log2(sum_M)


@triton.jit
def _load(
    pair_ptr, scale_ptr, table_ptr, start, end,
    GROUPS: tl.constexpr, HEAD_DIM: tl.constexpr, PAGE: tl.constexpr,
    BLOCK_L: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    """Keys and values [L, W] of tokens from `start` on and their scales; zeros from `end` on.

    What is not yet written may be NaN, so it is not read.
    """
    PAIRS: tl.constexpr = HEAD_DIM // 2
    to_values: tl.constexpr = GROUPS * PAGE  # in slots of one head
    l_L, w_W = tl.arange(0, BLOCK_L), tl.arange(0, BLOCK_W)
    is_there_L = start + l_L < end
    if PAGE % BLOCK_L == 0:  # one page, one load
        first_slot = tl.load(table_ptr + start // PAGE).to(tl.int64) * (2 * GROUPS * PAGE)
        slot_L = start % PAGE + l_L
        pair_ptr += first_slot * PAIRS
        scale_ptr += first_slot
    else:
        page_L = tl.load(table_ptr + (start + l_L) // PAGE, mask=is_there_L, other=0)
        slot_L = page_L.to(tl.int64) * (2 * GROUPS * PAGE) + (start + l_L) % PAGE
    at_LW = pair_ptr + slot_L[:, None] * PAIRS + w_W[None]
    there_LW = is_there_L[:, None] & (w_W < PAIRS)[None]
    k_LW = tl.load(at_LW, mask=there_LW, other=0)
    v_LW = tl.load(at_LW + to_values * PAIRS, mask=there_LW, other=0)
    k_scale_L = tl.load(scale_ptr + slot_L, mask=is_there_L, other=0.0)
    v_scale_L = tl.load(scale_ptr + to_values + slot_L, mask=is_there_L, other=0.0)
    return k_LW, v_LW, k_scale_L, v_scale_L


@triton.jit
def _dot(a, b, total):
    return tl.dot(a, b, total, input_precision="ieee")


@triton.jit
def _widen(pair, ODD: tl.constexpr):
    """The first or, if ODD, the second e4m3 of each pair, as float16.

    A register has two pairs: a permutation of its bytes brings those together that are widened by
    one instruction.
    """
    if INTERPRETED:
        byte = (pair >> (8 if ODD else 0)).to(tl.uint8)
        return byte.to(tl.float8e4nv, bitcast=True).to(tl.float32).to(tl.float16)
    elif ODD:
        return tl.inline_asm_elementwise(
            "{.reg .b32 sorted; .reg .b16 even, odd; prmt.b32 sorted, $1, 0, 0x3120;"
            " mov.b32 {even, odd}, sorted; cvt.rn.f16x2.e4m3x2 $0, odd;}",
            "=r,r", [pair], dtype=tl.float16, is_pure=True, pack=2,
        )  # fmt: skip
    else:
        return tl.inline_asm_elementwise(
            "{.reg .b32 sorted; .reg .b16 even, odd; prmt.b32 sorted, $1, 0, 0x3120;"
            " mov.b32 {even, odd}, sorted; cvt.rn.f16x2.e4m3x2 $0, even;}",
            "=r,r", [pair], dtype=tl.float16, is_pure=True, pack=2,
        )  # fmt: skip
