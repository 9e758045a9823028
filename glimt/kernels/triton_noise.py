"""Gumbel noise onto scores in one pass: the twin of `sampling.add_noise_`.

The definition's integers to the last bit; its logarithms within float32's rounding.
"""

import triton
import triton.language as tl
from torch import Tensor

from glimt.kernels.sampling import GAMMA, MIX_1, MIX_2
from glimt.kernels.triton_support import launch, tiles_of

_BLOCK = 1024
_WORD = 1 << 64
_GAMMA, _MIX_1, _MIX_2 = (tl.constexpr(value % _WORD) for value in (GAMMA, MIX_1, MIX_2))


@triton.jit
def _mix(bits):
    """SplitMix64's finaliser, of uint64."""
    bits = (bits ^ (bits >> 30)) * _MIX_1
    bits = (bits ^ (bits >> 27)) * _MIX_2
    return bits ^ (bits >> 31)


@triton.jit(do_not_specialize=["first_token"])
def noise_kernel(
    scores_ptr,
    seed_ptr,
    index_ptr,
    is_random_ptr,
    first_token,
    vocab_size: tl.constexpr,
    block: tl.constexpr,
):
    """One block of one row, in place; rows that are not random stay as they are."""
    row = tl.program_id(1)
    if tl.load(is_random_ptr + row):
        token = tl.program_id(0) * block + tl.arange(0, block)
        inside = token < vocab_size
        seed = tl.load(seed_ptr + row).to(tl.uint64)
        index = tl.load(index_ptr + row).to(tl.uint64)
        state = _mix(_mix(seed + _GAMMA) ^ index)
        bits = _mix(state + (first_token + token + 1).to(tl.uint64) * _GAMMA)
        uniform = ((bits >> 11).to(tl.int64).to(tl.float32) + 0.5) * 1.1102230246251565e-16
        uniform = tl.minimum(uniform, 1.0 - 5.9604644775390625e-08)
        # -log(1 - u), which is u itself for the u near 0 that decide: there as its series.
        series = uniform * (0.2 + uniform * (0.16666667 + uniform * 0.14285715))
        series = 0.5 + uniform * (0.33333334 + uniform * (0.25 + series))
        series = uniform + uniform * uniform * series
        exponential = tl.where(uniform < 0.06, series, -tl.log(1.0 - uniform))
        place = row.to(tl.int64) * vocab_size + token
        score = tl.load(scores_ptr + place, mask=inside, other=0.0)
        tl.store(scores_ptr + place, score - tl.log(exponential), mask=inside)


def add_noise_(
    scores_NV: Tensor, seed_N: Tensor, index_N: Tensor, is_random_N: Tensor, first_token: int = 0
) -> None:
    """See `sampling.add_noise_`; the scores are contiguous."""
    num_rows, vocab_size = scores_NV.shape
    launch(
        noise_kernel,
        (tiles_of(vocab_size, _BLOCK), num_rows, 1),
        scores_NV,
        seed_N,
        index_N,
        is_random_N,
        first_token,
        vocab_size,
        _BLOCK,
        warps=4,
    )
