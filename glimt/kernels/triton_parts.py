"""Parts of rows' contexts: how many there are, and how the part that ends last combines them.

Each part leaves its mean and the weight of it, then takes a ticket of its row and key-value head;
who gets the last one weighs all parts and puts the tickets back to zero for the next launch. So no
second launch waits for the first. Parts are added up in their order, whichever came last. X splits.
"""

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from glimt.kernels.triton_support import power_of_two, tiles_of, to_bf16

COMBINE_AT_ONCE = 0  # 1: the last part of a row combines them; 0: a second kernel does
WAVES = 0  # 0: splits by `PROGRAMS`; else a lone program's time in percent of a full wave's
PROGRAMS = 4 * 132  # wanted at least, at WAVES 0
MAX_SPLITS = 64

_PROCESSORS = 132
_RESIDENT = {1: 3, 2: 5}  # programs on a processor, by bytes of a cached number: see its registers
_RESIDENT_AT_ONCE = {1: 3, 2: 4}  # … that combine parts as well
_START_TOKENS = 32  # of a full wave, in whose time a program starts and ends
_PART_TOKENS = 16  # … and stores and reads a part
_COMBINE_TOKENS = 32  # … and the parts of the last row are combined
_LEAST_TICKETS = 4096
_AT_ONCE = tl.constexpr(4)  # parts that are loaded at once: 64 registers of each thread
_GRAPHS = -1  # the stream of all graphs of a cache, of which one runs at a time

_TICKETS: dict[tuple[torch.device, int, int, int], Tensor] = {}


def splits_and_tickets(
    kv_P2GSH: Tensor, num_rows: int, max_context_len: int, least_tokens: int, splits: int | None
) -> tuple[int, Tensor | None]:
    """How many parts contexts have (`splits` if that is said), and what `came_last` takes to
    combine them at once; None where there is one part or a second launch combines."""
    count = num_rows * kv_P2GSH.shape[2]
    if splits is None:
        splits = num_splits(count, max_context_len, least_tokens, kv_P2GSH.itemsize)
    at_once = splits > 1 and COMBINE_AT_ONCE
    return splits, tickets_for(kv_P2GSH, count) if at_once else None


