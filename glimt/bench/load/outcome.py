"""From what one exchange brought to its line in the event log.

A request succeeded if it was answered with 200, a finish reason, at least one token and no error.
Everything else is a failure with a class of its own and as much of the server's words as it sent.
"""

import dataclasses
import re
from dataclasses import dataclass
from typing import Any

import msgspec

from glimt.bench.events import Failure, Phase, RequestEvent
from glimt.bench.load.dialects import Answer, Dialect
from glimt.bench.load.http import Exchange
from glimt.bench.load.sse import messages

_MAX_ERROR_CHARS = 500
_LAST_READS = 4  # an error is the last or the last but one event of its stream
_ERROR = re.compile(rb'"error"\s*:\s*(?!null)|event: error')  # in texts quotes are escaped


@dataclass(frozen=True, slots=True, kw_only=True)
class Circumstances:
    """What the client knows of a request without its answer; times on the process's clock."""

    index: int
    phase: Phase
    conversation: int
    turn: int = 0
    worker: int = 0
    intended_ns: int
    fired_ns: int
    admitted_ns: int = 0
    asked_tokens: int
    text_tokens: int | None = None
    num_images: int = 0
    image_pixels: int = 0
    body_bytes: int = 0
    model: str | None = None

    def admitted(self, at_ns: int, body_bytes: int) -> "Circumstances":
        """The same, once the concurrency limit has let the request pass."""
        return dataclasses.replace(self, admitted_ns=at_ns, body_bytes=body_bytes)


def answer_of(exchange: Exchange, dialect: Dialect) -> Answer:
    """The answer as far as it came."""
    if exchange.status != 200:
        return Answer()
    return dialect(messages(exchange.reads))


def describe(
    what: Circumstances, exchange: Exchange, answer: Answer, *, zero_ns: int, keep_texts: bool
) -> RequestEvent:
    """The event of a request that was judged. `zero_ns` is where the log's times start."""
    usage = answer.usage
    details = usage.get("prompt_tokens_details") or {}
    out_details = usage.get("completion_tokens_details") or {}

    def shifted(at_ns: int | None) -> int | None:
        return None if at_ns is None else at_ns - zero_ns

    return RequestEvent(
        index=what.index,
        phase=what.phase,
        conversation=what.conversation,
        turn=what.turn,
        worker=what.worker,
        intended_ns=what.intended_ns - zero_ns,
        fired_ns=what.fired_ns - zero_ns,
        admitted_ns=what.admitted_ns - zero_ns,
        start_ns=exchange.start_ns - zero_ns,
        connected_ns=shifted(exchange.connected_ns),
        sent_ns=shifted(exchange.sent_ns),
        headers_ns=shifted(exchange.headers_ns),
        end_ns=exchange.end_ns - zero_ns,
        status=exchange.status,
        failure=exchange.failure,
        error=exchange.error[:_MAX_ERROR_CHARS],
        finish_reason=answer.finish_reason,
        chunk_ns=[at_ns - zero_ns for at_ns in answer.chunk_ns],
        chunk_kinds="".join(answer.kinds),
        chunk_chars=answer.chars,
        chunk_tokens=tokens_per_chunk(answer),
        num_reads=exchange.num_reads,
        prompt_tokens=_count(usage, "prompt_tokens"),
        completion_tokens=_count(usage, "completion_tokens"),
        reasoning_tokens=_count(out_details, "reasoning_tokens"),
        cached_tokens=_count(details, "cached_tokens"),
        image_tokens=_count(details, "image_tokens"),
        asked_tokens=what.asked_tokens,
        text_tokens=what.text_tokens,
        num_images=what.num_images,
        image_pixels=what.image_pixels,
        body_bytes=what.body_bytes,
        server_queue_ms=_number(answer.server, "queue_time_ms"),
        server_ttft_ms=_number(answer.server, "time_to_first_token_ms"),
        model=what.model,
        content="".join(answer.content) if keep_texts else None,
        reasoning="".join(answer.reasoning) if keep_texts else None,
    )


def judge(exchange: Exchange, answer: Answer) -> tuple[Failure | None, str]:
    """The class of the failure and its words; (None, "") for a success."""
    if exchange.failure is not None and exchange.status in (None, 200):
        return exchange.failure, exchange.error
    if exchange.status != 200:
        return "http", refusal(exchange)
    if answer.is_broken:
        return "broken", answer.error
    if answer.error:
        return "error_event", answer.error
    if answer.finish_reason is None:
        return "truncated", "the stream ended without a finish reason"
    if not answer.chunk_ns:
        return "no_tokens", "the answer is complete and has no token"
    return None, ""


def refusal(exchange: Exchange) -> str:
    """The status of an answer that is none, and what the server says of it."""
    return f"{exchange.status}: {_told(exchange.body())}"


def told_error(exchange: Exchange, dialect: Dialect) -> str:
    """What an error within a stream says, or "": only an answer whose end has one is read."""
    tail = b"".join(read for _, read in exchange.reads[-_LAST_READS:])
    return answer_of(exchange, dialect).error if _ERROR.search(tail) else ""


def tokens_per_chunk(answer: Answer) -> list[int] | None:
    """How many tokens each chunk brought, if the server counted along.

    A chunk without a count of its own shares that of the next one: it is given what is left, so
    that the sum is always what was told last. None if only the sum at the end was told.
    """
    told = answer.tokens + [-1] * (len(answer.chunk_ns) - len(answer.tokens))
    if sum(total >= 0 for total in told) < 2:
        return None
    counts, before = [], 0
    for total in told:
        counts.append(max(total - before, 0) if total >= 0 else 0)
        before = max(total, before)
    return counts


def _told(body: bytes) -> str:
    """The error of a body in the API's form, or its first words."""
    try:
        error = msgspec.json.decode(body, type=dict[str, Any]).get("error")
    except msgspec.DecodeError:
        error = None
    if isinstance(error, dict) and error.get("message"):
        return str(error["message"])
    return body[:_MAX_ERROR_CHARS].decode("utf-8", "replace")


def _count(fields: dict[str, Any], name: str) -> int | None:
    value = fields.get(name)
    return value if isinstance(value, int) and value >= 0 else None


def _number(fields: dict[str, Any], name: str) -> float | None:
    value = fields.get(name)
    return float(value) if isinstance(value, int | float) else None
