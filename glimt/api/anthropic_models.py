"""GET /v1/models as Anthropic's clients have it: pages of the names, each with its limits."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Literal

import msgspec
from msgspec import Meta
from starlette.datastructures import QueryParams

from glimt.api.state import ApiState
from glimt.errors import InvalidRequest

LIFECYCLE = ("active", "deprecated", "retired")
QUERY = {"limit": (), "after_id": (), "before_id": (), "lifecycle[]": LIFECYCLE}

_MAX_LIMIT = 1000
_DEFAULT_LIMIT = "20"


class AnthropicModel(msgspec.Struct, frozen=True, kw_only=True):
    """A name under which the model is served. Token limits are null while there is no engine."""

    type: Literal["model"] = "model"
    id: str
    display_name: str
    created_at: Annotated[datetime, Meta(description="When this server started.")]
    lifecycle: Literal["active"] = "active"
    max_input_tokens: int | None
    max_tokens: int | None


class AnthropicModelPage(msgspec.Struct, frozen=True, kw_only=True):
    """Body of GET /v1/models for Anthropic's clients; the ids are null on a page without names."""

    data: list[AnthropicModel]
    has_more: bool
    first_id: str | None
    last_id: str | None


def anthropic_model(state: ApiState, name: str) -> AnthropicModel:
    """One name."""
    max_tokens = state.client.info.max_model_len if state.client.num_engines else None
    return AnthropicModel(
        id=name,
        display_name=name,
        created_at=datetime.fromtimestamp(state.started_at, UTC),
        max_input_tokens=max_tokens,
        max_tokens=max_tokens,
    )


def anthropic_page(state: ApiState, query: QueryParams) -> AnthropicModelPage:
    """The names that `limit`, `after_id`, `before_id` and `lifecycle` ask for.

    Raises InvalidRequest for values of these that cannot be.
    """
    names, has_more = _page(state.served_names, query)
    return AnthropicModelPage(
        data=[anthropic_model(state, name) for name in names],
        has_more=has_more,
        first_id=names[0] if names else None,
        last_id=names[-1] if names else None,
    )


def _page(names: Sequence[str], query: QueryParams) -> tuple[Sequence[str], bool]:
    """(some of the names, whether there are more in the direction asked for)."""
    limit = _limit(query.get("limit", _DEFAULT_LIMIT))
    if not _asks_for_active([*query.getlist("lifecycle[]"), *query.getlist("lifecycle")]):
        return (), False
    if "before_id" in query:
        if "after_id" in query:
            raise InvalidRequest("give after_id or before_id, not both", param="before_id")
        names = names[: _place(names, query, "before_id")]
        return names[-limit:], len(names) > limit
    if "after_id" in query:
        names = names[_place(names, query, "after_id") + 1 :]
    return names[:limit], len(names) > limit


def _limit(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:9]) <= _MAX_LIMIT):
        raise InvalidRequest(f"limit must be a number from 1 to {_MAX_LIMIT}", param="limit")
    return int(text)


def _asks_for_active(lifecycle: list[str]) -> bool:
    """All that is served is active. No wish is for that, too."""
    if unknown := sorted(set(lifecycle) - set(LIFECYCLE)):
        known = ", ".join(LIFECYCLE)
        text = f"lifecycle is one of {known}, not {unknown[0][:64]!r}"
        raise InvalidRequest(text, param="lifecycle")
    return not lifecycle or "active" in lifecycle


def _place(names: Sequence[str], query: QueryParams, field: str) -> int:
    name = query[field]
    if name not in names:
        raise InvalidRequest(f"{field}: there is no model {name[:128]!r} here", param=field)
    return names.index(name)
