"""The successful requests of a run as arrays, one entry each, and their pooled gaps: seconds."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from glimt.bench.events import RequestEvent
from glimt.bench.figures.tokens import (
    TokenTimes,
    gaps_per_chunk,
    gaps_per_token,
    output_tokens,
    token_times,
)

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Arrays over successful requests, except for the pooled `itl` and `chunk_gap`.

    ttft: start to the first generated token of any kind. ttfo: to the first that a user sees, not
    thinking; NaN where none came. tpot: (e2el - ttft) / (tokens - 1), NaN for one-token answers.
    e2el: start to the last token. ttft and e2el _from_intended count from the moment at which the
    schedule wanted the request to leave. connect (NaN where an open connection was used), upload
    and headers (the last byte sent to the answer's headers) follow each other from the start.
    """

    ttft: FloatArray
    ttfo: FloatArray
    ttst: FloatArray
    tpot: FloatArray
    e2el: FloatArray
    ttft_from_intended: FloatArray
    e2el_from_intended: FloatArray
    queue: FloatArray
    lag: FloatArray
    connect: FloatArray
    upload: FloatArray
    headers: FloatArray
    itl: FloatArray
    chunk_gap: FloatArray
    tokens: IntArray
    starts_ns: IntArray
    ends_ns: IntArray  # the last token
    token_ns: IntArray  # every token chunk of every request
    token_counts: IntArray

    def tpot_or_zero(self) -> FloatArray:
        """For objectives: a one-token answer meets every limit."""
        return np.nan_to_num(self.tpot, nan=0.0)


def measure(events: Sequence[RequestEvent], *, by_chunk: bool = False) -> Measured:
    """Measure successful requests; `by_chunk` as in `token_times`."""
    times = [token_times(event, by_chunk=by_chunk) for event in events]
    rows = [_row(event, each) for event, each in zip(events, times, strict=True)]
    table = np.array(rows, np.float64).reshape(len(rows), 12).T
    per_token = gaps_per_chunk if by_chunk else gaps_per_token
    return Measured(
        ttft=table[0],
        ttfo=table[1],
        ttst=table[2],
        tpot=table[3],
        e2el=table[4],
        ttft_from_intended=table[5],
        e2el_from_intended=table[6],
        queue=table[7],
        lag=table[8],
        connect=table[9],
        upload=table[10],
        headers=table[11],
        itl=_pooled([per_token(each) for each in times]),
        chunk_gap=_pooled([gaps_per_chunk(each) for each in times]),
        tokens=np.array([output_tokens(event) for event in events], np.int64),
        starts_ns=np.array([event.start_ns for event in events], np.int64),
        ends_ns=np.array([each.at_ns[-1] for each in times], np.int64),
        token_ns=_pooled_ints([each.at_ns for each in times]),
        token_counts=_pooled_ints([each.counts for each in times]),
    )


def send_lag_ns(event: RequestEvent) -> int:
    """How late the client itself was: from the intended time to its turn, and from the concurrency
    limit's leave to the connection. Waiting for the limit is not among it."""
    return (event.fired_ns - event.intended_ns) + (event.start_ns - event.admitted_ns)


def _row(event: RequestEvent, times: TokenTimes) -> tuple[float, ...]:
    first, last = int(times.at_ns[0]), int(times.at_ns[-1])
    tokens = output_tokens(event)
    visible = event.chunk_kinds.find("c")
    ready_ns = event.start_ns if event.connected_ns is None else event.connected_ns
    sent_ns = ready_ns if event.sent_ns is None else event.sent_ns
    return (
        (first - event.start_ns) / 1e9,
        (event.chunk_ns[visible] - event.start_ns) / 1e9 if visible >= 0 else np.nan,
        _second_token(times, event.start_ns),
        (last - first) / 1e9 / (tokens - 1) if tokens > 1 else np.nan,
        (last - event.start_ns) / 1e9,
        (first - event.intended_ns) / 1e9,
        (last - event.intended_ns) / 1e9,
        (event.admitted_ns - event.fired_ns) / 1e9,
        send_lag_ns(event) / 1e9,
        np.nan if event.connected_ns is None else (ready_ns - event.start_ns) / 1e9,
        (sent_ns - ready_ns) / 1e9,
        np.nan if event.headers_ns is None else (event.headers_ns - sent_ns) / 1e9,
    )


def _second_token(times: TokenTimes, start_ns: int) -> float:
    """Start to the second token, which may come with the first."""
    reached = np.flatnonzero(np.cumsum(times.counts) >= 2)
    return (int(times.at_ns[reached[0]]) - start_ns) / 1e9 if len(reached) else np.nan


def _pooled(parts: Sequence[FloatArray]) -> FloatArray:
    return np.concatenate(parts) if parts else np.zeros(0)


def _pooled_ints(parts: Sequence[IntArray]) -> IntArray:
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)
