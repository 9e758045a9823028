"""Assembles the ASGI application. `create_app` is all that a server process needs."""

from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from glimt.api.auth import Auth
from glimt.api.call import Boundary, Call
from glimt.api.limits import BodyLimits, HeadLimits
from glimt.api.route import ApiRoute
from glimt.api.routes import ROUTES
from glimt.api.state import ApiState


def create_app(state: ApiState) -> ASGIApp:
    """The whole application over `state`.

    From outside in: browsers' cross-origin checks (only if origins are allowed), identity and
    errors, size of the head, key, body, route. A key is asked for before a body is read, and
    for every path, known or not, beside the open ones.
    """
    app: ASGIApp = Router(
        [Route(each.path, _Endpoint(state, each), methods=list(each.methods)) for each in ROUTES],
        redirect_slashes=False,
    )
    app = BodyLimits(app, state.limits, state.clock)
    app = Auth(app, state.api_keys)
    app = HeadLimits(app, state.limits)
    app = Boundary(
        app,
        new_id=lambda: f"{state.random.getrandbits(128):032x}",
        clock=state.clock,
        metrics=state.metrics,
        echo_labels=state.request_id_headers,
    )
    if not state.allowed_origins:
        return app
    return CORSMiddleware(
        app,
        allow_origins=state.allowed_origins,
        allow_methods=("GET", "POST"),
        allow_headers=("*",),
        expose_headers=("x-request-id", "x-glimt-ignored-fields", "retry-after"),
    )


class _Endpoint:
    """A route's endpoint as an ASGI application."""

    def __init__(self, state: ApiState, route: ApiRoute) -> None:
        self._state = state
        self._route = route

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        call: Call = scope["glimt.call"]
        call.is_quiet = self._route.is_quiet
        await self._route.endpoint(self._state, scope, receive, send)
