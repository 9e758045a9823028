"""The OpenAPI 3.1 document, made from the table of routes and the types that validate requests.

It promises no status, header or shape that does not come, and leaves none out that does.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import msgspec

from glimt.api.error_table import ERRORS
from glimt.api.errors import AnthropicErrorAnswer, ErrorAnswer
from glimt.api.route import ANTHROPIC_HEADER, Access, ApiRoute, Work
from glimt.frontend.engine_view import COPY_HEADER

_FAILURES = {"openai": ErrorAnswer, "anthropic": AnthropicErrorAnswer}
_NO_BRACES = str.maketrans("", "", "{}")
_REF = "#/components/schemas/{name}"

# Codes of errors by what can bring them about.
_OF_ANY = (
    *("bad_host", "bad_http", "head_timeout", "body_timeout", "request_too_large"),
    *("uri_too_long", "unsupported_media_type", "unsupported_encoding", "headers_too_large"),
    "internal_error",
)
_OF_INPUT = ("invalid_request", "unsupported")
_OF_BODY = (*_OF_INPUT, "invalid_json", "unknown_field", "model_not_found")
_OF_PROMPTS = (
    *("context_length_exceeded", "invalid_grammar", "image_parse_error", "media_url_blocked"),
    *("media_fetch_failed", "overloaded", "not_ready", "paused", "asleep"),
)
_OF_ORDERS = (*_OF_INPUT, "not_ready", "engine_failed")
_OF_ANSWERS = ("engine_failed", "step_failed", "numerical_error", "first_token_timeout")

_TEXT: dict[str, Any] = {"type": "string"}
_SECONDS: dict[str, Any] = {"type": "integer", "minimum": 1}


class Header(NamedTuple):
    """A header beside those that all of HTTP has."""

    name: str
    schema: dict[str, Any]
    meaning: str


LABEL = Header(
    "X-Request-Id",
    _TEXT,
    "The client's name for the request, up to 128 visible ASCII characters, for the log and the "
    "answer",
)
COPY = Header(
    COPY_HEADER,
    {"type": "integer", "minimum": 0},
    "The copy of the model that shall answer, by its number; default: the one with the least to do",
)
ANTHROPIC = Header(
    ANTHROPIC_HEADER.decode(), _TEXT, "With it the answer is what Anthropic's clients expect"
)
ANSWER_ID = Header("X-Request-Id", _TEXT, "The client's name for the request, or the server's id")
IGNORED_FIELDS = Header(
    "X-Glimt-Ignored-Fields", _TEXT, "Fields of the request that nobody knows, or that did nothing"
)
REQUEST_ID = Header("request-id", _TEXT, "The id under which the server's log has the request")
_RETRY = Header("Retry-After", _SECONDS, "Seconds until it is worth another try")
_REPEAT = Header("x-should-retry", {"enum": ["false"]}, "Official clients do not repeat it")
_SCHEME = Header("WWW-Authenticate", _TEXT, "Bearer")
# Of answers by their status.
STATUS_HEADERS = {401: _SCHEME, 429: _RETRY, 500: _REPEAT, 503: _RETRY, 504: _REPEAT}


def document(routes: Iterable[ApiRoute], *, version: str, has_keys: bool) -> dict[str, Any]:
    """The whole document as plain JSON values."""
    routes = tuple(routes)
    kinds = _kinds(routes)
    schemas, components = msgspec.json.schema_components(kinds, ref_template=_REF)
    by_kind = dict(zip(kinds, schemas, strict=True))
    paths = {
        route.path: {
            method.lower(): _operation(route, method, by_kind, has_keys) for method in route.methods
        }
        for route in routes
    }
    parts: dict[str, Any] = {"schemas": components}
    if has_keys:
        parts["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Glimt", "version": version},
        "paths": paths,
        "components": parts,
    }


def failures(route: ApiRoute, *, has_keys: bool) -> dict[int, tuple[str, ...]]:
    """The codes of errors that a route may answer with, by status."""
    by_status: dict[int, list[str]] = {}
    for code in _codes(route, has_keys):
        by_status.setdefault(ERRORS[code].status, []).append(code)
    return {status: tuple(codes) for status, codes in sorted(by_status.items())}


def _codes(route: ApiRoute, has_keys: bool) -> Iterator[str]:
    yield from _OF_ANY
    if has_keys and route.access is not Access.OPEN:
        yield "invalid_api_key"
    if route.access is Access.ADMIN:
        yield "admin_only"
    if route.body is not None:
        yield from _OF_BODY
    elif route.query:
        yield from _OF_INPUT
    elif route.parameter is not None:
        yield "model_not_found"
    if route.work in (Work.PROMPT, Work.ANSWER):
        yield from _OF_PROMPTS
    if route.work is Work.ANSWER:
        yield from _OF_ANSWERS
    if route.work is Work.ORDER:
        yield from _OF_ORDERS


def _kinds(routes: tuple[ApiRoute, ...]) -> tuple[Any, ...]:
    named = [
        kind
        for route in routes
        for kind in (route.body, route.answer, route.anthropic_answer, route.event)
    ]
    known = [kind for kind in named if kind is not None]
    return tuple(dict.fromkeys([*known, *_FAILURES.values()]))


def _operation(
    route: ApiRoute, method: str, by_kind: dict[Any, dict[str, Any]], has_keys: bool
) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": method.lower() + re.sub(r"\W", "_", route.path.translate(_NO_BRACES)),
        "summary": route.summary,
        "parameters": list(_parameters(route)),
        "responses": _responses(route, by_kind, has_keys),
    }
    if route.body is not None:
        body = {"application/json": {"schema": by_kind[route.body]}}
        operation["requestBody"] = {"required": True, "content": body}
    if has_keys and route.access is not Access.OPEN:
        operation["security"] = [{"key": []}]
    return operation


def _parameters(route: ApiRoute) -> Iterator[dict[str, Any]]:
    if route.parameter is not None:
        schema = {"type": "string", "minLength": 1}
        yield {"name": route.parameter, "in": "path", "required": True, "schema": schema}
    for name, values in route.query.items():
        schema = {"type": "string", **({"enum": list(values)} if values else {})}
        yield {"name": name, "in": "query", "schema": schema}
    label = {"name": LABEL.name, "in": "header", "schema": LABEL.schema}
    yield {**label, "description": LABEL.meaning}
    if route.anthropic_answer is not None:
        version = {"name": ANTHROPIC.name, "in": "header", "schema": ANTHROPIC.schema}
        yield {**version, "description": ANTHROPIC.meaning}
    if route.work is Work.ANSWER:
        copy = {"name": COPY.name, "in": "header", "schema": COPY.schema}
        yield {**copy, "description": COPY.meaning}


def _responses(
    route: ApiRoute, by_kind: dict[Any, dict[str, Any]], has_keys: bool
) -> dict[str, Any]:
    content: dict[str, Any] = {}
    if route.answer_type:
        kinds = [each for each in (route.answer, route.anthropic_answer) if each is not None]
        content[route.answer_type] = _any_of(kinds, by_kind)
    if route.event is not None:
        content["text/event-stream"] = {"schema": _event(route, by_kind)}
    success = {"description": "The answer", "content": content}
    responses: dict[str, Any] = {"200": success}
    dialects = {route.errors} if route.anthropic_answer is None else _FAILURES.keys()
    failure = {"application/json": _any_of([_FAILURES[each] for each in dialects], by_kind)}
    for code, names in failures(route, has_keys=has_keys).items():
        responses[str(code)] = {"description": ", ".join(names), "content": failure}
    if route.is_probe:  # the reason, in the shape of the answer
        responses["503"] = {**success, "description": "Not now"}
    for status, response in responses.items():
        response["headers"] = {
            header.name: {"schema": header.schema, "description": header.meaning}
            for header in headers_of(route, int(status))
        }
    return dict(sorted(responses.items()))


def _any_of(kinds: list[Any], by_kind: dict[Any, dict[str, Any]]) -> dict[str, Any]:
    """A body of one of these kinds; nothing is said of it if there are none."""
    schemas = [by_kind[kind] for kind in kinds]
    if not schemas:
        return {}
    return {"schema": schemas[0] if len(schemas) == 1 else {"anyOf": schemas}}


def _event(route: ApiRoute, by_kind: dict[Any, dict[str, Any]]) -> dict[str, Any]:
    """One server-sent event of a stream. A stream that fails ends with an error."""
    content = by_kind[route.event]
    if route.ends_with_done:
        content = {"anyOf": [content, by_kind[_FAILURES[route.errors]]]}
    data: dict[str, Any] = {
        "type": "string",
        "contentMediaType": "application/json",
        "contentSchema": content,
    }
    if route.ends_with_done:
        data = {"anyOf": [{"const": "[DONE]"}, data]}
    return {
        "type": "object",
        "properties": {"event": {"type": "string"}, "data": data},
        "required": ["data"],
    }


def headers_of(route: ApiRoute, status: int) -> list[Header]:
    """The headers that such an answer may have."""
    headers = [ANSWER_ID]
    if status == 200 and route.body is not None:
        headers.append(IGNORED_FIELDS)
    if route.errors == "anthropic" or route.anthropic_answer is not None:
        headers.append(REQUEST_ID)
    if status in STATUS_HEADERS:
        headers.append(STATUS_HEADERS[status])
    return headers
