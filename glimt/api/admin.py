"""What only the operator may ask, with an admin key: pausing, and forgetting caches.

Without an admin key these routes do not exist.
"""

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from glimt.api.answering import json_response
from glimt.api.state import ApiState
from glimt.errors import InvalidRequest, Unsupported

MODES = ("abort", "wait")


class AdminAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What was done."""

    status: str
    num_open: int  # answers that are being made, or wait to be


class PauseState(msgspec.Struct, frozen=True, kw_only=True):
    """Body of GET /is_paused."""

    is_paused: bool


async def pause(state: ApiState, scope: Scope, receive: Receive, send: Send) -> None:
    """POST /pause: take nothing new until /resume. `?mode=abort` (the default) ends what runs with
    an error, `wait` lets it finish. Raises InvalidRequest, Unsupported."""
    mode = Request(scope, receive).query_params.get("mode", "abort")
    if mode == "keep":
        raise Unsupported(
            "mode keep is not supported: running answers cannot be frozen", param="mode"
        )
    if mode not in MODES:
        raise InvalidRequest(f"mode must be one of {', '.join(MODES)}", param="mode")
    state.lifecycle.is_paused = True
    if mode == "abort":
        state.client.end_all("the server was paused")
    await _done(state, "paused")(scope, receive, send)


async def resume(state: ApiState, scope: Scope, receive: Receive, send: Send) -> None:
    """POST /resume: take requests again."""
    state.lifecycle.is_paused = False
    await _done(state, "running")(scope, receive, send)


async def is_paused(state: ApiState, scope: Scope, receive: Receive, send: Send) -> None:
    """GET /is_paused."""
    answer = PauseState(is_paused=state.lifecycle.is_paused)
    await json_response(answer)(scope, receive, send)


async def reset_prefix_cache(state: ApiState, scope: Scope, receive: Receive, send: Send) -> None:
    """POST /reset_prefix_cache: forget the KV of prompts that no running request holds."""
    state.client.reset_caches(prefix=True, images=False)
    await _done(state, "reset")(scope, receive, send)


async def reset_encoder_cache(state: ApiState, scope: Scope, receive: Receive, send: Send) -> None:
    """POST /reset_encoder_cache: forget embeddings that no running request holds."""
    state.client.reset_caches(prefix=False, images=True)
    await _done(state, "reset")(scope, receive, send)


async def reset_mm_cache(state: ApiState, scope: Scope, receive: Receive, send: Send) -> None:
    """POST /reset_mm_cache: forget pixels of media that no running request holds."""
    state.forget_pixels()
    await _done(state, "reset")(scope, receive, send)


def _done(state: ApiState, status: str) -> Response:
    return json_response(AdminAnswer(status=status, num_open=state.client.num_open))
