"""Bounds of an HTTP request, checked before and while it is read, never after."""

import asyncio
from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from glimt.api.call import Call
from glimt.api.errors import HttpError
from glimt.api.state import HttpLimits

_CLOSE = {"Connection": "close"}
_UTF8 = ("utf-8", "utf8")


class HeadLimits:
    """Refuses addresses and headers that are too large, by raising HttpError 414 or 431."""

    def __init__(self, app: ASGIApp, limits: HttpLimits) -> None:
        self._app = app
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        limits = self._limits
        path: bytes = scope.get("raw_path") or scope["path"].encode("utf-8", "replace")
        if len(path) + len(scope.get("query_string", b"")) > limits.max_path_bytes:
            raise HttpError("uri_too_long", "the address is too long", _CLOSE)
        sizes = [len(name) + len(value) for name, value in scope["headers"]]
        if (
            len(sizes) > limits.max_headers
            or sum(sizes) > limits.max_headers_bytes
            or max(sizes, default=0) > limits.max_header_bytes
        ):
            raise HttpError("headers_too_large", "the headers are too large", _CLOSE)
        await self._app(scope, receive, send)


class BodyLimits:
    """Refuses bodies that are too long, too slow, compressed, or not JSON in UTF-8.

    A route may take less than the server's limit.

    Raises HttpError 408, 413 or 415: by what the headers say, or out of `receive`, while the body
    is being read.
    """

    def __init__(self, app: ASGIApp, limits: HttpLimits, clock: Callable[[], float]) -> None:
        self._app = app
        self._limits = limits
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        headers: dict[bytes, list[str]] = {}
        for name, value in scope["headers"]:
            headers.setdefault(name, []).append(value.decode("latin-1"))
        length = headers.get(b"content-length", ["0"])[0]
        call: Call = scope["glimt.call"]
        of_route = call.match.route.max_body_bytes if call.match is not None else None
        limit = self._limits.max_body_bytes if of_route is None else of_route
        if length != "0" or b"transfer-encoding" in headers:
            self._check_content(headers, length, limit)
        await self._app(scope, self._bounded(receive, limit), send)

    def _check_content(self, headers: dict[bytes, list[str]], length: str, limit: int) -> None:
        codings = [*headers.get(b"content-encoding", []), *headers.get(b"transfer-encoding", [])]
        if any(each.strip().lower() not in ("identity", "chunked") for each in codings):
            raise HttpError("unsupported_encoding", "compressed bodies are not read here", _CLOSE)
        if length.isdigit() and int(length[:20]) > limit:
            raise _too_large(limit)
        if not _is_json(headers.get(b"content-type", [])):
            text = (
                "Content-Type must be application/json (curl: -H 'Content-Type: application/json')"
            )
            raise HttpError("unsupported_media_type", text, _CLOSE)

    def _bounded(self, receive: Receive, limit: int) -> Receive:
        """`receive` that counts bytes and time until the body is complete."""
        num_bytes = 0
        is_complete = False
        deadline_s = self._clock() + self._limits.body_timeout_s

        async def bounded() -> Message:
            nonlocal num_bytes, is_complete
            if is_complete:
                return await receive()
            try:
                async with asyncio.timeout(max(0.0, deadline_s - self._clock())):
                    message = await receive()
            except TimeoutError:
                raise HttpError("body_timeout", "the body arrived too slowly", _CLOSE) from None
            if message["type"] != "http.request":
                return message
            num_bytes += len(message.get("body", b""))
            if num_bytes > limit:
                raise _too_large(limit)
            is_complete = not message.get("more_body", False)
            return message

        return bounded


def _too_large(limit: int) -> HttpError:
    text = f"the body exceeds {limit} bytes" if limit else "there must be no body here"
    return HttpError("request_too_large", text, _CLOSE)


def _is_json(content_types: list[str]) -> bool:
    if len(content_types) != 1:
        return False
    kind, *parameters = content_types[0].split(";")
    if kind.strip().lower() != "application/json":
        return False
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip().lower() == "charset" and value.strip(' "').lower() not in _UTF8:
            return False
    return True
