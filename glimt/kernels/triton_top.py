"""Where top_k and top_p cut a row whose k is small: the twin of `sampling.least_kept` for those.

What a cut depends on are the `MAX_CANDIDATES` highest scores of a row. A first kernel finds those
of each block of the vocabulary, a second one those of the blocks' and cuts, which is two launches
and one pass over the scores; `triton_cut.py` takes any k in seventeen and sixteen.

Letters: N rows, V vocabulary, X blocks of a row, C = MAX_CANDIDATES.
"""

import triton
import triton.language as tl
from torch import Tensor

from glimt.kernels.triton_cut import weight_of
from glimt.kernels.triton_support import launch, power_of_two, tiles_of

MAX_CANDIDATES = 64
_C = tl.constexpr(MAX_CANDIDATES)
_BLOCK = 4096


@triton.jit
def block_top_kernel(
    scores_ptr,
    candidates_ptr,
    vocab_size: tl.constexpr,
    num_blocks: tl.constexpr,
    block: tl.constexpr,
):
    """The highest scores of one block of one row, in falling order."""
    row, number = tl.program_id(1), tl.program_id(0)
    token = number * block + tl.arange(0, block)
    place = row.to(tl.int64) * vocab_size + token
    score = tl.load(scores_ptr + place, mask=token < vocab_size, other=float("-inf"))
    highest_C = tl.topk(score, _C)
    at = (row * num_blocks + number) * _C + tl.arange(0, _C)
    tl.store(candidates_ptr + at, highest_C)


@triton.jit
def top_cut_kernel(
    candidates_ptr,
    top_k_ptr,
    top_p_ptr,
    least_ptr,
    vocab_size: tl.constexpr,
    num_candidates: tl.constexpr,
    block: tl.constexpr,
):
    """The lowest score that one row keeps, of so many candidates of its blocks."""
    row = tl.program_id(0)
    index = tl.arange(0, block)
    candidates = tl.load(
        candidates_ptr + row * num_candidates + index,
        mask=index < num_candidates,
        other=float("-inf"),
    )
    score_C = tl.topk(candidates, _C)
    top_k, top_p = tl.load(top_k_ptr + row), tl.load(top_p_ptr + row)
    rank_C = tl.arange(0, _C)
    is_in_C = rank_C < top_k
    highest = tl.max(score_C, 0)
    least = tl.min(tl.where(is_in_C, score_C, float("inf")), 0)  # the k-th highest
    if top_p < 1.0:
        weight_C = tl.where(is_in_C, weight_of(score_C, highest), 0)
        total = tl.sum(weight_C, 0)
        wanted = tl.ceil(total.to(tl.float64) * top_p.to(tl.float64)).to(tl.int64)
        # Kept are those before which the sum is not yet reached.
        before_C = tl.cumsum(weight_C, 0) - weight_C
        is_kept_C = is_in_C & (before_C < tl.maximum(wanted, 1))
        least = tl.min(tl.where(is_kept_C, score_C, float("inf")), 0)
    is_off = (top_k >= vocab_size) & (top_p >= 1.0)
    tl.store(least_ptr + row, tl.where(is_off, float("-inf"), least))


def least_kept(
    scores_NV: Tensor,
    top_k_N: Tensor,
    top_p_N: Tensor,
    num_candidates: int,
    *,
    block: int = _BLOCK,
) -> Tensor:
    """See `sampling.least_kept`; the scores are contiguous, num_candidates ≤ MAX_CANDIDATES."""
    num_rows, vocab_size = scores_NV.shape
    num_blocks = tiles_of(vocab_size, block)
    candidates_NXC = scores_NV.new_empty((num_rows, num_blocks, MAX_CANDIDATES))
    least_N = scores_NV.new_empty(num_rows)
    size = (vocab_size, num_blocks, block)
    launch(block_top_kernel, (num_blocks, num_rows, 1), scores_NV, candidates_NXC, *size, warps=8)
    found = num_blocks * MAX_CANDIDATES
    cut = (candidates_NXC, top_k_N, top_p_N, least_N, vocab_size, found, power_of_two(found))
    launch(top_cut_kernel, (num_rows, 1, 1), *cut, warps=8)
    return least_N
