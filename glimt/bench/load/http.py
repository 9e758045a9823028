"""An HTTP/1.1 client that stamps and keeps, and does nothing else while the clock runs.

Every read from a socket is stamped in `data_received`, before any task is woken, and kept as it is;
what the bytes mean is found out afterwards. One exchange at a time on each connection, as many
connections as there are requests in flight, kept open between them.
"""

import asyncio
import ssl
import time
from dataclasses import dataclass, field
from typing import cast
from urllib.parse import urlsplit

import httptools

from glimt.bench.events import Failure
from glimt.errors import BadSettings

# Servers close idle connections (uvicorn after five seconds); a request on one that is just being
# closed would fail for no fault of the server's.
_MAX_IDLE_NS = 3_000_000_000
_EVENT_END = b"\n\n"

clock_ns = time.perf_counter_ns  # CLOCK_MONOTONIC on Linux: comparable between processes


@dataclass(slots=True, eq=False)
class Exchange:
    """One request and what came back; times are those of `clock_ns`."""

    start_ns: int = 0
    connected_ns: int | None = None
    sent_ns: int | None = None
    headers_ns: int | None = None
    end_ns: int = 0
    status: int | None = None
    reads: list[tuple[int, bytes]] = field(default_factory=list)  # of the body
    failure: Failure | None = None
    error: str = ""
    num_events: int = 0  # roughly, for the live display
    num_reads: int = 0  # once the reads have been read

    def body(self) -> bytes:
        """The whole body."""
        return b"".join(read for _, read in self.reads)


