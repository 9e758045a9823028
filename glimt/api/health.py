"""Whether the server lives, and whether it takes requests; both say why not."""

import msgspec
from starlette.responses import Response

from glimt.api.errors import RETRY_SOON
from glimt.api.state import ApiState

# An engine speaks after each step, and twice a second when idle. A long step is no hang, so
# traffic is led elsewhere first; the supervisor ends an engine that makes no progress by itself,
# and liveness fails only when that did not help.
MAX_READY_SILENCE_S = 30.0
MAX_LIVE_SILENCE_S = 180.0


class Health(msgspec.Struct, frozen=True):
    """Body of GET /livez and /readyz: `ok`, or the reason."""

    status: str


def reason_not_live(state: ApiState) -> str | None:
    """Why the whole server should be restarted; None = it should not."""
    silence_s = state.client.silence_s
    if silence_s > MAX_LIVE_SILENCE_S:
        return f"the engine has said nothing for {silence_s:.0f} s"
    return None


def reason_not_ready(state: ApiState) -> str | None:
    """Why requests should go elsewhere; a full queue is no reason."""
    if state.lifecycle.is_draining:
        return "draining"
    if state.lifecycle.is_paused:
        return "paused"
    if state.lifecycle.is_going_to_sleep or state.client.sleep_level:
        return "asleep"
    if not state.client.all_servers_started:
        return "a server process is still starting"
    if state.client.num_engines == 0:
        return "the engine is not ready"
    silence_s = state.client.silence_s
    if silence_s > MAX_READY_SILENCE_S:
        return f"the engine has said nothing for {silence_s:.0f} s"
    return None


def livez(state: ApiState) -> Response:
    """GET /livez."""
    return _answer(reason_not_live(state))


def readyz(state: ApiState) -> Response:
    """GET /readyz."""
    return _answer(reason_not_ready(state))


def health(state: ApiState) -> Response:
    """GET /health and /ping: readiness without a body, as vLLM's clients know it."""
    return _response(reason_not_ready(state), b"")


def _answer(reason: str | None) -> Response:
    response = _response(reason, msgspec.json.encode(Health(reason or "ok")))
    response.headers["content-type"] = "application/json"
    return response


def _response(reason: str | None, body: bytes) -> Response:
    if reason is None:
        return Response(body)
    return Response(body, status_code=503, headers=RETRY_SOON)
