"""Which HTTP answer each cause of failure gets, by the table of errors, in each API's shape.

A 500 is a bug: it never shows an exception's text, only the request's id, under which the log has
the rest.
"""

import math
from typing import Literal

import msgspec
from starlette.responses import Response

from glimt.api.error_table import ERRORS, ErrorRow
from glimt.errors import EngineDied, GlimtError, Overloaded, RequestError

RETRY_SOON = {"Retry-After": "5"}  # of every 503: about as long as an engine takes to come back


class HttpError(GlimtError):
    """A failure of the HTTP request itself; `code` is one of the table's."""

    def __init__(self, code: str, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.headers = headers or {}


class Draining(HttpError):
    """The server is shutting down and takes nothing new."""

    def __init__(self) -> None:
        super().__init__(
            "not_ready",
            "the server is shutting down; try another one",
            {**RETRY_SOON, "Connection": "close"},
        )


class Paused(HttpError):
    """An operator has paused the server."""

    def __init__(self) -> None:
        super().__init__("paused", "the server is paused; try again later", RETRY_SOON)


class FirstTokenTimeout(HttpError):
    """No token came in time."""

    def __init__(self, seconds: float) -> None:
        super().__init__(
            "first_token_timeout",
            f"no token came within {seconds:g} s; the request is ended",
            {"x-should-retry": "false"},
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


def row_of(error: Exception) -> ErrorRow:
    """The table's row for an exception; what nobody raised on purpose is an internal error."""
    if not isinstance(error, GlimtError):
        return ERRORS["internal_error"]
    fallback = "invalid_request" if isinstance(error, RequestError) else "internal_error"
    return ERRORS.get(error.code) or ERRORS[fallback]


def status_of(error: Exception) -> int:
    """The HTTP status for an exception."""
    return 499 if isinstance(error, ClientLeft) else row_of(error).status


def body_of(error: Exception, request_id: str) -> ErrorAnswer:
    """The answer's body. Only errors raised on purpose show their own text."""
    row = row_of(error)
    if isinstance(error, GlimtError) and row.code != "internal_error":
        message, code = error.message, error.code
        if row.status == 500:
            message = f"{message} (request {request_id})"
    else:
        message, code = f"internal error; the log has more under request {request_id}", row.code
    param = error.param if isinstance(error, RequestError) else None
    return ErrorAnswer(ErrorBody(message=message, type=row.type, param=param, code=code))


def headers_of(error: Exception) -> dict[str, str]:
    """Extra headers: when to come back, whether to repeat, whether the connection closes."""
    if isinstance(error, HttpError):
        return error.headers
    if isinstance(error, Overloaded):
        return {"Retry-After": str(math.ceil(error.retry_after_s))}
    if isinstance(error, EngineDied):
        return RETRY_SOON
    if status_of(error) == 500:
        return {"x-should-retry": "false"}
    return {}


def anthropic_body_of(error: Exception, request_id: str) -> AnthropicErrorAnswer:
    """The same as Anthropic's clients expect it."""
    body = body_of(error, request_id).error
    if body.param is not None and body.param not in body.message:
        body = msgspec.structs.replace(body, message=f"{body.param}: {body.message}")
    inner = AnthropicErrorBody(type=row_of(error).anthropic, message=body.message)
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
