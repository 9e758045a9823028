"""GET /v1/models: the names under which the model is served, and what one request may hold."""

from typing import Annotated

import msgspec
from msgspec import Meta
from starlette.types import Receive, Scope, Send

from glimt.api.answering import json_response, unserved
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
    """GET /v1/models."""
    cards = [_card(state, name) for name in state.served_names]
    await json_response(ModelList(data=cards))(scope, receive, send)


async def one_model(state: ApiState, scope: Scope, receive: Receive, send: Send) -> None:
    """GET /v1/models/{model}; names of the hub hold a slash. Raises ModelNotFound."""
    call: Call = scope["glimt.call"]
    name = call.match.argument if call.match is not None else ""
    if name not in state.served_names:
        raise unserved(state, name)
    await json_response(_card(state, name))(scope, receive, send)


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
