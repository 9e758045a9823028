"""Paged attention in Triton: the twin of `reference_attention.paged_attention`.

Two kernels share a step's rows between them: those of one token (`triton_decoding.py`) and those of
several (`triton_chunks.py`). Both stack all query heads of a key-value head under each other, so
that keys and values are read once for all of them.

No launch depends on lengths: programs read them on the device, and those without work leave. So a
captured launch serves every step of its number of rows.
"""

import torch
from torch import Tensor

from glimt.kernels.reference import MeasuredRows
from glimt.kernels.triton_chunks import attend_chunks
from glimt.kernels.triton_decoding import attend_singles
from glimt.kernels.triton_turned import Turning
from glimt.kernels.triton_widen import widened

# e4m3 pages are widened once for all queries of a step, if they hold no more tokens than this
# together: 128 MiB of bfloat16 for 8 key-value heads of 128.
MAX_WIDENED = 32768


def paged_attention(
    q_TNH: Tensor,
    kv_P2GSH: Tensor,
    page_table_RM: Tensor,
    query_starts_R1: Tensor,
    context_lens_R: Tensor,
    *,
    max_query_len: int,
    max_context_len: int,
    scale_P2GS: Tensor | None = None,
    num_chunk_pages: int = 0,
) -> Tensor:
    """See `reference_attention.paged_attention`. A row without context gives zeros.

    `num_chunk_pages`: of all rows of several tokens together; 0 if that is not known, as in a
    graph, which serves steps of many numbers of pages: then e4m3 pages are widened block by block.

    Raises ValueError for a cache or queries that are not laid out as the runner does.
    """
    if not kv_P2GSH.is_contiguous() or q_TNH.stride()[1:] != (q_TNH.shape[2], 1):
        raise ValueError("the cache and the heads of a token must each be contiguous in memory")
    out_TNH = q_TNH.new_empty(q_TNH.shape)
    args = (q_TNH, kv_P2GSH, page_table_RM, query_starts_R1, context_lens_R, out_TNH, scale_P2GS)
    num_rows = context_lens_R.shape[0]
    if q_TNH.shape[0] < num_rows * max_query_len or max_query_len == 1:
        attend_singles(*args, max_context_len=max_context_len)
    if max_query_len > 1:
        num_tokens = num_chunk_pages * kv_P2GSH.shape[3]
        if scale_P2GS is not None and 0 < num_tokens <= MAX_WIDENED:
            rows = (page_table_RM, query_starts_R1, context_lens_R)
            kv_W2GSH, table_RM = widened(
                kv_P2GSH, scale_P2GS, *rows, num_pages=num_chunk_pages, dtype=q_TNH.dtype
            )
            args = (q_TNH, kv_W2GSH, table_RM, query_starts_R1, context_lens_R, out_TNH, None)
        attend_chunks(*args)
    return out_TNH


def decode_attention(
    heads_TNH: Tensor,
    cos_TJ: Tensor,
    sin_TJ: Tensor,
    kv_P2GSH: Tensor,
    slots_T: Tensor,
    page_table_RM: Tensor,
    query_starts_R1: Tensor,
    context_lens_R: Tensor,
    *,
    interleaved: bool,
    max_context_len: int,
    scale_P2GS: Tensor | None = None,
    measures: bool = False,
) -> Tensor | MeasuredRows:
    """See `reference_attention.decode_attention`; each head is turned where it is attended.

    With `measures` as rows [T, N · H] that an FP8 product may quantise.

    Raises ValueError unless heads, angles and cache are contiguous, as layers and runner make them.
    """
    if not all(t.is_contiguous() for t in (heads_TNH, cos_TJ, sin_TJ, kv_P2GSH)):
        raise ValueError("heads, angles and cache must be contiguous in memory")
    num_tokens, num_heads, head_dim = heads_TNH.shape
    out_TNH = heads_TNH.new_empty((num_tokens, num_heads - 2 * kv_P2GSH.shape[2], head_dim))
    rows = (page_table_RM, query_starts_R1, context_lens_R)
    largest_TN = None
    if measures:
        largest_TN = out_TNH.new_empty(out_TNH.shape[:2], dtype=torch.float32)
    attend_singles(
        heads_TNH,
        kv_P2GSH,
        *rows,
        out_TNH,
        scale_P2GS,
        max_context_len=max_context_len,
        turning=Turning(cos_TJ, sin_TJ, slots_T, interleaved),
        largest_TN=largest_TN,
    )
    return out_TNH if largest_TN is None else MeasuredRows(out_TNH.flatten(1), largest_TN)
