"""What lets a decode step's attention turn its heads itself and write its own keys and values.

A row of one token needs its new key and value only where its own last part of the context is
attended, so that program writes them first, and no launch of `triton_rope` is needed. Letters as in
`reference_attention.py`; M heads of a program, J rotary pairs.
"""

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from glimt.kernels.triton_support import row_scale, to_bf16, to_fp8


class Turning(NamedTuple):
    """Angles and places of the step's new tokens, whose heads have not been turned yet."""

    cos_TJ: Tensor
    sin_TJ: Tensor
    slots_T: Tensor
    interleaved: bool


@triton.jit
def turn_own(
    heads_ptr, head_M, there_MH, group, cos_ptr, sin_ptr, kv_ptr, scale_ptr, slot_ptr, is_last,
    GROUPS: tl.constexpr, QUERIES: tl.constexpr, HEAD_DIM: tl.constexpr, PAGE: tl.constexpr,
    BLOCK_H: tl.constexpr, PAIRS: tl.constexpr, INTERLEAVED: tl.constexpr,
):  # fmt: skip
    """A token's queries of one key-value head, turned [M, H]. Pointers are the token's.

    Who attends the last part of the context stores the token's key and value of that head first.
    """
    if is_last:
        _write_new(
            heads_ptr, GROUPS * QUERIES + group, GROUPS * (QUERIES + 1) + group, cos_ptr, sin_ptr,
            kv_ptr, scale_ptr, tl.load(slot_ptr), group,
            GROUPS, HEAD_DIM, PAGE, BLOCK_H, PAIRS, INTERLEAVED,
        )  # fmt: skip
    h_H = tl.arange(0, BLOCK_H)
    q_MH = _turned(heads_ptr, head_M, there_MH, h_H, cos_ptr, sin_ptr, HEAD_DIM, PAIRS, INTERLEAVED)
    return q_MH.to(heads_ptr.dtype.element_ty)


@triton.jit
def _turned(
    heads_ptr, head_M, there_MH, h_H, cos_ptr, sin_ptr,
    HEAD_DIM: tl.constexpr, PAIRS: tl.constexpr, INTERLEAVED: tl.constexpr,
):  # fmt: skip
    """Some heads of one token, turned by `reference.rope`, in their type, as float32 [M, H].

    `cos_ptr` and `sin_ptr` point to the token's angles.
    """
    is_turned_H = h_H < 2 * PAIRS
    if INTERLEAVED:
        pair_H = h_H // 2
        is_first_H = h_H % 2 == 0
        partner_H = tl.where(is_first_H, h_H + 1, h_H - 1)
    else:
        is_first_H = h_H < PAIRS
        pair_H = tl.where(is_first_H, h_H, h_H - PAIRS)
        partner_H = tl.where(is_first_H, h_H + PAIRS, h_H - PAIRS)
    partner_H = tl.where(is_turned_H, partner_H, h_H)
    start_M1 = head_M[:, None] * HEAD_DIM
    x_MH = tl.load(heads_ptr + start_M1 + h_H[None], mask=there_MH, other=0.0)
    partner_MH = tl.load(heads_ptr + start_M1 + partner_H[None], mask=there_MH, other=0.0)
    cos_H = tl.load(cos_ptr + pair_H, mask=is_turned_H, other=1.0)
    sin_H = tl.load(sin_ptr + pair_H, mask=is_turned_H, other=0.0)
    sin_H = tl.where(is_first_H, -sin_H, sin_H)
    turned_MH = x_MH.to(tl.float32) * cos_H[None] + partner_MH.to(tl.float32) * sin_H[None]
    if heads_ptr.dtype.element_ty == tl.bfloat16:
        turned_MH = to_bf16(turned_MH).to(tl.float32)
    return turned_MH


@triton.jit
def _write_new(
    heads_ptr, key_head, value_head, cos_ptr, sin_ptr, kv_ptr, scale_ptr, slot, group,
    GROUPS: tl.constexpr, HEAD_DIM: tl.constexpr, PAGE: tl.constexpr, BLOCK_H: tl.constexpr,
    PAIRS: tl.constexpr, INTERLEAVED: tl.constexpr,
):  # fmt: skip
    """Store one key-value head of a token's key, turned, and value; seen by this program's loads
    from then on."""
    h_H = tl.arange(0, BLOCK_H)
    there_1H = (h_H < HEAD_DIM)[None]
    only_1 = tl.arange(0, 1)
    key_1H = _turned(
        heads_ptr, key_head + only_1, there_1H, h_H, cos_ptr, sin_ptr, HEAD_DIM, PAIRS, INTERLEAVED
    )
    value_at = heads_ptr + value_head * HEAD_DIM + h_H[None]
    value_1H = tl.load(value_at, mask=there_1H, other=0.0).to(tl.float32)
    place = (slot // PAGE * (2 * GROUPS) + group) * PAGE + slot % PAGE
    _store(kv_ptr, scale_ptr, place, key_1H, h_H, there_1H, HEAD_DIM)
    _store(kv_ptr, scale_ptr, place + GROUPS * PAGE, value_1H, h_H, there_1H, HEAD_DIM)
    tl.debug_barrier()


@triton.jit
def _store(kv_ptr, scale_ptr, place, x_1H, h_H, there_1H, HEAD_DIM: tl.constexpr):
    """One vector of the cache, by its scale if there are scales."""
    if scale_ptr is not None:
        scale = row_scale(tl.max(tl.max(tl.abs(x_1H), 1), 0))
        tl.store(scale_ptr + place, scale)
        x_1H *= tl.div_rn(1.0, scale)
    at_1H = kv_ptr + place * HEAD_DIM + h_H[None]
    if kv_ptr.dtype.element_ty == tl.float8e4nv:
        tl.store(at_1H, to_fp8(x_1H), mask=there_1H)
    elif kv_ptr.dtype.element_ty == tl.bfloat16:
        tl.store(at_1H, to_bf16(x_1H), mask=there_1H)
    else:
        tl.store(at_1H, x_1H.to(kv_ptr.dtype.element_ty), mask=there_1H)
