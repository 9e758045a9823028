"""One client's connection: uvicorn's HTTP/1.1, with bounds on what comes before the application.

The application bounds bodies and complete heads (`glimt.api.limits`). What it never sees is
bounded here: heads that do not end or arrive too slowly, and bytes that are not HTTP. A refused
client may still be sending; closing at once would reset the connection and lose the answer, so
what it sends is thrown away for a while first.

A client may also have ended its side of the connection when its request was complete (`nc -N`, some
proxies), and wait for the answer. One that has left looks the same until something is written to
it: that comes back as a reset, after which nothing more can be written. So the interim answer `100
Continue`, which all clients of HTTP/1.1 pass over, is written now and then until the answer begins.
"""

import asyncio
from http import HTTPStatus

import httptools
import msgspec
from uvicorn._types import ASGI3Application, ASGISendEvent
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from glimt.api.errors import HttpError, body_of, status_of

HEAD_TIMEOUT_S = 10.0  # from a request's first byte to its body
# Longer than what clients and balancers keep idle connections for, or they race with our close.
KEEP_ALIVE_S = 75
MAX_HEAD_BYTES = 128 * 2**10  # what the parser may hold; the application allows less
LINGER_S = 30.0  # for a client that has its answer to finish its sentence
INTERIM = b"HTTP/1.1 100 Continue\r\n\r\n"
FIRST_INTERIM_S = 0.1  # what is answered sooner needs none; the pauses then double
MAX_INTERIM_S = 5.0
OLD_CLIENT_S = 2.0  # of HTTP/1.0, which has no interim answers: then it counts as gone


