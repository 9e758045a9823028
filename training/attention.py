"""Attention over packed sequences: each token sees its own segment only.

Two ways to the same numbers. `padded_attention` brings all segments to one length and runs
everywhere; it is the definition. `varlen_attention` is flash attention on the packed rows, for
CUDA in half precision. `choose_attention` tries the fast one before it is used.

Letters: T tokens of all segments, S segments, N heads, H head dim.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import varlen


@dataclass(frozen=True, slots=True)
class Segments:
    """Where the segments begin. `slots_T`: the token's place in a padded [S · longest] array."""

    starts_S1: Tensor  # int32 [S + 1]; the last entry is T
    longest: int
    slots_T: Tensor

    @staticmethod
    def of(starts_S1: Tensor, num_tokens: int, longest: int) -> "Segments":
        """Segments of `num_tokens` tokens in all, the longest of them of `longest`."""
        token_T = torch.arange(num_tokens, dtype=torch.int32, device=starts_S1.device)
        segment_T = torch.searchsorted(starts_S1[1:], token_T, right=True)
        return Segments(starts_S1, longest, segment_T * longest + token_T - starts_S1[segment_T])


# (q, k, v [T, N, H], segments, causal) -> [T, N, H]
Attend = Callable[[Tensor, Tensor, Tensor, Segments, bool], Tensor]


def padded_attention(
    q_TNH: Tensor, k_TNH: Tensor, v_TNH: Tensor, segments: Segments, causal: bool
) -> Tensor:
    """softmax(q k^T / sqrt H) v within each segment."""
    num_segments, longest = segments.starts_S1.shape[0] - 1, segments.longest
    slots_T = segments.slots_T

    def pad(x_TNH: Tensor) -> Tensor:
        empty = x_TNH.new_zeros(num_segments * longest, *x_TNH.shape[1:])
        padded = empty.index_copy(0, slots_T, x_TNH)
        return padded.view(num_segments, longest, *x_TNH.shape[1:]).transpose(1, 2)

    mask = None
    if not causal:  # the padding lies behind, where a causal query does not look
        lengths_S = segments.starts_S1.diff()
        mask = torch.arange(longest, device=lengths_S.device) < lengths_S[:, None, None, None]
    out_SNLH = functional.scaled_dot_product_attention(
        pad(q_TNH), pad(k_TNH), pad(v_TNH), attn_mask=mask, is_causal=causal
    )
    return out_SNLH.transpose(1, 2).flatten(0, 1).index_select(0, slots_T)


# The argument was `is_causal` before it became a window.
_HAS_FLAG = "is_causal" in inspect.signature(varlen.varlen_attn).parameters
_CAUSAL: dict[str, Any] = {"is_causal": True} if _HAS_FLAG else {"window_size": (-1, 0)}


def varlen_attention(
    q_TNH: Tensor, k_TNH: Tensor, v_TNH: Tensor, segments: Segments, causal: bool
) -> Tensor:
    """`padded_attention` without the padding."""
    starts, longest = segments.starts_S1, segments.longest
    options = _CAUSAL if causal else {}
    out_TNH = varlen.varlen_attn(q_TNH, k_TNH, v_TNH, starts, starts, longest, longest, **options)
    return out_TNH if isinstance(out_TNH, Tensor) else out_TNH[0]


def choose_attention(
    device: torch.device, dtype: torch.dtype, head_dims: tuple[int, ...]
) -> tuple[Attend, str]:
    """(the fastest attention that works here, a line that says which and why).

    The fast one is used only if its results and gradients on a small example are those of the
    definition within the rounding of `dtype`.
    """
    if device.type != "cuda":
        return padded_attention, "attention: padded (no CUDA device)"
    try:
        for head_dim in head_dims:
            for causal in (True, False):
                _compare(device, dtype, head_dim, causal)
    except Exception as error:  # whatever it is, there is another way
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        return padded_attention, f"attention: padded (flash attention failed here: {reason})"
    return varlen_attention, "attention: flash, packed (agrees with the padded definition)"


def _compare(device: torch.device, dtype: torch.dtype, head_dim: int, causal: bool) -> None:
    """Raises ValueError unless both ways agree, forward and backward, the definition in float32."""
    lengths = torch.tensor([0, 5, 1, 70, 24])
    starts = lengths.cumsum(0).to(device, torch.int32)
    segments = Segments.of(starts, int(lengths.sum()), int(lengths.max()))
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(4, int(lengths.sum()), 2, head_dim, generator=generator).to(device, dtype)
    exact = _with_gradients(padded_attention, drawn.float(), segments, causal)
    found = _with_gradients(varlen_attention, drawn, segments, causal)
    error = float((exact - found).abs().max() / exact.abs().max())
    if not error <= 0.03:  # roundings of bfloat16 are a tenth of that, a wrong mask is ten times it
        raise ValueError(f"results differ by {error:.1%} (head dim {head_dim}, causal {causal})")


def _with_gradients(attend: Attend, drawn: Tensor, segments: Segments, causal: bool) -> Tensor:
    """Output and gradients of q, k, v = drawn[:3] for the output's gradient drawn[3], float32."""
    qkv = drawn[:3].clone().requires_grad_()
    out = attend(qkv[0], qkv[1], qkv[2], segments, causal)
    (gradient,) = torch.autograd.grad(out, qkv, drawn[3])
    return torch.cat((out.detach().flatten(), gradient.flatten())).float()
