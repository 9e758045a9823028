"""ApiRoute and RouteTable: a row for each path says who may ask, who answers, and in what shape."""

import enum
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from starlette.types import Receive, Scope, Send

from glimt.api.errors import Dialect
from glimt.api.state import ApiState

ANTHROPIC_HEADER = b"anthropic-version"  # all of Anthropic's clients send it

Endpoint = Callable[[ApiState, Scope, Receive, Send], Awaitable[None]]


class Access(enum.Enum):
    """Who may ask."""

    OPEN = "open"  # everybody: what a load balancer asks
    KEY = "key"  # whoever has an API key, if there are keys
    ADMIN = "admin"  # whoever has an admin key; without such keys the route does not exist


class Work(enum.Enum):
    """What a route has done for its answer, and so the ways in which it can fail."""

    NONE = "none"
    PROMPT = "prompt"  # a prompt is made, media are fetched
    ANSWER = "answer"  # an engine answers it
    ORDER = "order"  # engines carry it out


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiRoute:
    """One path, who may ask, who answers, and the types that the OpenAPI document shows.

    A path that ends in `{name}` takes the rest of an address, slashes included.
    """

    path: str
    methods: tuple[str, ...]
    summary: str
    endpoint: Endpoint
    access: Access = Access.KEY
    work: Work = Work.NONE
    query: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # values by name; () = any
    body: Any = None  # msgspec type of the request's body
    max_body_bytes: int | None = None  # None = the server's limit
    answer: Any = None  # msgspec type of the answer's JSON; None = `answer_type` without schema
    answer_type: str = "application/json"  # "" = an answer without a body
    event: Any = None  # msgspec type of a streamed answer's events
    ends_with_done: bool = False  # a streamed answer ends with `data: [DONE]`
    errors: Dialect = "openai"  # whose shape they have
    anthropic_answer: Any = None  # type of the answer to Anthropic's clients, if it is another
    is_quiet: bool = False  # no log line
    is_probe: bool = False  # a 503 is an answer here, and has its shape

    @property
    def parameter(self) -> str | None:
        """The name in braces."""
        return self.path.partition("{")[2].removesuffix("}") or None


class Match(NamedTuple):
    """A path's route, and the text in place of the name in braces."""

    route: ApiRoute
    argument: str = ""


class RouteTable:
    """All routes of a server. One look-up decides everything: there is no second matching."""

    def __init__(self, routes: Iterable[ApiRoute]) -> None:
        """Raises ValueError if two routes have one path."""
        self._routes = tuple(routes)
        self._fixed = {route.path: route for route in self._routes if route.parameter is None}
        self._open_ended = {
            route.path.partition("{")[0]: route for route in self._routes if route.parameter
        }
        if len(self._fixed) + len(self._open_ended) != len(self._routes):
            raise ValueError("two routes have the same path")

    def __iter__(self) -> Iterator[ApiRoute]:
        return iter(self._routes)

    def find(self, path: str) -> Match | None:
        """The route of a path, compared character by character; None if there is none."""
        if (route := self._fixed.get(path)) is not None:
            return Match(route)
        for start, route in self._open_ended.items():
            if path.startswith(start) and len(path) > len(start):
                return Match(route, path[len(start) :])
        return None
