"""One HTTP request while it is answered: who it is, and the boundary at which its errors end."""

import logging
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from glimt.api.errors import ClientLeft, Dialect, error_response, status_of
from glimt.api.route import ANTHROPIC_HEADER, Match, RouteTable
from glimt.api.tracing import Tracing
from glimt.errors import Overloaded
from glimt.frontend.engine_view import COPY_HEADER
from glimt.http_series import NO_HANDLER
from glimt.log import log_finish
from glimt.metrics import Metrics

logger = logging.getLogger("glimt.api")

_LABEL = re.compile(r"[\x21-\x7e]{1,128}", re.ASCII)


@dataclass(slots=True)
class Call:
    """Identity of a request, and the facts that its log line tells."""

    id: str  # ours; never made from what the client sent
    label: str | None  # the client's X-Request-Id, only ever echoed and logged
    arrival_s: float
    match: Match | None  # what its path means; None = nothing
    dialect: Dialect  # whose answer the client reads
    copy: str | None = None  # X-Data-Parallel-Rank: the copy of the model that shall answer
    facts: dict[str, Any] = field(default_factory=dict)


class Boundary:
    """Gives each request its identity and its route; turns what is raised inside into the one
    error answer.

    Everything below raises typed errors; nothing below writes an error answer of its own.
    """

    def __init__(
        self,
        app: ASGIApp,
        routes: RouteTable,
        *,
        new_id: Callable[[], str],
        clock: Callable[[], float],
        metrics: Metrics,
        shows_ids: bool,
        tracing: Tracing | None = None,
        log_access: bool = True,
        quiet_paths: frozenset[str] = frozenset(),
    ) -> None:
        self._app = app
        self._routes = routes
        self._new_id = new_id
        self._clock = clock
        self._metrics = metrics
        self._shows_ids = shows_ids
        self._tracing = tracing
        self._log_access = log_access
        self._quiet_paths = quiet_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        match = self._routes.find(_own_path(scope))
        headers = scope["headers"]
        call = Call(
            id=self._new_id(),
            label=_label(headers),
            arrival_s=self._clock(),
            match=match,
            dialect=_dialect(match, scope),
            copy=_copy(headers),
        )
        scope["glimt.call"] = call
        status: int | None = None
        num_bytes = 0

        # Not a coroutine of its own: it is called for every event of every stream.
        def send_marked(message: Message) -> Awaitable[None]:
            nonlocal status, num_bytes
            num_bytes += len(message.get("body", b""))
            if message["type"] == "http.response.start":
                status = message["status"]
                if self._shows_ids:
                    header = (b"x-request-id", (call.label or call.id).encode("ascii"))
                    message = {**message, "headers": [*message.get("headers", ()), header]}
            return send(message)

        try:
            await self._app(scope, receive, send_marked)
        except ClientLeft:
            status = 499
        except Exception as error:
            status = await self._answer_error(error, call, status, scope, receive, send_marked)
        self._finish(call, scope, status, num_bytes)

    async def _answer_error(
        self,
        error: Exception,
        call: Call,
        status: int | None,
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> int:
        log_failure(error, call)
        if isinstance(error, Overloaded):
            self._metrics.rejections.inc()
        if status is not None:
            raise error  # the answer has begun: closing the connection is all that is left
        await error_response(error, call.id, call.dialect)(scope, receive, send)
        return status_of(error)

    def _finish(self, call: Call, scope: Scope, status: int | None, num_bytes: int) -> None:
        status = status or 500
        self._observe(call, scope, status, num_bytes)
        if self._tracing is not None:
            route = call.match.route if call.match is not None else None
            seconds = self._clock() - call.arrival_s
            self._tracing.note(scope, route, call.id, status, seconds, call.facts)
        if self._is_quiet(call, status):
            return
        fields = {
            "id": call.id,
            "label": call.label,
            "method": scope["method"],
            "path": scope["path"],
            "status": status,
            "seconds": self._clock() - call.arrival_s,
            **call.facts,
        }
        log_finish(logger, fields, failed=status >= 500)

    def _is_quiet(self, call: Call, status: int) -> bool:
        """Probes and scrapes are not worth a line, nor is a probe that finds nothing ready."""
        if call.match is None:
            return status < 500 and not self._log_access
        route = call.match.route
        if status >= 500:
            return status == 503 and route.is_probe
        return not self._log_access or route.is_quiet or route.path in self._quiet_paths

    def _observe(self, call: Call, scope: Scope, status: int, num_bytes: int) -> None:
        self._metrics.observe_response(status)
        route = call.match.route if call.match is not None else None
        if route is not None and route.is_quiet:
            return
        length = next((v for k, v in scope["headers"] if k == b"content-length"), b"0")
        self._metrics.http.observe(
            handler=route.path if route is not None else NO_HANDLER,
            method=scope["method"],
            status=status,
            seconds=self._clock() - call.arrival_s,
            request_bytes=int(length) if length.isdigit() and len(length) < 16 else 0,
            response_bytes=num_bytes,
        )


def log_failure(error: Exception, call: Call) -> None:
    """Note why the call fails; what is our own fault gets its traceback logged."""
    call.facts["error"] = getattr(error, "code", type(error).__name__)
    if status_of(error) == 500:
        logger.error("request %s failed", call.id, exc_info=error)


def _own_path(scope: Scope) -> str:
    """Without the prefix of --root-path, which servers put before every path, and which proxies may
    have left there as well."""
    prefix: str = scope.get("root_path", "")
    path: str = scope["path"].removeprefix(prefix)
    return path.removeprefix(prefix) if path.startswith(f"{prefix}/") else path


def _dialect(match: Match | None, scope: Scope) -> Dialect:
    """Whose answer the client reads, at addresses that lead nowhere as well."""
    is_anthropics = any(name == ANTHROPIC_HEADER for name, _ in scope["headers"])
    if match is None:
        is_anthropics = is_anthropics or _own_path(scope).startswith("/v1/messages/")
    elif match.route.anthropic_answer is None:
        return match.route.errors
    return "anthropic" if is_anthropics else "openai"


def _label(headers: list[tuple[bytes, bytes]]) -> str | None:
    labels = [value.decode("latin-1") for name, value in headers if name == b"x-request-id"]
    return checked_label(labels[0]) if len(labels) == 1 else None


def _copy(headers: list[tuple[bytes, bytes]]) -> str | None:
    name = COPY_HEADER.lower().encode()
    return next((value.decode("latin-1") for key, value in headers if key == name), None)


def checked_label(text: str) -> str | None:
    """A client's name for its request, if it may stand in a header and in the log."""
    return text if _LABEL.fullmatch(text) else None
