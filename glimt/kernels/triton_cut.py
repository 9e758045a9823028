"""Where top_k and top_p cut a row of scores, without sorting it: the twin of `sampling.least_kept`,
and, where each rank has a share of the scores, of `shared_cut.least_kept`.

A cut is looked for among the 2^32 floats in their order, four bits in a pass: a pass sums up what
lies at or above each of 16 pivots (first by number, then by probability), and the next goes on
between two of them. All sums are of integers, so no order of adding changes a cut.

Letters: N rows, V vocabulary or the share of it that is here, P = 8 passes, S = 16 pivots of each.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from glimt.kernels.shared_cut import Add
from glimt.kernels.triton_support import launch, tiles_of

_BLOCK = 4096
_PASSES = tl.constexpr(8)
_PIVOTS = tl.constexpr(16)
_LIKELIEST = tl.constexpr(float(1 << 40))  # its weight; those of 2^22 tokens fit an int64
_ZERO = tl.constexpr(1 << 31)  # the key of 0.0


@triton.jit
def _key(score):
    """float32 -> int64 in [0, 2^32), in the same order."""
    bits = score.to(tl.int32, bitcast=True).to(tl.int64)
    return tl.where(bits < 0, -1 - bits, bits + _ZERO)


@triton.jit
def _score(key):
    """The float32 of a key."""
    bits = tl.where(key < _ZERO, -1 - key, key - _ZERO)
    return bits.to(tl.int32).to(tl.float32, bitcast=True)


@triton.jit
def weight_of(score, highest):
    """A probability, not normalised, as an integer."""
    return (tl.exp(score - highest) * _LIKELIEST).to(tl.int64)


@triton.jit
def _search(sums_ptr, wanted, num_passes):
    """(bound, distance of the next pass's pivots, the sum at the bound) after so many passes."""
    low = tl.zeros([], tl.int64)
    width = tl.full([], 1 << 28, tl.int64)
    reached = tl.zeros([], tl.int64)
    pivot_S = tl.arange(0, _PIVOTS)
    for number in tl.static_range(_PASSES):
        if number < num_passes:
            sum_S = tl.load(sums_ptr + number * _PIVOTS + pivot_S)
            if number > 0:  # the lowest pivot is the bound of before; passes do not sum there again
                sum_S = tl.where(pivot_S == 0, reached, sum_S)
            chosen = tl.max(tl.where(sum_S >= wanted, pivot_S, 0), 0)
            reached = tl.sum(tl.where(pivot_S == chosen, sum_S, 0), 0)
            low += chosen.to(tl.int64) * width
            width = width >> 4
    return low, width, reached


@triton.jit
def _top_k_cut(sums_ptr, top_k, vocab_size):
    """(key of the k-th highest score, how many more than k are at least as high); 0 if off."""
    low = tl.zeros([], tl.int64)
    excess = tl.zeros([], tl.int64)
    if top_k < vocab_size:
        low, _, reached = _search(sums_ptr, top_k, _PASSES)
        excess = reached - top_k
    return low, excess


@triton.jit
def _wanted_weight(sums_ptr, top_p, low, excess, highest):
    """What the weights of the kept must add up to; the first pass has summed up all of them."""
    total = tl.load(sums_ptr)
    if excess > 0:  # those that tie with the k-th are kept, but k of them count
        total -= excess * weight_of(_score(low), highest)
    wanted = tl.ceil(total.to(tl.float64) * top_p.to(tl.float64)).to(tl.int64)
    return tl.maximum(wanted, 1)


@triton.jit(do_not_specialize=["number"])
def pass_kernel(
    scores_ptr,
    highest_ptr,
    top_k_ptr,
    top_p_ptr,
    counts_ptr,
    weights_ptr,
    number,
    by_weight: tl.constexpr,
    share_size: tl.constexpr,
    vocab_size: tl.constexpr,
    block: tl.constexpr,
):
    """Pass `number` of one of the two searches, over one block of one row."""
    row = tl.program_id(1)
    counts_ptr += row * (_PASSES * _PIVOTS)
    weights_ptr += row * (_PASSES * _PIVOTS)
    top_k, top_p = tl.load(top_k_ptr + row), tl.load(top_p_ptr + row)
    if by_weight:
        is_on = top_p < 1.0
        sums_ptr = weights_ptr
    else:
        is_on = top_k < vocab_size
        sums_ptr = counts_ptr
    if is_on:
        token = tl.program_id(0) * block + tl.arange(0, block)
        inside = token < share_size
        place = row.to(tl.int64) * share_size + token
        score = tl.load(scores_ptr + place, mask=inside, other=float("-inf"))
        key = _key(score)
        if by_weight:
            highest = tl.load(highest_ptr + row)
            least, excess = _top_k_cut(counts_ptr, top_k, vocab_size)
            wanted = _wanted_weight(sums_ptr, top_p, least, excess, highest)
            value = tl.where(inside & (key >= least), weight_of(score, highest), 0)
        else:
            wanted = top_k
            value = inside.to(tl.int64)
        low, width, _ = _search(sums_ptr, wanted, number)
        # Once the bound is near the cut, few blocks have scores above the next pivot.
        if (number == 0) | (tl.max(key, 0) >= low + width):
            pivot_S = tl.arange(0, _PIVOTS)
            sum_S = tl.zeros([_PIVOTS], tl.int64)
            for pivot in tl.static_range(_PIVOTS):
                above = tl.sum(tl.where(key >= low + pivot * width, value, 0), 0)
                sum_S = tl.where(pivot_S == pivot, above, sum_S)
            tl.atomic_add(sums_ptr + number * _PIVOTS + pivot_S, sum_S)


@triton.jit
def cut_kernel(
    highest_ptr,
    top_k_ptr,
    top_p_ptr,
    counts_ptr,
    weights_ptr,
    least_ptr,
    vocab_size: tl.constexpr,
):
    """The lowest score that one row keeps."""
    row = tl.program_id(0)
    counts_ptr += row * (_PASSES * _PIVOTS)
    weights_ptr += row * (_PASSES * _PIVOTS)
    top_k, top_p = tl.load(top_k_ptr + row), tl.load(top_p_ptr + row)
    key, excess = _top_k_cut(counts_ptr, top_k, vocab_size)
    if top_p < 1.0:
        highest = tl.load(highest_ptr + row)
        wanted = _wanted_weight(weights_ptr, top_p, key, excess, highest)
        key, _, _ = _search(weights_ptr, wanted, _PASSES)
    is_off = (top_k >= vocab_size) & (top_p >= 1.0)
    tl.store(least_ptr + row, tl.where(is_off, float("-inf"), _score(key)))


def least_kept(
    scores_NV: Tensor,
    top_k_N: Tensor,
    top_p_N: Tensor,
    num_candidates: int,
    *,
    block: int = _BLOCK,
) -> Tensor:
    """See `sampling.least_kept`; the scores are contiguous, and candidates are not picked."""
    vocab_size = scores_NV.shape[1]
    given = (scores_NV, scores_NV.amax(1), top_k_N, top_p_N)
    return _least_kept(*given, vocab_size, None, block)


def least_kept_of_shares(
    scores_NU: Tensor,
    highest_N: Tensor,
    top_k_N: Tensor,
    top_p_N: Tensor,
    vocab_size: int,
    add: Add,
    *,
    block: int = _BLOCK,
) -> Tensor:
    """See `shared_cut.least_kept`; the scores are contiguous."""
    return _least_kept(scores_NU, highest_N, top_k_N, top_p_N, vocab_size, add, block)


def _least_kept(
    scores_NV: Tensor,
    highest_N: Tensor,
    top_k_N: Tensor,
    top_p_N: Tensor,
    vocab_size: int,
    add: Add | None,
    block: int,
) -> Tensor:
    num_rows, share_size = scores_NV.shape
    sums_2NPS = scores_NV.new_zeros((2, num_rows, _PASSES.value, _PIVOTS.value), dtype=torch.int64)
    least_N = torch.empty_like(highest_N)
    given = (highest_N, top_k_N, top_p_N, sums_2NPS[0], sums_2NPS[1])
    grid = (tiles_of(share_size, block), num_rows, 1)
    for by_weight in (False, True):
        for number in range(_PASSES.value):
            sizes = (share_size, vocab_size, block)
            launch(pass_kernel, grid, scores_NV, *given, number, by_weight, *sizes, warps=8)
            if add is not None:
                sum_NS = sums_2NPS[int(by_weight), :, number]
                sum_NS.copy_(add(sum_NS.contiguous()))
    launch(cut_kernel, (num_rows, 1, 1), *given, least_N, vocab_size, warps=1)
    return least_N
