"""What only the operator may ask, with an admin key: pausing, sleeping, profiles, caches.

Without an admin key these routes do not exist. Of several server processes any one may be asked:
what engines do it orders once, what servers do it does itself and tells the others.
"""

import asyncio

import msgspec
from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from glimt.api.answering import json_response
from glimt.api.state import ApiState
from glimt.errors import InvalidRequest, Unsupported
from glimt.experts.load import ExpertLoad, added

MODES = ("abort", "wait")
LEVELS = ("1", "2")
TAGS = ("weights", "kv_cache")

QUIET_INTERVAL_S = 0.02  # at which one looks whether other servers have nothing open any more


class AdminAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What was done."""

    status: str
    num_open: int  # answers that are being made, or wait to be


class PauseState(msgspec.Struct, frozen=True, kw_only=True):
    """Body of GET /is_paused."""

    is_paused: bool


class SleepState(msgspec.Struct, frozen=True, kw_only=True):
    """Body of GET /is_sleeping, and what /sleep and /wake_up came to."""

    is_sleeping: bool
    level: int  # 0 = awake


class ProfileAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """A folder for each engine's profile, or the files written."""

    status: str
    paths: tuple[str, ...]


async def pause(state: ApiState, scope: Scope, receive: Receive, send: Send) -> None:
    """POST /pause: take nothing new until /resume. `?mode=abort` (the default) ends what runs with
    an error, `wait` lets it finish. Raises InvalidRequest, Unsupported."""
    query = Request(scope, receive).query_params
    _check_names(query, "mode")
    mode = _mode(query)
    state.lifecycle.board.is_paused = True
    if mode == "abort":
        _end_all(state, "the server was paused")
    await _done(state, "paused")(scope, receive, send)


async def resume(state: ApiState, scope: Scope, receive: Receive, send: Send) -> None:
    """POST /resume: take requests again."""
    state.lifecycle.board.is_paused = False
    await _done(state, "running")(scope, receive, send)


async def is_paused(state: ApiState, scope: Scope, receive: Receive, send: Send) -> None:
    """GET /is_paused."""
    answer = PauseState(is_paused=state.lifecycle.is_paused)
    await json_response(answer)(scope, receive, send)


async def sleep(state: ApiState, scope: Scope, receive: Receive, send: Send) -> None:
    """POST /sleep: give the engines' memory back until /wake_up. `?level=1` (the default) keeps the
    weights in host memory, 2 drops them; `mode` as for /pause. Answers when it is done.

    Raises InvalidRequest, Unsupported, EngineDied, EngineFailed.
    """
    query = Request(scope, receive).query_params
    _check_names(query, "level", "mode")
    level = _one_of(query, "level", LEVELS, "1")
    mode = _mode(query)
    state.lifecycle.board.note_quiet(True)
    try:
        if mode == "abort":
            _end_all(state, "the engine is put to sleep")
        await state.client.drain()
        while state.client.num_held:
            await asyncio.sleep(QUIET_INTERVAL_S)
        _forget_pixels(state)
        await state.client.order("sleep", level=int(level))
    finally:
        state.lifecycle.board.note_quiet(False)
    await _sleep_state(state)(scope, receive, send)


async def wake_up(state: ApiState, scope: Scope, receive: Receive, send: Send) -> None:
    """POST /wake_up: take memory again, and requests. Answers when that is done.

    Raises InvalidRequest, Unsupported, EngineDied, EngineFailed.
    """
    query = Request(scope, receive).query_params
    _check_names(query, "tags")
    tags = set(query.getlist("tags"))
    if unknown := sorted(tags - set(TAGS)):
        known = ", ".join(TAGS)
        raise InvalidRequest(f"tags are {known}, not {unknown[0][:64]}", param="tags")
    if tags and tags != set(TAGS):
        raise Unsupported("an engine wakes as a whole: leave tags out", param="tags")
    await state.client.order("wake")
    await _sleep_state(state)(scope, receive, send)


