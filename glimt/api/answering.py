"""What all routes that generate do alike: read the request, say what is ignored, send the answer.

Between the two stands what differs: a route makes an `Answer` of its request, and brings the
`Writer` that puts the answer's deltas into the shape its clients know.
"""

import asyncio
from collections.abc import Iterable, Sequence
from contextlib import closing
from typing import Any, Protocol, TypeVar

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope

from glimt.api.body import decode_body
from glimt.api.call import Call, checked_label, log_failure
from glimt.api.departure import Departure
from glimt.api.errors import ClientLeft, Draining, FirstTokenTimeout, Paused
from glimt.api.fields import RequestFields
from glimt.api.known import KnownFields
from glimt.api.state import ApiState
from glimt.errors import EngineAsleep, InvalidRequest, ModelNotFound
from glimt.frontend.answer import Delta, UsageCounts
from glimt.wire import TokenLogprobs

T = TypeVar("T")
Headers = list[tuple[bytes, bytes]]

# Bodies above this are decoded in a thread: 4 MB of base64 take about 2 ms.
_INLINE_BYTES = 256 * 2**10
_MAX_SHOWN_FIELDS = 16
_MAX_NAMES = 8

_SSE = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # proxies would collect events
]


class Readable(Protocol):
    """The reading end of what was asked for; `frontend.answer.Answer` is one."""

    @property
    def usage(self) -> UsageCounts:
        """Counts so far."""

    @property
    def prompt_logprobs(self) -> list[tuple[TokenLogprobs, ...] | None]:
        """By prompt, if asked for, once its first delta is there."""

    @property
    def is_complete(self) -> bool:
        """Nothing more will come."""

    async def receive(self) -> list[Delta]:
        """The deltas that arrived since; [] after the last."""

    def close(self) -> None:
        """End what still runs."""

    def facts(self) -> dict[str, Any]:
        """For the log line."""


class Writer(Protocol):
    """Puts one answer into the shape of its API."""

    def events(self, deltas: Sequence[Delta], answer: Readable) -> bytes:
        """The server-sent events of the newest deltas of `answer`."""

    def end(self, usage: UsageCounts) -> bytes:
        """What follows the last delta of a stream."""

    def failure(self, error: Exception, request_id: str) -> bytes:
        """What ends a stream that fails after its first byte."""

    def whole(self, deltas: Sequence[Delta], answer: Readable) -> msgspec.Struct:
        """All deltas of `answer` as the one body of an unstreamed one."""


async def read_request(
    state: ApiState,
    scope: Scope,
    receive: Receive,
    decoder: "msgspec.json.Decoder[T]",
    known: KnownFields,
) -> tuple[T, tuple[str, ...]]:
    """The decoded body, and the paths of its fields that do nothing. --strict-fields refuses those
    that nobody knows.

    Raises InvalidRequest naming the field, ClientLeft.
    """
    try:
        body = await Request(scope, receive).body()
    except ClientDisconnect:
        raise ClientLeft("the client left before its request was complete") from None
    if len(body) > _INLINE_BYTES:
        request, ignored = await asyncio.to_thread(decode_body, body, decoder, known)
    else:
        request, ignored = decode_body(body, decoder, known)
    if ignored.unknown and state.strict_fields:
        first = ignored.unknown[0][:128]
        raise InvalidRequest(
            f"{first} is not a field of this request (--strict-fields)",
            param=first,
            code="unknown_field",
        )
    return request, (*ignored.unknown, *ignored.without_effect)


def refuse_if_closed(state: ApiState) -> None:
    """Raises Draining, Paused, or EngineAsleep."""
    if state.lifecycle.is_draining:
        raise Draining
    if state.lifecycle.is_paused:
        raise Paused
    if state.lifecycle.is_going_to_sleep or state.client.sleep_level:
        raise EngineAsleep("the engine sleeps until an operator wakes it; try again later")


def check_model(state: ApiState, model: str | None) -> None:
    """Raises ModelNotFound for a name that is not served; no name means any."""
    if model and model not in state.served_names:
        raise unserved(state, model)


def unserved(state: ApiState, model: str) -> ModelNotFound:
    """What is answered to a name that is not served: those that are."""
    served = ", ".join(state.served_names[:_MAX_NAMES])
    more = ", …" if len(state.served_names) > _MAX_NAMES else ""
    text = f"the model {model[:128]!r} is not served here; there is {served}{more}"
    return ModelNotFound(text, param="model")


