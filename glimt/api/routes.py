"""The table of all routes: it drives routing, keys, limits, the log, and the OpenAPI document."""

from collections.abc import Callable

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from glimt.api.admin_routes import ADMIN_ROUTES
from glimt.api.answering import json_response
from glimt.api.anthropic import count_tokens, messages
from glimt.api.anthropic_models import QUERY, AnthropicModel, AnthropicModelPage
from glimt.api.anthropic_schema import (
    CountRequest,
    MessagesAnswer,
    MessagesEvent,
    MessagesRequest,
    TokenCount,
)
from glimt.api.chat import chat_completions
from glimt.api.completion import ChatChunk, ChatCompletion
from glimt.api.completions import completions
from glimt.api.completions_schema import Completion, CompletionRequest
from glimt.api.health import Health, health, livez, readyz
from glimt.api.models import ModelCard, ModelList, list_models, one_model
from glimt.api.openapi import document
from glimt.api.responses import responses
from glimt.api.responses_schema import ResponseObject, ResponsesEvent, ResponsesRequest
from glimt.api.route import Access, ApiRoute, Endpoint, RouteTable, Work
from glimt.api.schema import ChatRequest
from glimt.api.state import ApiState
from glimt.api.tokens import (
    DetokenizeRequest,
    RenderedPrompt,
    Text,
    TokenizeRequest,
    Tokens,
    detokenize,
    render_chat,
    tokenize,
)
from glimt.metrics import CONTENT_TYPE


class Version(msgspec.Struct, frozen=True):
    """Body of GET /version."""

    version: str


class Load(msgspec.Struct, frozen=True):
    """Body of GET /load: answers that are being made, or wait to be; tokens of the prompts among
    them that have no token of an answer yet; and the share of the engines that is in use, 0 to 1:
    of their rows or of their KV cache, whichever is the greater.
    """

    server_load: int
    queued_tokens: int
    usage: float


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


def _metrics(state: ApiState) -> Response:
    return Response(state.metrics.render(), media_type=CONTENT_TYPE)


def _version(state: ApiState) -> Response:
    return json_response(Version(state.version))


def _load(state: ApiState) -> Response:
    client = state.client
    return json_response(Load(client.num_held, client.queued_tokens, client.usage))


def _openapi(state: ApiState) -> Response:
    whole = document(route_table(state), version=state.version, has_keys=bool(state.api_keys))
    return Response(msgspec.json.encode(whole), media_type="application/json")


def _index(state: ApiState) -> Response:
    routes = {route.path: route.summary for route in route_table(state)}
    return json_response(Index("glimt", state.version, state.served_names, routes))


ROUTES: tuple[ApiRoute, ...] = (
    ApiRoute(
        path="/v1/chat/completions",
        methods=("POST",),
        summary="Answer a conversation with text, images and videos; streamed or whole",
        endpoint=chat_completions,
        work=Work.ANSWER,
        body=ChatRequest,
        answer=ChatCompletion,
        event=ChatChunk,
        ends_with_done=True,
    ),
    ApiRoute(
        path="/v1/chat/completions/render",
        methods=("POST",),
        summary="The prompt and parameters that a chat request comes to; nothing is generated",
        endpoint=render_chat,
        work=Work.PROMPT,
        body=ChatRequest,
        answer=RenderedPrompt,
    ),
    ApiRoute(
        path="/v1/completions",
        methods=("POST",),
        summary="Continue texts or token ids as they are, without a chat template",
        endpoint=completions,
        work=Work.ANSWER,
        body=CompletionRequest,
        answer=Completion,
        event=Completion,
        ends_with_done=True,
    ),
    ApiRoute(
        path="/v1/responses",
        methods=("POST",),
        summary="Answer a conversation as OpenAI's newer clients have it; streamed or whole",
        endpoint=responses,
        work=Work.ANSWER,
        body=ResponsesRequest,
        answer=ResponseObject,
        event=ResponsesEvent,
    ),
    ApiRoute(
        path="/v1/messages",
        methods=("POST",),
        summary="Answer a conversation as Anthropic's clients have it; streamed or whole",
        endpoint=messages,
        work=Work.ANSWER,
        body=MessagesRequest,
        answer=MessagesAnswer,
        event=MessagesEvent,
        errors="anthropic",
    ),
    ApiRoute(
        path="/v1/messages/count_tokens",
        methods=("POST",),
        summary="How many tokens such a conversation has, images and tools included",
        endpoint=count_tokens,
        work=Work.PROMPT,
        body=CountRequest,
        answer=TokenCount,
        errors="anthropic",
    ),
    ApiRoute(
        path="/v1/models",
        methods=("GET",),
        summary="The names under which the model is served, and its limits",
        endpoint=list_models,
        query=QUERY,
        answer=ModelList,
        anthropic_answer=AnthropicModelPage,
    ),
    ApiRoute(
        path="/v1/models/{model}",
        methods=("GET",),
        summary="One of these names",
        endpoint=one_model,
        answer=ModelCard,
        anthropic_answer=AnthropicModel,
    ),
    ApiRoute(
        path="/tokenize",
        methods=("POST",),
        summary="The tokens of a text, or of a conversation with its images and videos",
        endpoint=tokenize,
        work=Work.PROMPT,
        body=TokenizeRequest,
        answer=Tokens,
    ),
    ApiRoute(
        path="/detokenize",
        methods=("POST",),
        summary="The text of tokens",
        endpoint=detokenize,
        body=DetokenizeRequest,
        max_body_bytes=8 * 2**20,
        answer=Text,
    ),
    ApiRoute(
        path="/health",
        methods=("GET",),
        summary="200 without a body if requests are taken, else 503",
        endpoint=_get(health),
        answer_type="",
        access=Access.OPEN,
        is_quiet=True,
        is_probe=True,
    ),
    ApiRoute(
        path="/ping",
        methods=("GET", "POST"),
        summary="The same as /health",
        endpoint=_get(health),
        answer_type="",
        access=Access.OPEN,
        is_quiet=True,
        is_probe=True,
    ),
    ApiRoute(
        path="/livez",
        methods=("GET",),
        summary="Whether this process should be left alone",
        endpoint=_get(livez),
        answer=Health,
        access=Access.OPEN,
        is_quiet=True,
        is_probe=True,
    ),
    ApiRoute(
        path="/readyz",
        methods=("GET",),
        summary="Whether requests are taken, and if not, why",
        endpoint=_get(readyz),
        answer=Health,
        access=Access.OPEN,
        is_quiet=True,
        is_probe=True,
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
        path="/load",
        methods=("GET",),
        summary="How many answers are being made or wait to be, prompt tokens that wait, use",
        endpoint=_get(_load),
        answer=Load,
        is_quiet=True,
    ),
    *ADMIN_ROUTES,
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


def route_table(state: ApiState) -> RouteTable:
    """The routes of a server with these settings."""
    has_admin = bool(state.admin_keys)
    return RouteTable(each for each in ROUTES if has_admin or each.access is not Access.ADMIN)