def num_splits(num_programs: int, max_context_len: int, least_tokens: int, value_bytes: int) -> int:
    """Parts of a context, where one part each makes `num_programs`.

    Enough for the device, not more than are worth it, and at least enough that a row of the
    longest context does not keep the others waiting. `value_bytes` of the cache's numbers.
    """
    most = max(1, min(tiles_of(max_context_len, least_tokens), MAX_SPLITS))
    least = max(max_context_len // 4096, 1)
    if WAVES == 0:
        return min(max(PROGRAMS // num_programs, least), most)
    rooms = tuple(_PROCESSORS * resident(value_bytes, combines) for combines in (False, True))
    return _cheapest(num_programs, max_context_len / 2, min(least, most), most, rooms, WAVES)


def resident(value_bytes: int, combines: bool) -> int:
    """Programs that a processor runs at a time, of those that have parts to combine or none."""
    at_once = combines and COMBINE_AT_ONCE
    return (_RESIDENT_AT_ONCE if at_once else _RESIDENT)[min(value_bytes, 2)]


@functools.lru_cache(maxsize=1024)
def _cheapest(
    num_programs: int,
    tokens: float,
    least: int,
    most: int,
    rooms: tuple[int, ...],
    alone_percent: int,
) -> int:
    """The splits, least … most, of which the whole takes least time; time is in tokens of a wave.

    A full wave of programs takes as long as its contexts' bytes. A last one that is not full has
    fewer bytes, but a program that has the memory for itself still takes `alone_percent` of the
    time. Lengths differ, so `tokens` of a context is no more than a guess, and no ends are rounded.
    """

    def cost(splits: int) -> float:
        room = rooms[splits > 1]
        whole, rest = divmod(num_programs * splits, room)
        waves = whole + (max(rest / room, alone_percent / 100) if rest else 0.0)
        if splits == 1:
            return waves * (tokens + _START_TOKENS)
        parts = waves * (tokens / splits + _START_TOKENS + _PART_TOKENS)
        return parts + _COMBINE_TOKENS + splits

    return min(range(least, most + 1), key=cost)


def tickets_for(kv_P2GSH: Tensor, count: int) -> Tensor:
    """`count` zeros or more, int32, that launches over this cache on this stream leave as zeros.

    Each stream has its own; graphs of one cache, which run one at a time, have theirs. A graph
    recorded before any launch as usual makes its own, and zeroes them with each replay.
    """
    size = max(_LEAST_TICKETS, power_of_two(count))
    stream, is_recorded = 0, False
    if kv_P2GSH.is_cuda:
        is_recorded = torch.cuda.is_current_stream_capturing()
        stream = torch.cuda.current_stream(kv_P2GSH.device).cuda_stream
    place = (kv_P2GSH.device, kv_P2GSH.untyped_storage().data_ptr(), size)
    key = (*place, _GRAPHS if is_recorded else stream)
    tickets = _TICKETS.get(key)
    if tickets is not None:
        return tickets
    tickets = torch.zeros(size, dtype=torch.int32, device=kv_P2GSH.device)
    if not is_recorded:
        _TICKETS[key] = tickets
        _TICKETS.setdefault((*place, _GRAPHS), torch.zeros_like(tickets))
    return tickets


@triton.jit
def store_part(
    mean_MH, weight_M, part_ptr, weight_ptr, split, num_splits,
    by_split: tl.constexpr, QUERIES: tl.constexpr, HEAD_DIM: tl.constexpr,
):  # fmt: skip
    """One part of some heads, whose first part's places are given.

    All heads of a part lie together, `by_split`, or all parts of a head.
    """
    m_M, h_H = tl.arange(0, mean_MH.shape[0]), tl.arange(0, mean_MH.shape[1])
    place_M = split * QUERIES + m_M if by_split else m_M * num_splits + split
    there_MH = (m_M < QUERIES)[:, None] & (h_H < HEAD_DIM)[None]
    tl.store(part_ptr + place_M[:, None] * HEAD_DIM + h_H[None], mean_MH, mask=there_MH)
    tl.store(weight_ptr + place_M, weight_M, mask=m_M < QUERIES)


@triton.jit
def combine_parts(
    part_ptr, weight_ptr, num_parts, out_ptr, largest_ptr,
    QUERIES: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    """Store the mean of parts, which `store_part` put `by_split`, by their weights.

    Read as rows of all heads of a part: that each thread adds up the parts of its own numbers.
    """
    m_M, i_I = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_M * BLOCK_H)
    at_I = i_I // BLOCK_H * HEAD_DIM + i_I % BLOCK_H
    is_number_I = (i_I // BLOCK_H < QUERIES) & (i_I % BLOCK_H < HEAD_DIM)
    top_M = tl.where(m_M < QUERIES, float("-inf"), 0.0)
    sum_M = tl.zeros([BLOCK_M], tl.float32)
    acc_MH = tl.zeros([BLOCK_M, BLOCK_H], tl.float32)
    for first in range(0, num_parts, _AT_ONCE):
        split_X = first + tl.arange(0, _AT_ONCE)
        is_part_X1 = (split_X < num_parts)[:, None]
        part_XI = tl.load(
            part_ptr + split_X[:, None] * (QUERIES * HEAD_DIM) + at_I[None],
            mask=is_part_X1 & is_number_I[None], other=0.0, cache_modifier=".cg",
        )  # fmt: skip
        weight_XM = tl.load(
            weight_ptr + split_X[:, None] * QUERIES + m_M[None],
            mask=is_part_X1 & (m_M < QUERIES)[None], other=float("-inf"), cache_modifier=".cg",
        )  # fmt: skip
        new_top_M = tl.maximum(top_M, tl.max(weight_XM, 0))
        fade_M, top_M = tl.exp2(top_M - new_top_M), new_top_M
        weight_XM = tl.exp2(weight_XM - top_M[None])
        sum_M = sum_M * fade_M + tl.sum(weight_XM, 0)
        part_XMH = tl.reshape(part_XI, [_AT_ONCE, BLOCK_M, BLOCK_H])
        acc_MH = acc_MH * fade_M[:, None] + tl.sum(part_XMH * weight_XM[:, :, None], 0)
    mean_MH = acc_MH / tl.where(m_M < QUERIES, sum_M, 1.0)[:, None]
    store_means(mean_MH, out_ptr, largest_ptr, QUERIES, HEAD_DIM)


@triton.jit
def store_means(
    mean_MH, out_ptr, largest_ptr, QUERIES: tl.constexpr, HEAD_DIM: tl.constexpr
):  # fmt: skip
    """Heads of the result, and with `largest_ptr` the largest magnitude of each."""
    m_M, h_H = tl.arange(0, mean_MH.shape[0]), tl.arange(0, mean_MH.shape[1])
    there_MH = (m_M < QUERIES)[:, None] & (h_H < HEAD_DIM)[None]
    place_MH = m_M[:, None] * HEAD_DIM + h_H[None]
    tl.store(out_ptr + place_MH, mean_MH.to(out_ptr.dtype.element_ty), mask=there_MH)
    if largest_ptr is not None:
        largest_M = tl.max(tl.abs(to_bf16(mean_MH).to(tl.float32)), 1)
        tl.store(largest_ptr + m_M, largest_M, mask=m_M < QUERIES)