def check_form(request: RequestFields) -> None:
    """Raises InvalidRequest for fields of the answer's form that contradict each other."""
    options = request.stream_options
    if request.prompt_logprobs is not None and request.stream:
        raise InvalidRequest(
            "prompt_logprobs are not streamed; leave out stream", param="prompt_logprobs"
        )
    if options is not None and not request.stream:
        raise InvalidRequest("stream_options needs stream to be true", param="stream_options")
    if options is not None and options.continuous_usage_stats and not options.include_usage:
        raise InvalidRequest(
            "continuous_usage_stats needs include_usage to be true",
            param="stream_options.continuous_usage_stats",
        )


def take_label(call: Call, request: RequestFields) -> None:
    """A client may name its request in the body; X-Request-Id comes first."""
    if call.label is None and request.request_id is not None:
        call.label = checked_label(request.request_id)


def ignored_header(names: Iterable[str], call: Call) -> Headers:
    """Fields without effect are named in a header and in the log, never dropped in silence."""
    shown = [name[:64] for name in names][:_MAX_SHOWN_FIELDS]
    if not shown:
        return []
    call.facts["ignored_fields"] = ",".join(shown)
    value = ",".join(name.encode("ascii", "backslashreplace").decode() for name in shown)
    safe = "".join(char if " " < char < "\x7f" else "?" for char in value)
    return [(b"x-glimt-ignored-fields", safe.encode())]


def salt_of(scope: Scope, cache_salt: str | None) -> bytes:
    """Separates caches: by the request's own wish, and clients with different keys in any case."""
    tenant: bytes = scope.get("glimt.tenant", b"")
    return tenant + (cache_salt or "").encode("utf-8", "surrogatepass")


async def send_answer(
    state: ApiState,
    answer: Readable,
    writer: Writer,
    headers: Headers,
    departure: Departure,
    call: Call,
    *,
    stream: bool,
) -> None:
    """Send the answer and close it. Raises typed errors until the first byte is sent."""
    with closing(answer):
        try:
            first = await _first(answer, state.first_token_timeout_s)
            if stream:
                await _stream(answer, first, writer, headers, departure, call)
            else:
                await _send_whole(answer, first, writer, headers, departure)
        finally:
            call.facts.update(answer.facts())


async def _first(answer: Readable, timeout_s: float) -> list[Delta]:
    """The first deltas. Raises FirstTokenTimeout; 0 seconds are no limit."""
    try:
        async with asyncio.timeout(timeout_s or None):
            return await answer.receive()
    except TimeoutError:
        raise FirstTokenTimeout(timeout_s) from None


async def _stream(
    answer: Readable,
    deltas: list[Delta],
    writer: Writer,
    headers: Headers,
    departure: Departure,
    call: Call,
) -> None:
    """Server-sent events. The head waits for the first deltas, so that whatever fails until then
    has a status of its own; later failures are an event, and leave out the finish_reason."""
    await departure.start([*_SSE, *headers])
    try:
        while not answer.is_complete:
            if events := writer.events(deltas, answer):
                await departure.send(events)
            deltas = await answer.receive()
        end = writer.events(deltas, answer) + writer.end(answer.usage)
    except Exception as error:
        log_failure(error, call)
        end = writer.failure(error, call.id)
    await departure.send(end, is_last=True)


async def _send_whole(
    answer: Readable,
    deltas: list[Delta],
    writer: Writer,
    headers: Headers,
    departure: Departure,
) -> None:
    while new := await answer.receive():
        deltas += new
    await send_json(writer.whole(deltas, answer), headers, departure)


def json_response(value: msgspec.Struct) -> Response:
    """A JSON body with status 200, for what takes no time."""
    return Response(msgspec.json.encode(value), media_type="application/json")


async def send_json(value: msgspec.Struct, headers: Headers, departure: Departure) -> None:
    """One JSON body with status 200."""
    body = msgspec.json.encode(value)
    length = (b"content-length", str(len(body)).encode())
    head = [(b"content-type", b"application/json"), length, *headers]
    await departure.start(head)
    await departure.send(body, is_last=True)
