"""Sum over GPUs, residual add, norm and quantisation of few rows in one kernel.

Every rank pushes its part of a row into the memory of all others and waits for theirs in its own,
so a row crosses the link once and nobody asks for anything. A part travels as 32-bit words, each
a bfloat16 number in the upper half and in the lower one how often this row has been summed:
words say themselves that they have come (as NCCL's "LL" protocol), so there is no barrier, nothing
is reset, and the count is on the device, which lets graphs replay it. A part that is itself a sum
which its branch left over (`pending`) is carried out on the way.

Two places for each row suffice: a rank that pushes sum n + 2 has seen all parts of sum n + 1,
so every other rank has ended the kernel of sum n. The place of sum n + 2 holds words of sum n,
which cannot be mistaken for it.

A wait is bounded. Who waited in vain gets NaN, which ends the requests of the row.

Letters: T tokens, D width, W ranks.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from glimt.kernels.pending import Delta
from glimt.kernels.reference import QuantizedRows
from glimt.kernels.triton_rows import added_row, quantized_like, row_shape, store_normed, terms
from glimt.kernels.triton_support import launch, to_bf16

_COUNT = tl.constexpr(0xFFFF)  # the bits of a word that count
_MAX_WARPS = 16
PATIENCE = 2**31 - 1  # looks at memory, each about a microsecond: a rank may compile meanwhile


@dataclass(frozen=True, slots=True)
class PeerRows:
    """Memory of all ranks for the parts of up to `max_rows` rows of `width` numbers.

    `address_W`, int64: where each rank's words [2, W, max_rows, width] (int32, zeros at the start)
    lie, seen from here. `count_T`, int32 [max_rows], zeros at the start: sums so far of each row.
    """

    address_W: Tensor
    count_T: Tensor
    rank: int
    max_rows: int
    width: int

    @property
    def num_ranks(self) -> int:
        """W, a power of two."""
        return self.address_W.shape[0]


def num_words(num_ranks: int, max_rows: int, width: int) -> int:
    """Words of memory that a rank needs."""
    return 2 * num_ranks * max_rows * width


def peer_rows(words: Sequence[Tensor], rank: int, max_rows: int, width: int) -> PeerRows:
    """Of the memory of each rank, as it is seen from `rank`."""
    own = words[rank]
    return PeerRows(
        address_W=torch.tensor([tensor.data_ptr() for tensor in words], device=own.device),
        count_T=torch.zeros(max_rows, dtype=torch.int32, device=own.device),
        rank=rank,
        max_rows=max_rows,
        width=width,
    )


def slots(words: Tensor, peers: PeerRows, count: int) -> Tensor:
    """[W, max_rows, D] of one rank's memory: where the parts of sum `count` lie."""
    return words.view(2, peers.num_ranks, peers.max_rows, peers.width)[count & 1]


def as_words(part: Tensor, count: int) -> Tensor:
    """What the numbers of a part travel as in sum `count`."""
    words: Tensor = (part.view(torch.int16).int() << 16) | (count & _COUNT.value)
    return words


