"""Traces: one OpenTelemetry span for each request, sent to a collector as OTLP over HTTP, in JSON.

A request that carries a W3C `traceparent` joins that trace (and is not traced where its sender
decided so). Spans wait in a bounded queue; a collector that is slow or gone costs the server
nothing but a line in the log.
"""

import asyncio
import contextlib
import logging
import re
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import aiohttp
import msgspec

log = logging.getLogger(__name__)

MAX_WAITING = 4096  # spans; the oldest are dropped
MAX_BATCH = 512
INTERVAL_S = 1.0
TIMEOUT_S = 10.0
GOODBYE_S = 2.0  # for what waits when the server leaves
QUIET_S = 60.0  # between two lines about a collector that does not answer

_SERVER = 2  # SpanKind
_ERROR = 2  # StatusCode
_PARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})", re.ASCII)


@dataclass(frozen=True, slots=True)
class Parent:
    """The span that caused a request."""

    trace_id: str  # 32 hexadecimal digits
    span_id: str  # 16
    is_sampled: bool


def parent_of(headers: list[tuple[bytes, bytes]]) -> Parent | None:
    """From `traceparent`; None if there is none, or none that is well-formed."""
    values = [value.decode("latin-1") for name, value in headers if name == b"traceparent"]
    match = _PARENT.fullmatch(values[0]) if len(values) == 1 else None
    if match is None or set(match[1]) == {"0"} or set(match[2]) == {"0"}:
        return None
    return Parent(match[1], match[2], bool(int(match[3], 16) & 1))


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """One request, as it was answered. Times are nanoseconds since 1970."""

    trace_id: str
    span_id: str
    parent_id: str | None
    name: str
    start_ns: int
    end_ns: int
    is_error: bool
    attributes: Mapping[str, str | int | float | None] = field(default_factory=dict)


class Tracer(Protocol):
    """Whoever takes spans."""

    def add(self, span: Span) -> None:
        """Take a span; never waits."""


class TraceExporter:
    """Sends spans to `endpoint` (http://collector:4318/v1/traces). Lives on one event loop."""

    def __init__(
        self, endpoint: str, attributes: Mapping[str, str], clock: Callable[[], float]
    ) -> None:
        """`attributes`: of the resource, such as service.name."""
        self.num_dropped = 0
        self._endpoint = endpoint
        self._resource = {"attributes": _attributes(attributes)}
        self._clock = clock
        self._waiting: deque[Span] = deque()
        self._complained_s = -QUIET_S

    def add(self, span: Span) -> None:
        """Take a span; of too many the oldest is dropped."""
        if len(self._waiting) == MAX_WAITING:
            self._waiting.popleft()
            self.num_dropped += 1
        self._waiting.append(span)

    async def run(self) -> None:
        """Send what waits, for ever; when cancelled, once more."""
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            try:
                while True:
                    await asyncio.sleep(INTERVAL_S)
                    await self.flush(session)
            finally:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(GOODBYE_S):
                        await self.flush(session)

    async def flush(self, session: aiohttp.ClientSession) -> None:
        """Send all that waits. A batch that is not taken is lost."""
        while self._waiting:
            count = min(MAX_BATCH, len(self._waiting))
            batch = [self._waiting.popleft() for _ in range(count)]
            body = msgspec.json.encode(self._request(batch))
            headers = {"Content-Type": "application/json"}
            try:
                async with session.post(self._endpoint, data=body, headers=headers) as answer:
                    if answer.status < 400:
                        continue
                    reason = f"status {answer.status}"
            except (aiohttp.ClientError, TimeoutError) as error:
                reason = type(error).__name__
            self.num_dropped += len(batch)
            self._complain(reason)
            return

    def _complain(self, reason: str) -> None:
        now_s = self._clock()
        if now_s - self._complained_s >= QUIET_S:
            self._complained_s = now_s
            log.warning("traces are lost, the collector does not take them: %s", reason)

    def _request(self, batch: list[Span]) -> dict[str, Any]:
        spans = [_span(span) for span in batch]
        scope = {"scope": {"name": "glimt"}, "spans": spans}
        return {"resourceSpans": [{"resource": self._resource, "scopeSpans": [scope]}]}


def _span(span: Span) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "traceId": span.trace_id,
        "spanId": span.span_id,
        "name": span.name,
        "kind": _SERVER,
        "startTimeUnixNano": str(span.start_ns),
        "endTimeUnixNano": str(span.end_ns),
        "attributes": _attributes(span.attributes),
        "status": {"code": _ERROR} if span.is_error else {},
    }
    if span.parent_id is not None:
        shown["parentSpanId"] = span.parent_id
    return shown


def _attributes(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {"key": key, "value": _value(value)} for key, value in values.items() if value is not None
    ]


def _value(value: str | int | float) -> dict[str, Any]:
    if isinstance(value, str):
        return {"stringValue": value}
    return {"intValue": str(value)} if isinstance(value, int) else {"doubleValue": value}
