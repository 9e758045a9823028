"""Full attention inside segments, in Triton: the twin of `reference_attention.segment_attention`.

The same blocks of queries as in `triton_chunks.py`, over keys and values that lie in rows.
"""

import triton
import triton.language as tl
from torch import Tensor

from glimt.kernels.triton_attention_block import LOG2_E, Tiles, absorb, mean, row_of_block
from glimt.kernels.triton_support import launch, power_of_two

CONFIGS = (  # the first is used
    Tiles(128, 64, 8, 3),
    Tiles(128, 64, 8, 2),
    Tiles(128, 128, 8, 2),
    Tiles(128, 32, 8, 4),
    Tiles(64, 64, 4, 3),
)


def segment_attention(
    q_TNH: Tensor,
    k_TNH: Tensor,
    v_TNH: Tensor,
    starts_S1: Tensor,
    *,
    tiles: Tiles | None = None,
) -> Tensor:
    """See `reference_attention.segment_attention`; segments by where they begin, int32 [S + 1].

    Raises ValueError unless the heads of each token are contiguous.
    """
    tiles = tiles or CONFIGS[0]
    num_tokens, num_heads, head_dim = q_TNH.shape
    if any(x.stride()[1:] != (head_dim, 1) for x in (q_TNH, k_TNH, v_TNH)):
        raise ValueError("the heads of a token must be contiguous in memory")
    out_TNH = q_TNH.new_empty(q_TNH.shape)
    num_segments = starts_S1.shape[0] - 1
    launch(
        _segment_kernel,
        (num_tokens // tiles.block_m + num_segments, num_heads, 1),
        q_TNH,
        k_TNH,
        v_TNH,
        out_TNH,
        starts_S1,
        head_dim**-0.5 * LOG2_E,
        num_segments,
        q_TNH.stride(0),
        k_TNH.stride(0),
        v_TNH.stride(0),
        num_heads,
        head_dim,
        tiles.block_m,
        tiles.block_l,
        max(16, power_of_two(head_dim)),
        warps=tiles.num_warps,
        stages=tiles.num_stages,
    )
    return out_TNH


@triton.jit
def _load(ptr, row_L, stride, end, HEAD_DIM: tl.constexpr, BLOCK_H: tl.constexpr):
    """Rows of one head [L, H]; zeros from row `end` on, if that is not None."""
    h_H = tl.arange(0, BLOCK_H)
    place_LH = row_L.to(tl.int64)[:, None] * stride + h_H[None]
    if end is None and BLOCK_H == HEAD_DIM:
        return tl.load(ptr + place_LH)
    elif end is None:
        return tl.load(ptr + place_LH, (h_H < HEAD_DIM)[None], 0.0)
    else:
        return tl.load(ptr + place_LH, (row_L < end)[:, None] & (h_H < HEAD_DIM)[None], 0.0)


@triton.jit(do_not_specialize=["num_segments"])
def _segment_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    out_ptr,
    starts_ptr,
    unit,
    num_segments,
    q_stride: tl.constexpr,
    k_stride: tl.constexpr,
    v_stride: tl.constexpr,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    """A block of a segment's tokens, of one head, over all its segment."""
    block, head = tl.program_id(0), tl.program_id(1)
    segment, first_block = row_of_block(block, starts_ptr, num_segments, 1, BLOCK_M)
    start, end = tl.load(starts_ptr + segment), tl.load(starts_ptr + segment + 1)
    first = start + (block - first_block) * BLOCK_M
    if first >= end:
        return
    q_ptr += head * HEAD_DIM
    k_ptr += head * HEAD_DIM
    v_ptr += head * HEAD_DIM
    row_M, l_L, h_H = first + tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_L), tl.arange(0, BLOCK_H)
    q_MH = _load(q_ptr, row_M, q_stride, end, HEAD_DIM, BLOCK_H)
    acc_MH = tl.zeros([BLOCK_M, BLOCK_H], tl.float32)
    top_M, sum_M = tl.full([BLOCK_M], float("-inf"), tl.float32), tl.zeros([BLOCK_M], tl.float32)
    whole = start + (end - start) // BLOCK_L * BLOCK_L
    for l in range(start, whole, BLOCK_L):  # noqa: E741
        k_LH = _load(k_ptr, l + l_L, k_stride, None, HEAD_DIM, BLOCK_H)
        v_LH = _load(v_ptr, l + l_L, v_stride, None, HEAD_DIM, BLOCK_H)
        acc_MH, top_M, sum_M = absorb(
            acc_MH, top_M, sum_M, q_MH, k_LH, v_LH, None, unit, None, 0, None
        )  # fmt: skip
    if whole < end:
        k_LH = _load(k_ptr, whole + l_L, k_stride, end, HEAD_DIM, BLOCK_H)
        v_LH = _load(v_ptr, whole + l_L, v_stride, end, HEAD_DIM, BLOCK_H)
        is_seen_1L = (whole + l_L < end)[None]
        acc_MH, top_M, sum_M = absorb(
            acc_MH, top_M, sum_M, q_MH, k_LH, v_LH, is_seen_1L, unit, None, 0, None
        )  # fmt: skip
    out_MH = mean(acc_MH, sum_M, None).to(out_ptr.dtype.element_ty)
    there_MH = (row_M < end)[:, None] & (h_H < HEAD_DIM)[None]
    place_MH = (row_M.to(tl.int64) * HEADS + head)[:, None] * HEAD_DIM + h_H[None]
    tl.store(out_ptr + place_MH, out_MH, mask=there_MH)
