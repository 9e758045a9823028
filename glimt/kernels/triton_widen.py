"""e4m3 pages as pages of the type that attention computes in, made once for all queries of a step.

A block of queries that widens what it reads has to bring it to shared memory again for the tensor
cores, and every block of a chunk does so for all it sees. Doing it once costs one pass over the
pages, and leaves to attention what it does with pages of that type. P pages of the cache, W of
those made here; other letters as in `reference_attention.py`.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from glimt.kernels.triton_support import launch, power_of_two, to_bf16

_BLOCK_R = tl.constexpr(128)  # rows that are looked at together


def widened(
    kv_P2GSH: Tensor,
    scale_P2GS: Tensor,
    page_table_RM: Tensor,
    query_starts_R1: Tensor,
    context_lens_R: Tensor,
    *,
    num_pages: int,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """(pages [W, 2, G, S, H] of `dtype`, page table [R, M]) for the rows of two tokens and more.

    Values are value · scale, rounded. `num_pages`, at least as many as these rows have together,
    is W; the table's entries for other rows mean nothing.
    """
    num_groups, page_size, head_dim = kv_P2GSH.shape[2:]
    kv_W2GSH = kv_P2GSH.new_empty((num_pages, *kv_P2GSH.shape[1:]), dtype=dtype)
    table_RM = torch.empty_like(page_table_RM, memory_format=torch.contiguous_format)
    launch(
        _widen_kernel,
        (2 * num_groups, num_pages, 1),
        kv_P2GSH,
        scale_P2GS,
        page_table_RM,
        query_starts_R1,
        context_lens_R,
        kv_W2GSH,
        table_RM,
        context_lens_R.shape[0],
        page_table_RM.stride(0),
        table_RM.stride(0),
        num_groups,
        page_size,
        head_dim,
        power_of_two(page_size),
        power_of_two(head_dim),
    )
    return kv_W2GSH, table_RM


@triton.jit(do_not_specialize=["num_rows", "table_stride", "own_stride"])
def _widen_kernel(
    kv_ptr, scale_ptr, table_ptr, starts_ptr, lens_ptr, wide_ptr, own_table_ptr, num_rows,
    table_stride, own_stride,
    GROUPS: tl.constexpr, PAGE: tl.constexpr, HEAD_DIM: tl.constexpr,
    BLOCK_S: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    """Keys or values of one head in one page."""
    part, own = tl.program_id(0), tl.program_id(1)
    row, place = _row_of_page(own, starts_ptr, lens_ptr, num_rows, PAGE)
    if row < 0:
        return
    page = tl.load(table_ptr + row.to(tl.int64) * table_stride + place)
    if part == 0:
        tl.store(own_table_ptr + row.to(tl.int64) * own_stride + place, own)
    s_S, h_H = tl.arange(0, BLOCK_S), tl.arange(0, BLOCK_H)
    there_SH = (s_S < PAGE)[:, None] & (h_H < HEAD_DIM)[None]
    at_SH = s_S[:, None] * HEAD_DIM + h_H[None]
    first_slot = (page.to(tl.int64) * (2 * GROUPS) + part) * PAGE
    x_SH = tl.load(kv_ptr + first_slot * HEAD_DIM + at_SH, mask=there_SH, other=0.0)
    scale_S = tl.load(scale_ptr + first_slot + s_S, mask=s_S < PAGE, other=0.0)
    x_SH = x_SH.to(tl.float32) * scale_S[:, None]
    if wide_ptr.dtype.element_ty == tl.bfloat16:
        x_SH = to_bf16(x_SH)
    wide_ptr += (own.to(tl.int64) * (2 * GROUPS) + part) * (PAGE * HEAD_DIM)
    tl.store(wide_ptr + at_SH, x_SH.to(wide_ptr.dtype.element_ty), mask=there_SH)


@triton.jit
def _row_of_page(own, starts_ptr, lens_ptr, num_rows, PAGE: tl.constexpr):
    """(row, which of its pages) the own page is for; rows of one token have none. -1 for none."""
    row, place, before = own * 0 - 1, own * 0, own * 0
    for first in range(0, num_rows, _BLOCK_R):
        r_R = first + tl.arange(0, _BLOCK_R)
        is_row_R = r_R < num_rows
        start_R = tl.load(starts_ptr + r_R, mask=is_row_R, other=0)
        end_R = tl.load(starts_ptr + r_R + 1, mask=is_row_R, other=0)
        length_R = tl.load(lens_ptr + r_R, mask=is_row_R, other=0)
        pages_R = tl.where(end_R - start_R > 1, (length_R + PAGE - 1) // PAGE, 0)
        last_R = before + tl.cumsum(pages_R, 0)
        is_own_R = (own >= last_R - pages_R) & (own < last_R)
        row = tl.maximum(row, tl.max(tl.where(is_own_R, r_R, -1), 0))
        place = tl.maximum(place, tl.max(tl.where(is_own_R, own - last_R + pages_R, 0), 0))
        before += tl.sum(pages_R, 0)
    return row, place
