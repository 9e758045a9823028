"""The costly operations of a draw: Triton twins where they run, elsewhere the definitions."""

from typing import Any

import torch
from torch import Tensor

from glimt.kernels import sampling, shared_cut
from glimt.kernels.shared_cut import Add
from glimt.kernels.twins import runs_on, triton_cut, triton_noise, triton_top

# Whether a kernel finds the few highest scores of a row as well. Off until a GPU has shown that it
# is right and faster (`--switch few_by_kernel=1` of the benchmarks).
FEW_BY_KERNEL = False

# From how many rows on GPUs draw from shares of the scores, instead of gathering all on each, and
# look for a cut by top_p together. On two H200s (`python benchmarks/draws_over_gpus.py`) greedy
# draws take 53 µs gathered and 77 split with 1 row, 138 and 84 with 64; by top_p 258 and 441 with
# 8, 1075 and 888 with 64. On CPUs they always do.
SPLIT_FROM = 16
CUT_TOGETHER_FROM = 64


def add_noise_(
    scores_NV: Tensor, seed_N: Tensor, index_N: Tensor, is_random_N: Tensor, first_token: int = 0
) -> None:
    """See `sampling.add_noise_`."""
    chosen: Any = triton_noise if _has_twin(scores_NV) else sampling
    chosen.add_noise_(scores_NV, seed_N, index_N, is_random_N, first_token)


def least_kept(scores_NV: Tensor, top_k_N: Tensor, top_p_N: Tensor, num_candidates: int) -> Tensor:
    """See `sampling.least_kept`."""
    chosen: Any = sampling
    if _has_twin(scores_NV):
        chosen = triton_cut
        if num_candidates <= triton_top.MAX_CANDIDATES:
            # Torch selects a few scores in fewer passes than a search takes.
            chosen = triton_top if FEW_BY_KERNEL else sampling
    least_N: Tensor = chosen.least_kept(scores_NV, top_k_N, top_p_N, num_candidates)
    return least_N


def splits(device: torch.device, num_rows: int) -> bool:
    """Whether ranks that have shares of so many rows of scores leave them where they are."""
    return device.type != "cuda" or num_rows >= SPLIT_FROM


def cuts_together(device: torch.device, num_rows: int) -> bool:
    """Whether such ranks also look for a cut by top_p together."""
    return device.type != "cuda" or num_rows >= CUT_TOGETHER_FROM


def least_kept_of_shares(
    scores_NU: Tensor,
    highest_N: Tensor,
    top_k_N: Tensor,
    top_p_N: Tensor,
    vocab_size: int,
    add: Add,
) -> Tensor:
    """See `shared_cut.least_kept`."""
    chosen: Any
    chosen = triton_cut.least_kept_of_shares if _has_twin(scores_NU) else shared_cut.least_kept
    least_N: Tensor = chosen(scores_NU, highest_N, top_k_N, top_p_N, vocab_size, add)
    return least_N


def mask_top_k_top_p_(
    scores_NV: Tensor, top_k_N: Tensor, top_p_N: Tensor, num_candidates: int
) -> None:
    """Forbid what is below `sampling.least_kept`."""
    least_N = least_kept(scores_NV, top_k_N, top_p_N, num_candidates)
    scores_NV.masked_fill_(scores_NV < least_N[:, None], sampling.NEVER)


def _has_twin(scores_NV: Tensor) -> bool:
    return scores_NV.is_contiguous() and runs_on(scores_NV.device)
