"""Gumbel noise onto scores: the Triton twin where it runs, elsewhere the definition."""

import torch
from torch import Tensor

from glimt.kernels import sampling

try:
    if torch.version.cuda is None:
        raise ImportError("this torch knows no CUDA, and importing Triton takes its time")
    from glimt.kernels import triton_noise, triton_support
except ImportError:
    triton_noise = triton_support = None  # type: ignore[assignment]


def add_noise_(scores_NV: Tensor, seed_N: Tensor, index_N: Tensor, is_random_N: Tensor) -> None:
    """See `sampling.add_noise_`."""
    has_twin = triton_noise is not None and scores_NV.is_cuda and scores_NV.is_contiguous()
    if has_twin and triton_support.works_on(scores_NV.device):
        triton_noise.add_noise_(scores_NV, seed_N, index_N, is_random_N)
    else:
        sampling.add_noise_(scores_NV, seed_N, index_N, is_random_N)
