"""The definitions of the KV cache's layout and of attention, in plain torch.

Letters: T tokens, N query heads, G key-value heads, Q query heads of a group (N / G), H head dim,
P pages, S slots of a page, R rows, L context length.

Softmax is in float32. On CPU the result for a token does not depend on what else is in the step
or on how its prompt was cut (see `reference.py`): products are taken with at least four rows, and
the sum over the context runs in blocks of fixed length (longer ones are split by MKL according to
their length; measured: up to 152 tokens never).
"""

import torch
from torch import Tensor
from torch.nn import functional

from glimt.kernels.reference import fill_rows, quantize_rows, rope

_CONTEXT_BLOCK = 128  # tokens of context per product; a multiple of every CPU page size
_QUERY_BLOCK = 128  # tokens of a row at a time; bounds the score matrix
KvPair = tuple[Tensor, Tensor]


def write_kv(
    k_TGH: Tensor,
    v_TGH: Tensor,
    kv_P2GSH: Tensor,
    slots_T: Tensor,
    scale_P2GS: Tensor | None = None,
) -> None:
    """Store keys and values at slots (page · S + offset) of the cache, in place.

    With `scale_P2GS` the cache is e4m3 and every (token, head) vector gets its own float32 scale,
    by the formula of `quantize_rows`.
    """
    page_size = kv_P2GSH.shape[3]
    page_T, offset_T = slots_T // page_size, slots_T % page_size
    if scale_P2GS is None:
        kv_P2GSH[page_T, 0, :, offset_T] = k_TGH.to(kv_P2GSH.dtype)
        kv_P2GSH[page_T, 1, :, offset_T] = v_TGH.to(kv_P2GSH.dtype)
        return
    raw_P2GSH = kv_P2GSH.view(torch.uint8)  # e4m3 cannot be scattered, its bytes can
    for index, x_TGH in enumerate((k_TGH, v_TGH)):
        q_TGH, scale_TG1 = quantize_rows(x_TGH)
        raw_P2GSH[page_T, index, :, offset_T] = q_TGH.view(torch.uint8)
        scale_P2GS[page_T, index, :, offset_T] = scale_TG1[..., 0]


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
    """Turn queries and keys (`rope`), store keys and values (`write_kv`) -> the queries.

    The heads of a token are its queries, keys and values, one after another: as many keys and
    values each as the cache has heads.
    """
    num_groups = kv_P2GSH.shape[2]
    num_queries, num_turned = heads_TNH.shape[1] - 2 * num_groups, heads_TNH.shape[1] - num_groups
    qk_TNH = rope(heads_TNH[:, :num_turned], cos_TJ, sin_TJ, interleaved=interleaved)
    write_kv(qk_TNH[:, num_queries:], heads_TNH[:, num_turned:], kv_P2GSH, slots_T, scale_P2GS)
    return qk_TNH[:, :num_queries]


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
    """Causal attention of each row's new tokens over its pages, which already hold their KV.

    Row r's queries are tokens query_starts[r] … query_starts[r + 1] - 1, the last of its
    context_lens[r] tokens. Row r's pages are page_table[r], in order. Query head n reads key-value
    head n / Q. Scale H^-0.5. -> [T, N, H] in the dtype of q.
    """
    if q_TNH.is_cuda and max_query_len == 1:
        return _attend_decoding(
            q_TNH, kv_P2GSH, page_table_RM, context_lens_R, max_context_len, scale_P2GS
        )
    page_size = kv_P2GSH.shape[3]
    out_TNH = torch.empty_like(q_TNH)
    starts = query_starts_R1.tolist()
    for row, context_len in enumerate(context_lens_R.tolist()):
        pages = page_table_RM[row, : -(-context_len // page_size)].long()
        k_GLH, v_GLH = _gather(kv_P2GSH, pages, scale_P2GS, q_TNH.dtype)
        v_GLH[:, context_len:] = 0.0  # slots not yet written may hold NaN, and 0 · NaN is NaN
        for start in range(starts[row], starts[row + 1], _QUERY_BLOCK):
            end = min(start + _QUERY_BLOCK, starts[row + 1])
            first = context_len - (starts[row + 1] - start)  # sequence index of token `start`
            out_TNH[start:end] = _attend_row(q_TNH[start:end], k_GLH, v_GLH, first)
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
) -> Tensor:
    """`turn_and_write_kv`, then `paged_attention`, of rows of one token each."""
    cache = (kv_P2GSH, slots_T, scale_P2GS)
    q_TNH = turn_and_write_kv(heads_TNH, cos_TJ, sin_TJ, *cache, interleaved=interleaved)
    rows = (page_table_RM, query_starts_R1, context_lens_R)
    return paged_attention(
        q_TNH,
        kv_P2GSH,
        *rows,
        max_query_len=1,
        max_context_len=max_context_len,
        scale_P2GS=scale_P2GS,
    )


def segment_attention(q_TNH: Tensor, k_TNH: Tensor, v_TNH: Tensor, lengths: list[int]) -> Tensor:
    """Full attention inside each of the consecutive segments, none across. Scale H^-0.5."""
    parts = [
        functional.scaled_dot_product_attention(
            *(x_LNH.transpose(0, 1)[None] for x_LNH in segment)
        )[0].transpose(0, 1)
        for segment in zip(*(torch.split(x, lengths) for x in (q_TNH, k_TNH, v_TNH)), strict=True)
    ]
    return torch.cat(parts)


def _gather(
    kv_P2GSH: Tensor, pages: Tensor, scale_P2GS: Tensor | None, dtype: torch.dtype
) -> KvPair:
    """Keys and values [..., G, L, H] of pages [..., M], dequantised; L fills whole pages."""
    if scale_P2GS is None:
        kv = kv_P2GSH[pages].to(dtype)
    else:
        values = kv_P2GSH.view(torch.uint8)[pages].view(kv_P2GSH.dtype).float()
        kv = (values * scale_P2GS[pages, ..., None]).to(dtype)
    k, v = (kv.select(-4, index).transpose(-4, -3).flatten(-3, -2) for index in (0, 1))
    return k, v


def _attend_row(q_TNH: Tensor, k_GLH: Tensor, v_GLH: Tensor, first: int) -> Tensor:
    """Tokens at sequence indices first, first + 1, … of one row over its whole context."""
    num_tokens, num_heads, head_dim = q_TNH.shape
    num_groups, context_len, _ = k_GLH.shape
    q_GMH = q_TNH.view(num_tokens, num_groups, -1, head_dim).transpose(0, 1).flatten(1, 2)
    scores_GML = (fill_rows(q_GMH) @ k_GLH.transpose(1, 2))[:, : q_GMH.shape[1]]
    scores_GML = scores_GML.float() * head_dim**-0.5
    token_T = torch.arange(first, first + num_tokens, device=q_TNH.device)
    token_M = token_T.repeat_interleave(num_heads // num_groups)
    later_ML = torch.arange(context_len, device=q_TNH.device) > token_M[:, None]
    weights_GML = scores_GML.masked_fill(later_ML, float("-inf")).softmax(-1).to(v_GLH.dtype)
    out_GMH = _sum_over_context(weights_GML, v_GLH)
    return out_GMH.view(num_groups, num_tokens, -1, head_dim).transpose(0, 1).flatten(1, 2)


def _sum_over_context(weights_GML: Tensor, v_GLH: Tensor) -> Tensor:
    """weights @ v, block by block of context, so that longer contexts add only exact zeros."""
    if v_GLH.is_cuda:
        return weights_GML @ v_GLH
    total_GMH = torch.zeros((), dtype=v_GLH.dtype)
    for start in range(0, v_GLH.shape[1], _CONTEXT_BLOCK):
        v_GBH = v_GLH[:, start : start + _CONTEXT_BLOCK]
        weights_GMB = weights_GML[..., start : start + _CONTEXT_BLOCK]
        total_GMH = total_GMH + fill_rows(weights_GMB) @ v_GBH
    return total_GMH[:, : weights_GML.shape[1]]


def _attend_decoding(
    q_RNH: Tensor,
    kv_P2GSH: Tensor,
    page_table_RM: Tensor,
    context_lens_R: Tensor,
    max_context_len: int,
    scale_P2GS: Tensor | None,
) -> Tensor:
    """One query for each row, all rows at once: needs no number of the step on the host."""
    page_size = kv_P2GSH.shape[3]
    pages_RM = page_table_RM[:, : -(-max_context_len // page_size)].long()
    k_RGLH, v_RGLH = _gather(kv_P2GSH, pages_RM, scale_P2GS, q_RNH.dtype)
    seen_RL = torch.arange(k_RGLH.shape[2], device=q_RNH.device) < context_lens_R[:, None]
    unset_R1L1 = ~seen_RL[:, None, :, None]  # may hold NaN, which no mask of scores keeps out
    k_RGLH, v_RGLH = (x.masked_fill(unset_R1L1, 0.0) for x in (k_RGLH, v_RGLH))
    out_RNH1 = functional.scaled_dot_product_attention(
        q_RNH[:, :, None], k_RGLH, v_RGLH, attn_mask=seen_RL[:, None, None], enable_gqa=True
    )
    return out_RNH1[:, :, 0]
