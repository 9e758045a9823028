"""Which HTTP answer each cause of failure gets: the only place that knows statuses of errors.

A request that can never succeed gets a 4xx outside {408, 409, 429}, because the official client
libraries repeat those and every 5xx. A 500 is a bug: it never shows an exception's text, only
the request's id, under which the log has the rest.
"""

import math
from http import HTTPStatus
from typing import Literal

import msgspec
from starlette.responses import Response

from glimt.errors import (
    EngineDied,
    EngineFailed,
    GlimtError,
    ModelNotFound,
    Overloaded,
    RequestError,
)


class HttpError(GlimtError):
    """A failure of the HTTP request itself, before anything was asked of the engine."""

    def __init__(
        self, status: int, code: str, message: str, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.headers = headers or {}


class Draining(HttpError):
    """The server is shutting down and takes nothing new."""

    def __init__(self) -> None:
        super().__init__(
            503,
            "not_ready",
            "the server is shutting down; try another one",
            {"Retry-After": "5", "Connection": "close"},
        )


class ClientLeft(GlimtError):
    """The client closed the connection before its answer was complete; nobody reads this."""

    code = "client_left"


class ErrorBody(msgspec.Struct, frozen=True, kw_only=True):
    """What went wrong. `param` is the JSON path of the field that has to change."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorAnswer(msgspec.Struct, frozen=True):
    """The body of every answer with a status of 400 or above."""

    error: ErrorBody


class AnthropicErrorBody(msgspec.Struct, frozen=True, kw_only=True):
    """What went wrong, in Anthropic's shape; the message names the field that has to change."""

    type: str
    message: str


class AnthropicErrorAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The body of every failed answer of /v1/messages."""

    type: Literal["error"] = "error"
    error: AnthropicErrorBody
    request_id: str


Dialect = Literal["openai", "anthropic"]

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    499: "client_left",
}
_ANTHROPIC_TYPES = {503: "overloaded_error", 504: "timeout_error"}
_ENGINE_RESTART_S = 5


def status_of(error: Exception) -> int:
    """The HTTP status for an exception."""
    if isinstance(error, HttpError):
        return error.status
    if isinstance(error, ModelNotFound):
        return 404
    if isinstance(error, RequestError):
        return 400
    if isinstance(error, Overloaded):
        return 429
    if isinstance(error, EngineDied):
        return 503
    if isinstance(error, ClientLeft):
        return 499
    return 500


def body_of(error: Exception, request_id: str) -> ErrorAnswer:
    """The answer's body. Only errors raised on purpose show their own text."""
    status = status_of(error)
    is_bug = status == 500 and not isinstance(error, EngineFailed)
    if isinstance(error, GlimtError) and not is_bug:
        message, code = error.message, error.code
    else:
        message, code = (
            f"internal error; the log has more under request {request_id}",
            ("internal_error"),
        )
    if status == 500 and not is_bug:
        message = f"{message} (request {request_id})"
    kind = _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    param = error.param if isinstance(error, RequestError) else None
    return ErrorAnswer(ErrorBody(message=message, type=kind, param=param, code=code))


def headers_of(error: Exception) -> dict[str, str]:
    """Extra headers: when to come back, whether to repeat, whether the connection closes."""
    if isinstance(error, HttpError):
        return error.headers
    if isinstance(error, Overloaded):
        return {"Retry-After": str(math.ceil(error.retry_after_s))}
    if isinstance(error, EngineDied):
        return {"Retry-After": str(_ENGINE_RESTART_S)}
    if status_of(error) == 500:
        return {"x-should-retry": "false"}
    return {}


def anthropic_body_of(error: Exception, request_id: str) -> AnthropicErrorAnswer:
    """The same as Anthropic's clients expect it."""
    body = body_of(error, request_id).error
    status = status_of(error)
    kind = _ANTHROPIC_TYPES.get(status, "api_error" if status >= 500 else body.type)
    if body.param is not None and body.param not in body.message:
        body = msgspec.structs.replace(body, message=f"{body.param}: {body.message}")
    inner = AnthropicErrorBody(type=kind, message=body.message)
    return AnthropicErrorAnswer(error=inner, request_id=request_id)


def error_response(error: Exception, request_id: str, dialect: Dialect = "openai") -> Response:
    """The whole answer to a request that failed before its first byte was sent."""
    of_dialect = anthropic_body_of if dialect == "anthropic" else body_of
    headers = headers_of(error)
    if dialect == "anthropic":
        headers = {**headers, "request-id": request_id}
    return Response(
        msgspec.json.encode(of_dialect(error, request_id)),
        status_code=status_of(error),
        headers=headers,
        media_type="application/json",
    )


def error_event(error: Exception, request_id: str) -> bytes:
    """The event of a stream that failed after its first byte."""
    return b"data: " + msgspec.json.encode(body_of(error, request_id)) + b"\n\n"


def plain_status(status: int) -> HttpError:
    """An error with nothing to say beyond its status."""
    phrase = HTTPStatus(status).phrase
    return HttpError(status, phrase.lower().replace(" ", "_"), phrase.lower())
