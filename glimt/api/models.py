"""GET /v1/models: the names under which the model is served, and what one request may hold.

OpenAI's and Anthropic's clients ask at one address, and read different answers.
"""

from typing import Annotated

import msgspec
from msgspec import Meta
from starlette.datastructures import QueryParams
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from glimt.api.answering import json_response, unserved
from glimt.api.anthropic_models import anthropic_model, anthropic_page
from glimt.api.call import Call
from glimt.api.state import ApiState


class ModelLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What one request may hold."""

    max_model_len: Annotated[int, Meta(description="Tokens of prompt and answer together.")]
    max_images: int
    max_videos: int
    max_body_bytes: int
    max_n: int = 16
    max_logprobs: int


class ModelCard(msgspec.Struct, frozen=True, kw_only=True):
    """A name under which the model is served."""

    id: str
    object: str = "model"
    created: int
    owned_by: str = "glimt"
    root: str
    parent: str | None = None
    max_model_len: int | None
    permission: list[str] = []
    limits: ModelLimits | None = None


class ModelList(msgspec.Struct, frozen=True, kw_only=True):
    """Body of GET /v1/models."""

    object: str = "list"
    data: list[ModelCard]


async def list_models(state: ApiState, scope: Scope, receive: Receive, send: Send) -> None:
    """GET /v1/models. Raises InvalidRequest for a page that Anthropic's clients cannot have."""
    call: Call = scope["glimt.call"]
    if call.dialect == "anthropic":
        page = anthropic_page(state, QueryParams(scope["query_string"]))
        response = _of_anthropic(page, call)
    else:
        cards = [_card(state, name) for name in state.served_names]
        response = json_response(ModelList(data=cards))
    await response(scope, receive, send)


async def one_model(state: ApiState, scope: Scope, receive: Receive, send: Send) -> None:
    """GET /v1/models/{model}; names of the hub hold a slash. Raises ModelNotFound."""
    call: Call = scope["glimt.call"]
    name = call.match.argument if call.match is not None else ""
    if name not in state.served_names:
        raise unserved(state, name)
    if call.dialect == "anthropic":
        response = _of_anthropic(anthropic_model(state, name), call)
    else:
        response = json_response(_card(state, name))
    await response(scope, receive, send)


def _of_anthropic(value: msgspec.Struct, call: Call) -> Response:
    response = json_response(value)
    response.headers["request-id"] = call.id
    return response


def _card(state: ApiState, name: str) -> ModelCard:
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
    return ModelCard(
        id=name,
        created=state.started_at,
        root=state.model_name,
        max_model_len=info.max_model_len if info else None,
        limits=limits,
    )
