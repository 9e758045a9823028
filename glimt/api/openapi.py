"""The OpenAPI 3.1 document, made from the table of routes and the types that validate requests."""

import re
from collections.abc import Iterable
from typing import Any

import msgspec

from glimt.api.error_table import ERRORS
from glimt.api.errors import AnthropicErrorAnswer, ErrorAnswer
from glimt.api.route import Access, ApiRoute

_FAILURES = {"openai": ErrorAnswer, "anthropic": AnthropicErrorAnswer}
_NO_BRACES = str.maketrans("", "", "{}")
_REF = "#/components/schemas/{name}"


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


def _kinds(routes: tuple[ApiRoute, ...]) -> tuple[Any, ...]:
    named = [kind for route in routes for kind in (route.body, route.answer, route.event)]
    known = [kind for kind in named if kind is not None]
    return tuple(dict.fromkeys([*known, *_FAILURES.values()]))


def _operation(
    route: ApiRoute, method: str, by_kind: dict[Any, dict[str, Any]], has_keys: bool
) -> dict[str, Any]:
    content: dict[str, Any] = {}
    if route.answer_type:
        shown = {} if route.answer is None else {"schema": by_kind[route.answer]}
        content[route.answer_type] = shown
    if route.event is not None:
        content["text/event-stream"] = {"schema": _event(by_kind[route.event])}
    operation: dict[str, Any] = {
        "operationId": method.lower() + re.sub(r"\W", "_", route.path.translate(_NO_BRACES)),
        "summary": route.summary,
        "responses": {
            "200": {"description": "The answer", "content": content},
            **_failures(route, by_kind[_FAILURES[route.errors]], has_keys),
        },
    }
    if route.access is Access.OPEN:  # a probe says no in the same form
        operation["responses"]["503"] = {"description": "Not ready", "content": content}
    if route.parameter is not None:
        where = {"name": route.parameter, "in": "path", "required": True}
        operation["parameters"] = [{**where, "schema": {"type": "string", "minLength": 1}}]
    if route.body is not None:
        body = {"application/json": {"schema": by_kind[route.body]}}
        operation["requestBody"] = {"required": True, "content": body}
    if has_keys and route.access is not Access.OPEN:
        operation["security"] = [{"key": []}]
    return operation


def _event(schema: dict[str, Any]) -> dict[str, Any]:
    """One server-sent event: its data is JSON, but for the [DONE] that ends some streams."""
    json = {"type": "string", "contentMediaType": "application/json", "contentSchema": schema}
    data = {"anyOf": [{"const": "[DONE]"}, json]}
    return {
        "type": "object",
        "properties": {"event": {"type": "string"}, "data": data},
        "required": ["data"],
    }


def _failures(route: ApiRoute, schema: dict[str, Any], has_keys: bool) -> dict[str, dict[str, Any]]:
    """The statuses that a route may give beside 200, with the codes behind each."""
    statuses = {400, 414, 431, 500}
    if route.body is not None:
        # Whoever makes prompts asks for a model, and for room.
        statuses |= {404, 408, 413, 415, 429, 503}
    if route.event is not None:
        statuses.add(504)
    if route.parameter is not None:
        statuses.add(404)
    if has_keys and route.access is not Access.OPEN:
        statuses.add(401)
    if route.access is Access.ADMIN:
        statuses |= {401, 403, 413, 415}
    codes: dict[int, list[str]] = {}
    for row in ERRORS.values():
        codes.setdefault(row.status, []).append(row.code)
    content = {"application/json": {"schema": schema}}
    return {
        str(status): {"description": ", ".join(codes[status]), "content": content}
        for status in sorted(statuses)
    }
