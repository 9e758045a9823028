"""Assembles the ASGI application. `create_app` is all that a server process needs."""

import re

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from glimt.api.auth import Auth
from glimt.api.call import Boundary, Call
from glimt.api.errors import HttpError
from glimt.api.limits import BodyLimits, HeadLimits
from glimt.api.route import RouteTable
from glimt.api.routes import route_table
from glimt.api.state import ApiState
from glimt.api.tracing import Tracing


def create_app(state: ApiState) -> ASGIApp:
    """The whole application over `state`.

    From outside in: browsers' cross-origin checks (only if origins are allowed), identity, route
    and errors, size of the head, key, address and method, body, endpoint. A key is asked for before
    a body is read, and for every path, known or not, beside the open ones; where nobody reads a
    body, nothing is wrong with it.
    """
    routes = route_table(state)
    app: ASGIApp = _Dispatch(state)
    app = BodyLimits(app, state.limits, state.clock)
    app = _Address(app, routes)
    app = Auth(app, state.api_keys, state.admin_keys)
    app = HeadLimits(app, state.limits)
    app = Boundary(
        app,
        routes,
        new_id=lambda: f"{state.random.getrandbits(128):032x}",
        clock=state.clock,
        metrics=state.metrics,
        shows_ids=state.request_id_headers,
        tracing=_tracing(state),
        log_access=state.log_access,
        quiet_paths=state.quiet_paths,
    )
    if not state.allowed_origins:
        return app
    return CORSMiddleware(
        app,
        allow_origins=state.allowed_origins,
        allow_methods=state.allowed_methods,
        allow_headers=state.allowed_headers,
        allow_credentials=state.allow_credentials,
        expose_headers=("x-request-id", "x-glimt-ignored-fields", "retry-after"),
    )


def _tracing(state: ApiState) -> Tracing | None:
    if state.tracer is None:
        return None
    return Tracing(
        tracer=state.tracer,
        model=state.served_names[0],
        wall_clock=state.wall_clock,
        random=state.random,
    )


class _Address:
    """Passes on what has a route. Raises HttpError 404 for no route, 405 for a method that it does
    not have.
    """

    def __init__(self, app: ASGIApp, routes: RouteTable) -> None:
        self._app = app
        self._routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        call: Call = scope["glimt.call"]
        if call.match is None:
            raise HttpError("not_found", _nothing_here(scope["path"], self._routes))
        route = call.match.route
        # A GET without its body: HTTP asks for both or neither, and the server leaves it out.
        methods = (*route.methods, "HEAD") if "GET" in route.methods else route.methods
        if scope["method"] not in methods:
            allowed = ", ".join(methods)
            text = f"the methods here are {allowed}"
            raise HttpError("method_not_allowed", text, {"Allow": allowed})
        await self._app(scope, receive, send)


class _Dispatch:
    """Calls the endpoint of the route that the call was found to mean."""

    def __init__(self, state: ApiState) -> None:
        self._state = state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        call: Call = scope["glimt.call"]
        if call.match is None:
            raise ValueError("nothing without a route may come here")
        await call.match.route.endpoint(self._state, scope, receive, send)


def _nothing_here(path: str, routes: RouteTable) -> str:
    """What to do about an address without a route: most are base addresses with a /v1 too few, or
    one or a slash too many.
    """
    rest = re.sub("^(/v1(?=/))+", "", re.sub("//+", "/", path)).rstrip("/")
    for meant in (f"/v1{rest}", rest):
        if routes.find(meant) is not None:
            return f"there is nothing at this address; {meant} is what was meant?"
    if rest.startswith(_KEPT):
        return "this server keeps nothing of a request, and no files; GET / lists all it has"
    if rest in _OTHER_MODELS:
        return f"this server has no {rest[1:]}: its model answers conversations; GET / lists all"
    return "there is nothing at this address; GET / lists all"


# Where OpenAI's and Anthropic's servers keep something.
_KEPT = ("/responses/", "/files", "/batches", "/conversations", "/messages/batches")
# What OpenAI's clients ask of models that make something other than text.
_OTHER_MODELS = frozenset(
    {
        *("/embeddings", "/moderations", "/rerank", "/score", "/images/generations"),
        *("/audio/speech", "/audio/transcriptions", "/audio/translations"),
    }
)