@dataclass(frozen=True)
class Address:
    """Where a server is: host, port, TLS, and the path in front of every route."""

    host: str
    port: int
    is_tls: bool
    prefix: str

    @classmethod
    def of(cls, url: str) -> "Address":
        """Take apart [http(s)://]host[:port][/prefix]. Raises BadSettings."""
        try:
            parts = urlsplit(url if "://" in url else f"http://{url}")
            port = parts.port
        except ValueError as error:
            raise BadSettings(f"--base-url {url}: {error}") from None
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise BadSettings(f"--base-url {url}: must be http://host:port or https://host:port")
        is_tls = parts.scheme == "https"
        return cls(parts.hostname, port or (443 if is_tls else 80), is_tls, parts.path.rstrip("/"))

    @property
    def authority(self) -> str:
        """The Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


class HttpClient:
    """Requests to one server. All methods are for one event loop."""

    def __init__(self, address: Address, *, verify: bool = True, timeout_s: float = 21600) -> None:
        self._address = address
        self._timeout_s = timeout_s
        self._idle: list[_Connection] = []
        self._open: set[_Connection] = set()
        self._tls = _tls_context(verify) if address.is_tls else None
        self.num_connections = 0  # made so far

    def head(self, method: str, path: str, headers: dict[str, str]) -> bytes:
        """Request line and headers, without Content-Length and the empty line."""
        lines = [f"{method} {self._address.prefix}{path} HTTP/1.1"]
        lines.append(f"Host: {self._address.authority}")
        lines += [f"{name}: {value}" for name, value in headers.items()]
        try:
            return ("\r\n".join(lines) + "\r\n").encode("latin-1")
        except UnicodeEncodeError:
            raise BadSettings("--header: names and values must be Latin-1") from None

    async def send(
        self, head: bytes, body: bytes | memoryview, exchange: Exchange | None = None
    ) -> Exchange:
        """Send one request and read its answer to the end; failures are in the exchange.

        A caller who may be cancelled gives the exchange, to have what came until then.
        """
        exchange = exchange or Exchange()
        exchange.start_ns = clock_ns()
        parts = (b"%sContent-Length: %d\r\n\r\n" % (head, len(body)), body)
        timer = asyncio.get_running_loop().call_later(self._timeout_s, self._expire, exchange)
        try:
            await self._exchange(exchange, parts)
        finally:
            timer.cancel()
            if exchange.end_ns == 0:
                exchange.end_ns = clock_ns()
        return exchange

    async def get(self, path: str, headers: dict[str, str] | None = None) -> Exchange:
        """GET a path."""
        return await self.send(self.head("GET", path, headers or {}), b"")

    def close(self) -> None:
        """Close all connections."""
        for connection in list(self._open):
            connection.abort()

    async def _exchange(self, exchange: Exchange, parts: tuple[bytes, bytes | memoryview]) -> None:
        while True:
            connection = self._take_idle()
            is_reused = connection is not None
            if connection is None:
                connection = await self._connect(exchange)
                if connection is None:
                    return
            try:
                await connection.run(exchange, parts)
            except asyncio.CancelledError:
                exchange.failure = exchange.failure or "cancelled"
                exchange.error = exchange.error or "the run was interrupted"
                connection.abort()
                raise
            if connection.is_reusable():
                connection.idle_since_ns = clock_ns()
                self._idle.append(connection)
            else:
                connection.abort()
            # The server closed an idle connection at the moment it was used: it saw no request.
            if is_reused and exchange.failure == "broken" and exchange.headers_ns is None:
                exchange.failure, exchange.error, exchange.end_ns = None, "", 0
                continue
            return

    def _take_idle(self) -> "_Connection | None":
        while self._idle:
            connection = self._idle.pop()
            if connection.is_reusable() and clock_ns() - connection.idle_since_ns < _MAX_IDLE_NS:
                return connection
            connection.abort()
        return None

    async def _connect(self, exchange: Exchange) -> "_Connection | None":
        loop = asyncio.get_running_loop()
        try:
            _, connection = await asyncio.wait_for(
                loop.create_connection(
                    lambda: _Connection(self._open),
                    self._address.host,
                    self._address.port,
                    ssl=self._tls,
                ),
                self._timeout_s,
            )
        except (OSError, TimeoutError) as error:
            exchange.failure = "connect"
            reason = getattr(error, "strerror", None) or str(error) or "no answer"
            exchange.error = f"{self._address.authority}: {reason}"
            return None
        exchange.connected_ns = clock_ns()
        self.num_connections += 1
        return connection

    def _expire(self, exchange: Exchange) -> None:
        exchange.failure = "timeout"
        exchange.error = f"no complete answer within {self._timeout_s:g} s"
        for connection in self._open:
            if connection.exchange is exchange:
                connection.abort()
                return


class _Connection(asyncio.Protocol):
    """One connection; the exchange in progress, and the parser of its answer."""

    def __init__(self, open_connections: "set[_Connection]") -> None:
        self._open = open_connections
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._done: asyncio.Future[None] | None = None
        self._now_ns = 0
        self._ends_with_connection = True
        self._keeps_alive = True
        self.exchange: Exchange | None = None
        self.idle_since_ns = 0

    async def run(self, exchange: Exchange, parts: tuple[bytes, bytes | memoryview]) -> None:
        """Send the request and wait for the end of the answer."""
        if self._transport is None:
            exchange.failure, exchange.error = "broken", "the connection is closed"
            return
        self.exchange = exchange
        self._ends_with_connection = True
        self._done = asyncio.get_running_loop().create_future()
        self._transport.writelines(parts)
        if self._transport.get_write_buffer_size() == 0:
            exchange.sent_ns = clock_ns()
        await self._done

    def is_reusable(self) -> bool:
        """Whether the next request can use it."""
        return self._transport is not None and self.exchange is None and self._keeps_alive

    def abort(self) -> None:
        """Close it at once."""
        if self._transport is not None:
            self._transport.abort()

    # -- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Have it told when the kernel has taken the last byte."""
        # uvloop's transports are asyncio's in all but their class.
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=0, low=0)
        self._open.add(self)

    def resume_writing(self) -> None:
        """The kernel has taken everything."""
        if self.exchange is not None and self.exchange.sent_ns is None:
            self.exchange.sent_ns = clock_ns()

    def data_received(self, data: bytes) -> None:
        """Stamp first, look later."""
        self._now_ns = clock_ns()
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail("broken", f"not HTTP: {error}")
            self.abort()

    def connection_lost(self, error: Exception | None) -> None:
        """The end of the exchange, good or bad."""
        self._now_ns = clock_ns()
        self._transport = None
        self._open.discard(self)
        exchange = self.exchange
        if exchange is None:
            return
        if error is None and exchange.headers_ns is not None and self._ends_with_connection:
            self._finish()
        else:
            reason = getattr(error, "strerror", None) or "the connection was closed"
            place = "after the headers" if exchange.headers_ns is not None else "without an answer"
            self._fail("broken", f"{reason} {place}")

    # -- httptools

    def on_header(self, name: bytes, value: bytes) -> None:
        """Whether the body has an end of its own."""
        if name.lower() in (b"content-length", b"transfer-encoding"):
            self._ends_with_connection = False

    def on_headers_complete(self) -> None:
        """The status."""
        if self.exchange is not None:
            self.exchange.status = self._parser.get_status_code()
            self.exchange.headers_ns = self._now_ns

    def on_body(self, body: bytes) -> None:
        """Keep it."""
        if self.exchange is not None:
            self.exchange.reads.append((self._now_ns, body))
            self.exchange.num_events += body.count(_EVENT_END)

    def on_message_complete(self) -> None:
        """The answer is whole."""
        self._keeps_alive = self._parser.should_keep_alive()
        self._finish()

    def _finish(self) -> None:
        if self.exchange is not None:
            self.exchange.end_ns = self._now_ns
        self._release()

    def _fail(self, failure: Failure, error: str) -> None:
        if self.exchange is not None and self.exchange.failure is None:
            self.exchange.failure, self.exchange.error = failure, error
        if self.exchange is not None:
            self.exchange.end_ns = self._now_ns
        self._release()

    def _release(self) -> None:
        self.exchange = None
        if self._done is not None and not self._done.done():
            self._done.set_result(None)


def _tls_context(verify: bool) -> ssl.SSLContext:
    context = ssl.create_default_context()
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