@triton.jit(do_not_specialize=["rank", "patience", "num_rows"])
def sum_norm_kernel(
    part_ptr, factor_ptr, other_ptr, x_ptr, weight_ptr, address_ptr, count_ptr, normed_ptr, sum_ptr,
    q_ptr, scale_ptr, rank, patience, eps, num_rows,
    width: tl.constexpr, block: tl.constexpr,
    kind: tl.constexpr, addends: tl.constexpr, num_experts: tl.constexpr,
    num_ranks: tl.constexpr, max_rows: tl.constexpr, quantizes: tl.constexpr,
):  # fmt: skip
    """One row: push, wait, and what `triton_rows.rms_norm_kernel` does."""
    row = tl.program_id(0).to(tl.int64)
    # Four numbers for each thread whatever their type, or they would be dealt out anew.
    column = tl.max_contiguous(tl.arange(0, block), 4)
    inside = column < width
    at = row * width + column
    weight = tl.load(weight_ptr + column, mask=inside, other=0.0).to(tl.float32)
    count = tl.load(count_ptr + row) + 1
    part = added_row(
        part_ptr, factor_ptr, other_ptr, row, num_rows, column, inside,
        width, kind, addends, num_experts,
    )  # fmt: skip
    # The lower half of a float32 that is a bfloat16 number is zero.
    words = part.to(tl.int32, bitcast=True) | (count & _COUNT)
    of_rank: tl.constexpr = max_rows * width  # words
    place = (count & 1).to(tl.int64) * (num_ranks * of_rank)
    for step in tl.static_range(num_ranks):
        peer = (rank + 1 + step) % num_ranks  # itself last
        theirs = tl.load(address_ptr + peer).to(tl.pointer_type(tl.int32))
        theirs = tl.multiple_of(theirs, 16)
        tl.store(theirs + place + rank * of_rank + at, words, mask=inside)
    x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    own = tl.multiple_of(tl.load(address_ptr + rank).to(tl.pointer_type(tl.int32)), 16)
    source = tl.arange(0, num_ranks)
    slots = own + place + source[:, None] * of_rank + at[None, :]
    arrived = tl.load(slots, mask=inside[None, :], other=0, volatile=True)
    num_missing = _num_missing(arrived, count, inside)
    while (num_missing > 0) & (patience > 0):
        arrived = tl.load(slots, mask=inside[None, :], other=0, volatile=True)
        num_missing = _num_missing(arrived, count, inside)
        patience -= 1
    parts = (arrived & ~_COUNT).to(tl.float32, bitcast=True)
    parts = tl.where(num_missing > 0, float("nan"), parts)
    total = to_bf16(x + to_bf16(tl.sum(parts, axis=0)).to(tl.float32))
    tl.store(sum_ptr + at, total, mask=inside)
    x = total.to(tl.float32)
    store_normed(x, weight, normed_ptr, q_ptr, scale_ptr, column, eps, width, quantizes)
    tl.store(count_ptr + row, count)


@triton.jit
def _num_missing(arrived, count, inside):
    """How many words are not yet of sum `count`."""
    is_old = ((arrived ^ count) & _COUNT) != 0
    return tl.sum(tl.sum((is_old & inside[None, :]).to(tl.int32), axis=0), axis=0)


def sum_add_rms_norm(
    part_TD: Delta,
    x_TD: Tensor,
    weight_D: Tensor,
    eps: float,
    peers: PeerRows,
    *,
    quantizes: bool,
    patience: int = PATIENCE,
) -> tuple[QuantizedRows, Tensor]:
    """`reference.add_rms_norm_quantize` of x and the sum of all ranks' parts; its q and scale mean
    nothing unless it `quantizes`.

    bfloat16, with 1 ≤ T ≤ max_rows and D a multiple of 8. Parts are added in float32 in the order
    of the ranks and rounded once, so all ranks get the same bits. A rank's part may be a sum that
    is still to be carried out; it is rounded as if it had been. All ranks must call this, in the
    same order.
    """
    num_tokens, width = x_TD.shape
    normed_TD, sum_TD = torch.empty_like(x_TD), torch.empty_like(x_TD)
    q_TD, scale_T1 = quantized_like(normed_TD) if quantizes else (normed_TD, normed_TD)
    block, warps = row_shape(width)
    given, constants = terms(x_TD, part_TD)
    # Threads hold a number of each rank's, and more where they add first.
    warps *= peers.num_ranks // (2 if isinstance(part_TD, Tensor) else 1)
    launch(
        sum_norm_kernel,
        (num_tokens, 1, 1),
        *given,
        x_TD,
        weight_D,
        peers.address_W,
        peers.count_T,
        normed_TD,
        sum_TD,
        q_TD,
        scale_T1,
        peers.rank,
        patience,
        eps,
        num_tokens,
        width,
        block,
        *constants,
        peers.num_ranks,
        peers.max_rows,
        quantizes,
        warps=min(_MAX_WARPS, warps),
    )
    return QuantizedRows(normed_TD, q_TD, scale_T1), sum_TD