async def is_sleeping(state: ApiState, scope: Scope, receive: Receive, send: Send) -> None:
    """GET /is_sleeping."""
    await _sleep_state(state)(scope, receive, send)


async def start_profile(state: ApiState, scope: Scope, receive: Receive, send: Send) -> None:
    """POST /start_profile: record what the engines do. Raises Unsupported, InvalidRequest."""
    folders = await state.client.order("start_profile")
    answer = ProfileAnswer(status="recording", paths=tuple(dict.fromkeys(folders)))
    await json_response(answer)(scope, receive, send)


async def stop_profile(state: ApiState, scope: Scope, receive: Receive, send: Send) -> None:
    """POST /stop_profile: write what was recorded; answers when that is done."""
    files = await state.client.order("stop_profile")
    await json_response(ProfileAnswer(status="written", paths=files))(scope, receive, send)


async def expert_load(state: ApiState, scope: Scope, receive: Receive, send: Send) -> None:
    """GET /expert_load: how many tokens chose each expert, of all engines together.

    Raises Unsupported unless they are counted, EngineDied, EngineFailed.
    """
    answers = await state.client.order("expert_load")
    loads = [msgspec.json.decode(answer, type=ExpertLoad) for answer in answers]
    load = msgspec.structs.replace(added(loads), model=state.served_names[0])
    await json_response(load)(scope, receive, send)


async def reset_prefix_cache(state: ApiState, scope: Scope, receive: Receive, send: Send) -> None:
    """POST /reset_prefix_cache: forget the KV of prompts that no running request holds."""
    state.client.reset_caches(prefix=True, images=False)
    state.tell_others("forget_routes", "")
    await _done(state, "reset")(scope, receive, send)


async def reset_encoder_cache(state: ApiState, scope: Scope, receive: Receive, send: Send) -> None:
    """POST /reset_encoder_cache: forget embeddings that no running request holds."""
    state.client.reset_caches(prefix=False, images=True)
    state.tell_others("forget_routes", "")
    await _done(state, "reset")(scope, receive, send)


async def reset_mm_cache(state: ApiState, scope: Scope, receive: Receive, send: Send) -> None:
    """POST /reset_mm_cache: forget pixels of media that no running request holds."""
    _forget_pixels(state)
    await _done(state, "reset")(scope, receive, send)


def _end_all(state: ApiState, reason: str) -> None:
    state.tell_others("end_open", reason)
    state.client.end_all(reason)


def _forget_pixels(state: ApiState) -> None:
    state.tell_others("forget_pixels", "")
    state.forget_pixels()


def _mode(query: QueryParams) -> str:
    """What becomes of running answers: `abort` or `wait`. Raises InvalidRequest, Unsupported."""
    if query.get("mode") == "keep":
        raise Unsupported(
            "mode keep is not supported: running answers cannot be frozen", param="mode"
        )
    return _one_of(query, "mode", MODES, "abort")


def _one_of(query: QueryParams, name: str, values: tuple[str, ...], default: str) -> str:
    given = query.getlist(name) or [default]
    if len(given) > 1 or given[0] not in values:
        raise InvalidRequest(f"{name} must be one of {', '.join(values)}", param=name)
    return given[0]


def _check_names(query: QueryParams, *known: str) -> None:
    """An order that is misspelt is not the order without it, which may end what runs."""
    if unknown := sorted(set(query) - set(known)):
        name = unknown[0][:64]
        raise InvalidRequest(f"{name!r} is not known here, only {', '.join(known)}", param=name)


def _sleep_state(state: ApiState) -> Response:
    level = state.client.sleep_level
    return json_response(SleepState(is_sleeping=level > 0, level=level))


def _done(state: ApiState, status: str) -> Response:
    return json_response(AdminAnswer(status=status, num_open=state.client.num_held))
