"""The table of all routes: it drives routing, the log, and the OpenAPI document.

Which of them need no key is the literal tuple `auth.OPEN_PATHS`.
"""

from collections.abc import Callable
from typing import Any

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from glimt.api.chat import chat_completions
from glimt.api.completion import ChatChunk, ChatCompletion, ModelCard, ModelLimits, ModelList
from glimt.api.health import Health, health, livez, readyz
from glimt.api.openapi import document
from glimt.api.route import ApiRoute, Endpoint
from glimt.api.schema import ChatRequest
from glimt.api.state import ApiState
from glimt.metrics import CONTENT_TYPE


class Version(msgspec.Struct, frozen=True):
    """Body of GET /version."""

    version: str


class Index(msgspec.Struct, frozen=True):
    """Body of GET /: what this is, and where to read on."""

    name: str
    version: str
    models: tuple[str, ...]
    routes: dict[str, str]


def _get(answer: Callable[[ApiState], Response]) -> Endpoint:
    """An endpoint whose answer needs nothing of the request."""

    async def endpoint(state: ApiState, scope: Scope, receive: Receive, send: Send) -> None:
        await answer(state)(scope, receive, send)

    return endpoint


def _json(value: Any) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")


def _models(state: ApiState) -> Response:
    """Limits come from the engine; while there is none the names still show."""
    info = state.client.info if state.client.num_engines else None
    limits = None
    if info is not None:
        limits = ModelLimits(
            max_model_len=info.max_model_len,
            max_images=state.max_images,
            max_videos=state.max_videos,
            max_body_bytes=state.limits.max_body_bytes,
            max_logprobs=info.max_logprobs,
        )
    cards = [
        ModelCard(
            id=name,
            created=state.started_at,
            root=state.model_name,
            max_model_len=info.max_model_len if info else None,
            limits=limits,
        )
        for name in state.served_names
    ]
    return _json(ModelList(data=cards))


def _metrics(state: ApiState) -> Response:
    return Response(state.metrics.render(), media_type=CONTENT_TYPE)


def _version(state: ApiState) -> Response:
    return _json(Version(state.version))


def _openapi(state: ApiState) -> Response:
    return _json(document(ROUTES, version=state.version, has_keys=bool(state.api_keys)))


def _index(state: ApiState) -> Response:
    routes = {route.path: route.summary for route in ROUTES}
    return _json(Index("glimt", state.version, state.served_names, routes))


ROUTES: tuple[ApiRoute, ...] = (
    ApiRoute(
        path="/v1/chat/completions",
        methods=("POST",),
        summary="Answer a conversation with text, images and videos; streamed or whole",
        endpoint=chat_completions,
        body=ChatRequest,
        answer=ChatCompletion,
        event=ChatChunk,
    ),
    ApiRoute(
        path="/v1/models",
        methods=("GET",),
        summary="The names under which the model is served, and its limits",
        endpoint=_get(_models),
        answer=ModelList,
    ),
    ApiRoute(
        path="/health",
        methods=("GET",),
        summary="200 without a body if requests are taken, else 503",
        endpoint=_get(health),
        answer_type="text/plain",
        is_quiet=True,
    ),
    ApiRoute(
        path="/ping",
        methods=("GET", "POST"),
        summary="The same as /health",
        endpoint=_get(health),
        answer_type="text/plain",
        is_quiet=True,
    ),
    ApiRoute(
        path="/livez",
        methods=("GET",),
        summary="Whether this process should be left alone",
        endpoint=_get(livez),
        answer=Health,
        is_quiet=True,
    ),
    ApiRoute(
        path="/readyz",
        methods=("GET",),
        summary="Whether requests are taken, and if not, why",
        endpoint=_get(readyz),
        answer=Health,
        is_quiet=True,
    ),
    ApiRoute(
        path="/metrics",
        methods=("GET",),
        summary="Prometheus text",
        endpoint=_get(_metrics),
        answer_type="text/plain",
        is_quiet=True,
    ),
    ApiRoute(
        path="/metrics/",
        methods=("GET",),
        summary="The same as /metrics",
        endpoint=_get(_metrics),
        answer_type="text/plain",
        is_quiet=True,
    ),
    ApiRoute(
        path="/version",
        methods=("GET",),
        summary="The version of this server",
        endpoint=_get(_version),
        answer=Version,
    ),
    ApiRoute(
        path="/openapi.json",
        methods=("GET",),
        summary="This document",
        endpoint=_get(_openapi),
        answer_type="application/json",
    ),
    ApiRoute(
        path="/",
        methods=("GET",),
        summary="What this is, and its routes",
        endpoint=_get(_index),
        answer=Index,
    ),
)
