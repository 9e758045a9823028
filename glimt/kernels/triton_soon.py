"""Weights that a later product reads, fetched into the L2 cache by the end of an earlier one.

Between two large products of a decode step small kernels leave the memory idle, for longer than
the products themselves take on several GPUs. The programs of a product that have read their own
weights share between them what is read next, and leave without waiting for it.
"""

from collections.abc import Sequence
from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from glimt.kernels.triton_support import INTERPRETED, fetch_ahead, power_of_two, tiles_of

# MiB that the end of a product has fetched, at most; below zero as many, line by line. Off until a
# GPU has shown what it is worth (`--switch soon_mib=16` of the benchmarks).
SOON_MIB = 0

_PIECE = tl.constexpr(16384)  # bytes: of smaller ones there are more, and a warp asks one by one
_MOST = 3  # tensors


class _Part(NamedTuple):
    """Pieces of a tensor, evenly spread, so that all programs that read it have as many."""

    pieces: int
    step: int


class Soon(NamedTuple):
    """What a kernel is given: its `soon_…` addresses, and the constants after them."""

    tensors: tuple[Tensor | None, ...]
    constants: tuple[int, ...]


_NOTHING = Soon((None,) * _MOST, (0, 0) * _MOST + (0, 1, 1))


def soon_of(tensors: Sequence[Tensor], num_programs: int) -> Soon:
    """What each of so many programs fetches of tensors that are read soon, the first ones first."""
    if not SOON_MIB or INTERPRETED.value:
        return _NOTHING
    return shares(tensors, num_programs, abs(SOON_MIB) << 20)


def shares(tensors: Sequence[Tensor], num_programs: int, most_bytes: int) -> Soon:
    """`soon_of` with a limit of its own."""
    left = most_bytes // _PIECE.value
    given, parts = list[Tensor | None](), list[_Part]()
    for tensor in tensors[:_MOST]:
        pieces = tensor.numel() * tensor.itemsize // _PIECE.value
        count = min(pieces, left)
        if count:
            given.append(tensor)
            parts.append(_Part(count, pieces // count))
            left -= count
    share = tiles_of(sum(part.pieces for part in parts), num_programs)
    spare = _MOST - len(parts)
    numbers = [*(number for part in parts for number in part), *[0, 0] * spare]
    sizes = (share, power_of_two(max(1, share)), 1 if SOON_MIB > 0 else -1)
    return Soon((*given, *[None] * spare), (*numbers, *sizes))


@triton.jit
def piece_of(
    number,
    count_0: tl.constexpr,
    step_0: tl.constexpr,
    count_1: tl.constexpr,
    step_1: tl.constexpr,
    count_2: tl.constexpr,
    step_2: tl.constexpr,
):
    """(tensor, byte in it) of pieces by number; tensor 3 is none."""
    in_1 = number - count_0
    in_2 = in_1 - count_1
    tensor = (in_1 >= 0).to(tl.int32) + (in_2 >= 0).to(tl.int32) + (in_2 >= count_2).to(tl.int32)
    place = tl.where(tensor == 0, number * step_0, in_1 * step_1)
    place = tl.where(tensor < 2, place, in_2 * step_2)
    return tensor, place.to(tl.int64) * _PIECE


@triton.jit
def program_number():
    """This program's number among all of the launch."""
    return tl.program_id(0) + tl.num_programs(0) * (
        tl.program_id(1) + tl.num_programs(1) * tl.program_id(2)
    )


@triton.jit
def fetch_soon(
    program,
    ptr_0,
    ptr_1,
    ptr_2,
    count_0: tl.constexpr,
    step_0: tl.constexpr,
    count_1: tl.constexpr,
    step_1: tl.constexpr,
    count_2: tl.constexpr,
    step_2: tl.constexpr,
    share: tl.constexpr,
    block: tl.constexpr,
    sign: tl.constexpr,
):
    """Have the share of a program, by its number, fetched, and do not wait for it."""
    if share > 0:
        own = tl.arange(0, block)
        tensor, place = piece_of(
            program * share + own, count_0, step_0, count_1, step_1, count_2, step_2
        )
        base = tl.full([block], 0, tl.int64) + ptr_0.to(tl.int64)
        if ptr_1 is not None:
            base = tl.where(tensor == 1, ptr_1.to(tl.int64), base)
        if ptr_2 is not None:
            base = tl.where(tensor == 2, ptr_2.to(tl.int64), base)
        fetch_ahead(base + place, (own < share) & (tensor < 3), sign * _PIECE)
