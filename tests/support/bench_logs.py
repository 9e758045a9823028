"""Hand-made event logs for the tests of `glimt bench`."""

from collections.abc import Sequence
from typing import Any

from glimt.bench.events import EventLog, RequestEvent, RunEnd, RunStart

MS = 1_000_000


def request(
    index: int = 0, *, start_ms: float = 0.0, at_ms: Sequence[float], **fields: Any
) -> RequestEvent:
    """A successful request that starts at `start_ms` and has chunks at `at_ms` (of the run)."""
    start_ns = round(start_ms * MS)
    chunk_ns = [round(at * MS) for at in at_ms]
    end_ns = chunk_ns[-1] if chunk_ns else start_ns
    known: dict[str, Any] = {
        "index": index,
        "intended_ns": start_ns,
        "fired_ns": start_ns,
        "admitted_ns": start_ns,
        "start_ns": start_ns,
        "sent_ns": start_ns,
        "headers_ns": chunk_ns[0] if chunk_ns else None,
        "end_ns": end_ns,
        "status": 200,
        "finish_reason": "length",
        "chunk_ns": chunk_ns,
        "chunk_kinds": "c" * len(chunk_ns),
        "chunk_chars": [4] * len(chunk_ns),
        "prompt_tokens": 10,
        "completion_tokens": len(chunk_ns),
        "asked_tokens": len(chunk_ns),
    }
    return RequestEvent(**(known | fields))


def log_of(
    requests: Sequence[RequestEvent], *, end_ms: float | None = None, **start: Any
) -> EventLog:
    """A run of these requests, which ends with the last of them unless told."""
    last_ns = max((event.end_ns for event in requests), default=0)
    known: dict[str, Any] = {
        "date": "20260101-000000",
        "backend": "openai-chat",
        "model": "m",
        "num_prompts": len(requests),
        "request_rate": 10.0,
    }
    return EventLog(
        start=RunStart(**(known | start)),
        requests=list(requests),
        end=RunEnd(end_ns=last_ns if end_ms is None else round(end_ms * MS)),
    )


def run_with(ttft_ms: float, **start: object) -> EventLog:
    """Ten requests with this TTFT and three tokens 10 ms apart."""
    requests = [
        request(
            k,
            start_ms=100 * k,
            at_ms=[100 * k + ttft_ms + 10 * t for t in range(3)],
            prompt_tokens=k,
        )
        for k in range(10)
    ]
    return log_of(requests, **start)
