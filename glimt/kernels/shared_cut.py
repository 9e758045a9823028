"""Where top_k and top_p cut scores of which each rank has a share, in plain torch.

A cut is looked for among the 2^32 floats in their order, eight bits in a round: a round sums up
what lies at or above each of 256 pivots, first by number, then by probability, over all ranks, and
the next goes on between two of them. All sums are of integers, so the cut is that of
`sampling.least_kept` over all scores, to the bit.

Letters: N rows, U this rank's share of the vocabulary, S = 256 pivots of a round.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from glimt.kernels.sampling import NEVER, enough_of, weights_of

Add = Callable[[Tensor], Tensor]
"""The sum over all ranks of each one's int64 tensor; a collective operation."""

_BITS, _ROUNDS = 8, 4
_ZERO = 1 << 31  # the key of 0.0


def least_kept(
    scores_NU: Tensor,
    highest_N: Tensor,
    top_k_N: Tensor,
    top_p_N: Tensor,
    vocab_size: int,
    add: Add,
) -> Tensor:
    """[N]: `sampling.least_kept` of all shares' scores, of which `highest_N` are the highest."""
    key_NU = _keys(scores_NU).sort(1).values
    weight_NU = weights_of(_scores(key_NU), highest_N)
    has_top_k_N, has_top_p_N = top_k_N < vocab_size, top_p_N < 1.0
    least_N = key_NU.new_zeros(len(key_NU))
    excess_N = least_N
    # A graph must not look at numbers; without one it saves half of the rounds.
    if scores_NU.is_cuda or bool(has_top_k_N.any()):
        found_N, reached_N = _search(key_NU, torch.ones_like(key_NU), top_k_N, add)
        least_N = found_N.where(has_top_k_N, least_N)
        excess_N = (reached_N - top_k_N).where(has_top_k_N, excess_N)
    weight_NU.masked_fill_(key_NU < least_N[:, None], 0)
    total_N = add(weight_NU.sum(1))
    # Those that tie with the k-th are kept, but k of them count.
    tied_N = weights_of(_scores(least_N)[:, None], highest_N)[:, 0]
    total_N -= torch.where(has_top_k_N, excess_N * tied_N, 0)
    found_N, _ = _search(key_NU, weight_NU, enough_of(total_N, top_p_N), add)
    least_N = found_N.where(has_top_p_N, least_N)
    return _scores(least_N).masked_fill(~has_top_k_N & ~has_top_p_N, NEVER)


def _search(key_NU: Tensor, value_NU: Tensor, wanted_N: Tensor, add: Add) -> tuple[Tensor, Tensor]:
    """(the highest key at or above which values add up to `wanted_N`, what they add up to) over
    all ranks. Keys ascend."""
    below_NU = F.pad(value_NU.cumsum(1), (1, 0))
    above_NU = below_NU[:, -1:] - below_NU  # what lies at or above each key, and 0
    pivot_S = torch.arange(1 << _BITS, device=key_NU.device)
    low_N1 = key_NU.new_zeros(len(key_NU), 1)
    reached_N1 = low_N1
    for number in range(_ROUNDS - 1, -1, -1):
        pivot_NS = low_N1 + (pivot_S << (number * _BITS))
        sum_NS = add(above_NU.gather(1, torch.searchsorted(key_NU, pivot_NS)))
        chosen_N1 = (sum_NS >= wanted_N[:, None]).sum(1, keepdim=True).sub_(1).clamp_(min=0)
        low_N1 = pivot_NS.gather(1, chosen_N1)
        reached_N1 = sum_NS.gather(1, chosen_N1)
    return low_N1[:, 0], reached_N1[:, 0]


def _keys(scores_NU: Tensor) -> Tensor:
    """float32 -> int64 in [0, 2^32), in the same order."""
    bits_NU = scores_NU.view(torch.int32).long()
    return torch.where(bits_NU < 0, -1 - bits_NU, bits_NU + _ZERO)


def _scores(keys: Tensor) -> Tensor:
    """The float32 of each key."""
    bits = torch.where(keys < _ZERO, -1 - keys, keys - _ZERO)
    return bits.int().view(torch.float32)