class Connection(HttpToolsProtocol):
    """A connection that always answers in JSON, and of which each state ends in bounded time."""

    url = b""
    _num_head_bytes = 0
    _is_in_head = True  # from the begin of the connection or a request to the end of its head
    _is_in_message = False  # of which the body is not complete
    _is_upgrading = False
    _is_lingering = False
    _ended_s: float | None = None  # when the client had nothing more to send
    _answered: RequestResponseCycle | None = None  # of several requests the one whose turn it is
    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """asyncio.Protocol."""
        super().connection_made(transport)
        self._set_deadline(KEEP_ALIVE_S)

    def connection_lost(self, exc: Exception | None) -> None:
        """asyncio.Protocol."""
        self._clear_deadline()
        if (cycle := self._unanswered) is not None:
            cycle.disconnected = True
            cycle.message_event.set()
        super().connection_lost(exc)

    def eof_received(self) -> bool:  # type: ignore[override]
        """asyncio.Protocol: whether there is still an answer to be given. (TLS ends both ways.)"""
        if self._unanswered is None or self._is_in_message or self.scheme == "https":
            return False
        if self._ended_s is None:
            self._ended_s = self.loop.time()
            self.loop.call_later(FIRST_INTERIM_S, self._find_out, self._ended_s)
        return True

    def data_received(self, data: bytes) -> None:
        """asyncio.Protocol."""
        if self._is_lingering:
            return
        self._unset_keepalive_if_required()
        try:
            self._feed(data)
        except httptools.HttpParserError:
            if len(self.url) > MAX_HEAD_BYTES // 2:  # more than the parser splits
                self._refuse(HttpError("uri_too_long", "the address is too long"))
            else:
                self._refuse(HttpError("bad_http", "this is not a valid HTTP/1.1 request"))
            return
        if self._is_in_head:
            self._num_head_bytes += len(data)
            if self._num_head_bytes > MAX_HEAD_BYTES:
                self._refuse(HttpError("headers_too_large", "the headers are too large"))

    def on_message_begin(self) -> None:
        """A first byte."""
        self._is_in_head = self._is_in_message = True
        self._set_deadline(HEAD_TIMEOUT_S)
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """The end of a head."""
        self._is_upgrading = self.parser.should_upgrade()
        if self._is_upgrading:
            return  # and comes again without the wish, see `_feed`
        self._is_in_head = False
        self._num_head_bytes = 0
        self._clear_deadline()
        super().on_headers_complete()
        self.cycle.transport = _CycleTransport(self)  # type: ignore[assignment]
        if self.scope["http_version"] == "1.0":
            self.cycle.send = _Unchunked(self.cycle)  # type: ignore[method-assign]

    def on_message_complete(self) -> None:
        """The end of a body."""
        if not self._is_upgrading:
            self._is_in_message = False
            super().on_message_complete()
            if self._unanswered is None:  # it was answered before all of it was there
                self._set_deadline(KEEP_ALIVE_S)

    def on_response_complete(self) -> None:
        """The end of an answer."""
        super().on_response_complete()
        if self._unanswered is None and self._is_in_message and not self._is_in_head:
            self._set_deadline(LINGER_S)  # for a body that nobody reads
        if self._ended_s is not None and self._unanswered is None:
            self.transport.close()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._answered = cycle
        super()._start_asgi_task(cycle, app)

    @property
    def _unanswered(self) -> RequestResponseCycle | None:
        """The request whose turn it is, while its answer is not complete."""
        cycle = self._answered
        return None if cycle is None or cycle.response_complete else cycle

    def _find_out(self, ended_s: float) -> None:
        """Whether a client that sent its last byte at `ended_s` has left. Begun answers show it."""
        cycle = self._unanswered
        if self.transport.is_closing() or cycle is None:
            return
        silence_s = self.loop.time() - ended_s
        if not cycle.response_started:
            if cycle.scope["http_version"] != "1.0":
                self.transport.write(INTERIM)
            elif silence_s > OLD_CLIENT_S:
                self.transport.close()
                return
        self.loop.call_later(min(silence_s, MAX_INTERIM_S), self._find_out, ended_s)

    def close_gently(self) -> None:
        """Close after the answer, and after what the client is still sending."""
        if not self._is_in_message or self._waits_for_continue():
            self.transport.close()
            return
        self._is_lingering = True
        self.flow.resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._set_deadline(LINGER_S)

    def _waits_for_continue(self) -> bool:
        """Whether the client sends its body only once it is told to."""
        return self.expect_100_continue and not self.cycle.body

    def _feed(self, data: bytes) -> None:
        """Parse. Raises httptools.HttpParserError.

        A wish for another protocol (Java's client wants h2c) is not granted, which means going on
        as if it had not been uttered; the parser has stopped there, so a new one reads the rest.
        """
        while data:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                data = self._head_without_upgrade() + data[upgrade.args[0] :]
                self.parser = httptools.HttpRequestParser(self)
                self._is_upgrading = False
            else:
                return

    def _head_without_upgrade(self) -> bytes:
        method = self.parser.get_method()
        if method == b"CONNECT":
            raise httptools.HttpParserError("this is no proxy")
        lines = [b"%s %s HTTP/1.1" % (method, self.url)]
        for name, value in self.headers:
            if name == b"connection":
                wishes = [each.strip() for each in value.split(b",")]
                value = b", ".join(each for each in wishes if each.lower() != b"upgrade")
            if name != b"upgrade":
                lines.append(b"%s: %s" % (name, value))
        return b"\r\n".join([*lines, b"", b""])

    def _refuse(self, error: HttpError) -> None:
        """Answer what never became a request."""
        cycle = self.cycle
        self.expect_100_continue = False
        if cycle is not None and not cycle.response_complete:
            if not cycle.more_body:  # junk after a good request, which gets its answer
                cycle.keep_alive = False
                self._is_lingering = True
                return
            cycle.disconnected = True
            cycle.message_event.set()
        body = msgspec.json.encode(body_of(error, ""))
        head = (
            f"HTTP/1.1 {status_of(error)} {HTTPStatus(status_of(error)).phrase}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n"
            "connection: close\r\n\r\n"
        )
        if cycle is None or cycle.response_complete or not cycle.response_started:
            self.transport.write(head.encode() + body)
        self._is_in_message = True  # there may be more of it
        self.close_gently()

    def _set_deadline(self, seconds: float) -> None:
        self._clear_deadline()
        self._deadline = self.loop.call_later(seconds, self._on_deadline)

    def _clear_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _on_deadline(self) -> None:
        self._deadline = None
        if self.cycle is not None and not self.cycle.response_complete:
            self._set_deadline(HEAD_TIMEOUT_S)  # the next request's head waits for this answer
        elif self._is_lingering or not (self._is_in_head and self._is_in_message):
            self.transport.close()
        else:
            self._refuse(HttpError("head_timeout", "the headers arrived too slowly"))


class _Unchunked:
    """Sends to a client of HTTP/1.0, which knows no chunks: an answer without a length ends where
    the connection does (RFC 9112, 6.1 and 6.3).
    """

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self._cycle = cycle
        self._send = cycle.send
        self._is_open_ended = False

    async def __call__(self, message: ASGISendEvent) -> None:
        """ASGI's `send`."""
        if message["type"] == "http.response.start":
            names = {name.lower() for name, _ in message.get("headers", [])}
            self._is_open_ended = b"content-length" not in names
            if self._is_open_ended:
                self._cycle.chunked_encoding = False
                self._cycle.keep_alive = False
        elif message["type"] == "http.response.body" and self._is_open_ended:
            self._cycle.expected_content_length = len(message.get("body", b""))
        await self._send(message)


class _CycleTransport:
    """What an answer in progress may do with its connection."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def write(self, data: bytes) -> None:
        """Queue bytes for the client."""
        self._connection.transport.write(data)

    def is_closing(self) -> bool:
        """Whether the connection is closed or about to be."""
        return self._connection.transport.is_closing()

    def close(self) -> None:
        """Close, without losing the answer."""
        self._connection.close_gently()
