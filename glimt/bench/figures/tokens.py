"""From the chunks of one answer to its tokens: how many came when.

Servers put one or several tokens into a chunk, and some tokens into none. Where the server counts
along, its counts are used; otherwise the total that it reports is spread over the chunks by the
length of their texts, so that the sum is always the reported one.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from glimt.bench.events import RequestEvent

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class TokenTimes:
    """The chunks of an answer that carry tokens: arrival in ns (strictly the log's), and tokens."""

    at_ns: IntArray
    counts: IntArray


def token_times(event: RequestEvent, *, by_chunk: bool = False) -> TokenTimes:
    """Which tokens came when. With `by_chunk` each chunk is one token, as vLLM's client counts.

    A last chunk with an empty text ("e") is a token if the server's total says so: if there are
    fewer other chunks than tokens, or no total. An end token that is counted and not sent at all is
    left out.
    """
    kinds = np.frombuffer(event.chunk_kinds.encode("ascii"), np.uint8)
    is_kept = np.ones(len(kinds), bool)
    total = event.completion_tokens
    is_end_mark = kinds == ord("e")
    if not by_chunk and total and is_end_mark.any() and int((~is_end_mark).sum()) >= total:
        is_kept = ~is_end_mark
    at_ns = np.asarray(event.chunk_ns, np.int64)[is_kept]
    if by_chunk or not total:
        return TokenTimes(at_ns, np.ones(len(at_ns), np.int64))
    if event.chunk_tokens is not None:
        counts = np.asarray(event.chunk_tokens, np.int64)[is_kept]
    else:
        if event.finish_reason == "stop" and total == len(at_ns) + 1:
            total -= 1
        counts = spread(total, np.asarray(event.chunk_chars, np.float64)[is_kept])
    return TokenTimes(at_ns, counts)


def spread(total: int, weights: FloatArray) -> IntArray:
    """Whole numbers that sum up to `total`, in proportion to the weights, if possible none zero.

    Largest remainders first; among equals the earlier.
    """
    size = len(weights)
    if size == 0:
        return np.zeros(0, np.int64)
    if total == size:
        return np.ones(size, np.int64)
    base = np.full(size, 1 if total > size else 0, np.int64)
    left = total - int(base.sum())
    weights = weights if weights.sum() > 0 else np.ones(size)
    exact = left * weights / weights.sum()
    counts: IntArray = np.floor(exact).astype(np.int64)
    missing = left - int(counts.sum())
    order = np.argsort(counts - exact, kind="stable")
    counts[order[:missing]] += 1
    counts += base
    return counts


def output_tokens(event: RequestEvent) -> int:
    """Generated tokens: the server's count, or that of the chunks where it reports none."""
    return event.completion_tokens or len(event.chunk_ns)


def gaps_per_chunk(times: TokenTimes) -> FloatArray:
    """Seconds between consecutive chunks."""
    return np.diff(times.at_ns) / 1e9


def gaps_per_token(times: TokenTimes) -> FloatArray:
    """Seconds between consecutive tokens: a chunk of k tokens gives k gaps of a k-th each.

    The sum is the time from the first chunk to the last. Of the first chunk's tokens all but the
    first would have gap 0 and are left out.
    """
    gaps, counts = np.diff(times.at_ns) / 1e9, times.counts[1:]
    if len(counts) == 0:
        return np.zeros(0)
    if counts.min() > 0:
        return np.repeat(gaps / counts, counts)
    # A chunk without a token of its own: its gap belongs to the next chunk that has one.
    is_full = counts > 0
    if not is_full.any():
        return np.array([gaps.sum()])
    edges = np.concatenate(([0.0], np.cumsum(gaps)[is_full]))
    edges[-1] = gaps.sum()
    return np.repeat(np.diff(edges) / counts[is_full], counts[is_full])
