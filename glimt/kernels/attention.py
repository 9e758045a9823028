"""Attention, rotary embedding, and the writing of keys and values: the twins where they run.

That is on CUDA in bfloat16, where Triton works; elsewhere the definitions.
"""

import functools
import itertools
from typing import Any

import torch
from torch import Tensor

from glimt.kernels import reference, reference_attention
from glimt.kernels.reference import MeasuredRows
from glimt.kernels.twins import runs_on, triton_attention, triton_rope, triton_segments

MAX_MEASURED_ROWS = 16  # above, each program of the product would quantise too much
# Tokens of e4m3 pages that a step's chunks may have in another type for a while; 0 without twins.
MAX_WIDENED: int = triton_attention.MAX_WIDENED if triton_attention else 0


def rope(x_TNH: Tensor, cos_TJ: Tensor, sin_TJ: Tensor, *, interleaved: bool) -> Tensor:
    """See `reference.rope`."""
    chosen = triton_rope if _has_twin(x_TNH) else reference
    turned_TNH: Tensor = chosen.rope(x_TNH, cos_TJ, sin_TJ, interleaved=interleaved)
    return turned_TNH


def turn_and_write_kv(
    heads_TNH: Tensor,
    cos_TJ: Tensor,
    sin_TJ: Tensor,
    kv_P2GSH: Tensor,
    slots_T: Tensor,
    scale_P2GS: Tensor | None = None,
    *,
    interleaved: bool,
) -> Tensor:
    """See `reference_attention.turn_and_write_kv`."""
    chosen = triton_rope if _has_twin(heads_TNH) else reference_attention
    q_TNH: Tensor = chosen.turn_and_write_kv(
        heads_TNH, cos_TJ, sin_TJ, kv_P2GSH, slots_T, scale_P2GS, interleaved=interleaved
    )
    return q_TNH


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
    """See `reference_attention.paged_attention`, and `triton_attention` for `num_chunk_pages`."""
    given = (q_TNH, kv_P2GSH, page_table_RM, query_starts_R1, context_lens_R)
    known: dict[str, Any] = {
        "max_query_len": max_query_len,
        "max_context_len": max_context_len,
        "scale_P2GS": scale_P2GS,
    }
    if not _has_twin(q_TNH):
        return reference_attention.paged_attention(*given, **known)
    out_TNH: Tensor = triton_attention.paged_attention(
        *given, **known, num_chunk_pages=num_chunk_pages
    )
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
    """See `reference_attention.decode_attention`; [T, N · H].

    With `measures`, which an FP8 product that follows may wish, perhaps as rows for it to quantise.
    """
    turning = (heads_TNH, cos_TJ, sin_TJ, kv_P2GSH, slots_T)
    rows = (page_table_RM, query_starts_R1, context_lens_R)
    if not _has_twin(heads_TNH):
        out_TNH = reference_attention.decode_attention(
            *turning,
            *rows,
            interleaved=interleaved,
            max_context_len=max_context_len,
            scale_P2GS=scale_P2GS,
        )
        return out_TNH.flatten(1)
    out: Tensor | MeasuredRows = triton_attention.decode_attention(
        *turning,
        *rows,
        interleaved=interleaved,
        max_context_len=max_context_len,
        scale_P2GS=scale_P2GS,
        measures=measures and len(heads_TNH) <= MAX_MEASURED_ROWS,
    )
    return out.flatten(1) if isinstance(out, Tensor) else out


def segment_attention(q_TNH: Tensor, k_TNH: Tensor, v_TNH: Tensor, lengths: list[int]) -> Tensor:
    """See `reference_attention.segment_attention`."""
    if not _has_twin(q_TNH):
        return reference_attention.segment_attention(q_TNH, k_TNH, v_TNH, lengths)
    starts_S1 = _starts(tuple(lengths), q_TNH.device)
    out_TNH: Tensor = triton_segments.segment_attention(q_TNH, k_TNH, v_TNH, starts_S1)
    return out_TNH


@functools.lru_cache(maxsize=4)  # all blocks of the tower ask for the same
def _starts(lengths: tuple[int, ...], device: torch.device) -> Tensor:
    """Where segments begin, int32 [S + 1]; sent without waiting for the device."""
    starts = torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32)
    return (starts.pin_memory() if device.type == "cuda" else starts).to(device, non_blocking=True)


def _has_twin(x: Tensor) -> bool:
    return x.dtype == torch.bfloat16 and runs_on(x.device)
