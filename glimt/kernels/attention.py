"""Attention and the writing of its keys and values: the Triton twins where they run.

That is on CUDA in bfloat16, where Triton works; elsewhere the definitions.
"""

import torch
from torch import Tensor

from glimt.kernels import reference_attention

try:
    if torch.version.cuda is None:
        raise ImportError("this torch knows no CUDA, and importing Triton takes its time")
    from glimt.kernels import triton_attention, triton_rope, triton_support
except ImportError:
    triton_attention = triton_rope = triton_support = None  # type: ignore[assignment]


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
) -> Tensor:
    """See `reference_attention.paged_attention`."""
    chosen = triton_attention if _has_twin(q_TNH) else reference_attention
    out_TNH: Tensor = chosen.paged_attention(
        q_TNH,
        kv_P2GSH,
        page_table_RM,
        query_starts_R1,
        context_lens_R,
        max_query_len=max_query_len,
        max_context_len=max_context_len,
        scale_P2GS=scale_P2GS,
    )
    return out_TNH


def _has_twin(x: Tensor) -> bool:
    return (
        triton_support is not None
        and x.is_cuda
        and x.dtype == torch.bfloat16
        and triton_support.works_on(x.device)
    )
