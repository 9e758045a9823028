"""ApiRoute: one row of the table of routes."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from starlette.types import Receive, Scope, Send

from glimt.api.state import ApiState

Endpoint = Callable[[ApiState, Scope, Receive, Send], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiRoute:
    """One path, who answers it, and the types that the OpenAPI document shows."""

    path: str
    methods: tuple[str, ...]
    summary: str
    endpoint: Endpoint
    body: Any = None  # msgspec type of the request's body
    answer: Any = None  # msgspec type of the answer's JSON; None = `answer_type` without schema
    answer_type: str = "application/json"
    event: Any = None  # msgspec type of a streamed answer's events
    is_quiet: bool = False  # no log line
