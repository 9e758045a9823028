"""Attention of rows of several tokens, in blocks of queries (Dao, "FlashAttention-2", 2023)."""

import triton
import triton.language as tl
from torch import Tensor

from glimt.kernels.triton_attention_block import (
    LOG2_E,
    Tiles,
    attend,
    mean,
    row_of_block,
    to_operand,
)
from glimt.kernels.triton_support import launch, power_of_two

CONFIGS = (  # the first is used
    Tiles(64, 64, 4, 2),
    Tiles(64, 64, 4, 3),
    Tiles(64, 32, 4, 4),
    Tiles(128, 64, 8, 2),
    Tiles(128, 64, 8, 3),
    Tiles(128, 128, 8, 2),
)


def attend_chunks(
    q_TNH: Tensor,
    kv_P2GSH: Tensor,
    page_table_RM: Tensor,
    query_starts_R1: Tensor,
    context_lens_R: Tensor,
    out_TNH: Tensor,
    scale_P2GS: Tensor | None,
    *,
    tiles: Tiles = CONFIGS[0],
) -> None:
    """Fill `out_TNH` for the rows of two tokens and more."""
    num_tokens, num_heads, head_dim = q_TNH.shape
    num_groups, page_size = kv_P2GSH.shape[2:4]
    num_rows = context_lens_R.shape[0]
    num_blocks = num_tokens * (num_heads // num_groups) // tiles.block_m + num_rows
    launch(
        _chunk_kernel,
        (num_blocks, num_groups, 1),
        q_TNH,
        kv_P2GSH,
        scale_P2GS,
        page_table_RM,
        query_starts_R1,
        context_lens_R,
        out_TNH,
        head_dim**-0.5 * LOG2_E,
        page_table_RM.stride(0),
        num_rows,
        q_TNH.stride(0),
        num_groups,
        num_heads // num_groups,
        head_dim,
        page_size,
        tiles.block_m,
        tiles.block_l,
        max(16, power_of_two(head_dim)),
        warps=tiles.num_warps,
        stages=tiles.num_stages,
    )


@triton.jit(do_not_specialize=["table_stride", "num_rows"])
def _chunk_kernel(
    q_ptr, kv_ptr, scale_ptr, table_ptr, starts_ptr, lens_ptr, out_ptr, unit, table_stride,
    num_rows, q_stride: tl.constexpr,
    GROUPS: tl.constexpr, QUERIES: tl.constexpr, HEAD_DIM: tl.constexpr, PAGE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    """A block of a row's (token, query head) pairs of one key-value head over all they see."""
    block = tl.num_programs(0) - 1 - tl.program_id(0)  # later blocks see more: start with them
    group = tl.program_id(1)
    row, first_block = row_of_block(block, starts_ptr, num_rows, QUERIES, BLOCK_M)
    start = tl.load(starts_ptr + row)
    num_tokens = tl.load(starts_ptr + row + 1) - start
    m_M, h_H = (block - first_block) * BLOCK_M + tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_H)
    first = (block - first_block) * BLOCK_M // QUERIES
    if (num_tokens < 2) | (first >= num_tokens):
        return
    token_M, head_M = m_M // QUERIES, group * QUERIES + m_M % QUERIES
    there_MH = (token_M < num_tokens)[:, None] & (h_H < HEAD_DIM)[None]
    token_M1 = (start + token_M).to(tl.int64)[:, None]
    place_MH = head_M[:, None] * HEAD_DIM + h_H[None]
    q_MH = tl.load(q_ptr + token_M1 * q_stride + place_MH, mask=there_MH, other=0.0)
    q_MH = to_operand(q_MH, kv_ptr)
    before = tl.load(lens_ptr + row) - num_tokens
    limit_M = before + token_M + 1
    last = tl.minimum(((block - first_block) * BLOCK_M + BLOCK_M - 1) // QUERIES, num_tokens - 1)
    end = before + last + 1
    seen_by_all = (before + first + 1) // BLOCK_L * BLOCK_L
    acc_MH = tl.zeros([BLOCK_M, BLOCK_H], tl.float32)
    top_M, sum_M = tl.full([BLOCK_M], float("-inf"), tl.float32), tl.zeros([BLOCK_M], tl.float32)
    kv_ptr += group * PAGE * HEAD_DIM
    if scale_ptr is not None:
        scale_ptr += group * PAGE
    table_ptr += row.to(tl.int64) * table_stride
    for place in range(0, seen_by_all, BLOCK_L):
        acc_MH, top_M, sum_M = attend(
            acc_MH, top_M, sum_M, q_MH, limit_M, kv_ptr, scale_ptr, table_ptr, place, end, unit,
            GROUPS, HEAD_DIM, PAGE, BLOCK_L, BLOCK_H, False,
        )  # fmt: skip
    for place in range(seen_by_all, end, BLOCK_L):
        acc_MH, top_M, sum_M = attend(
            acc_MH, top_M, sum_M, q_MH, limit_M, kv_ptr, scale_ptr, table_ptr, place, end, unit,
            GROUPS, HEAD_DIM, PAGE, BLOCK_L, BLOCK_H, True,
        )  # fmt: skip
    out_MH = mean(acc_MH, sum_M, scale_ptr).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + token_M1 * (GROUPS * QUERIES * HEAD_DIM) + place_MH, out_MH, mask=there_MH)
