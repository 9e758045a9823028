"""What of a request becomes its span: names as OpenTelemetry and vLLM give them, no text."""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from starlette.types import Scope

from glimt.api.route import ApiRoute
from glimt.http_series import METHODS, NO_HANDLER
from glimt.traces import Span, Tracer, parent_of

# The log line's facts under the names of the conventions for generative models.
_FACTS = {
    "prompt_tokens": "gen_ai.usage.prompt_tokens",
    "completion_tokens": "gen_ai.usage.completion_tokens",
    "cached_tokens": "gen_ai.usage.cached_tokens",
    "media_tokens": "glimt.usage.media_tokens",
    "finish_reason": "gen_ai.response.finish_reasons",
    "ttft_s": "gen_ai.latency.time_to_first_token",
    "queue_s": "gen_ai.latency.time_in_queue",
    "error": "error.type",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Tracing:
    """Makes the spans and hands them on."""

    tracer: Tracer
    model: str
    wall_clock: Callable[[], float]  # seconds since 1970
    random: random.Random  # ids

    def note(
        self,
        scope: Scope,
        route: ApiRoute | None,
        request_id: str,
        status: int,
        seconds: float,
        facts: Mapping[str, Any],
    ) -> None:
        """A request was answered, `seconds` after it came. Probes are not traced."""
        parent = parent_of(scope["headers"])
        if (route is not None and route.is_quiet) or (parent and not parent.is_sampled):
            return
        end_s = self.wall_clock()
        path = route.path if route is not None else NO_HANDLER
        method = scope["method"] if scope["method"] in METHODS else "other"
        attributes: dict[str, str | int | float | None] = {
            "http.request.method": method,
            "http.route": path,
            "http.response.status_code": status,
            "gen_ai.request.id": request_id,
        }
        if "prompt_tokens" in facts:
            attributes["gen_ai.response.model"] = self.model
            attributes["gen_ai.latency.e2e"] = seconds
        attributes |= {theirs: facts.get(ours) for ours, theirs in _FACTS.items()}
        self.tracer.add(
            Span(
                trace_id=parent.trace_id if parent else f"{self.random.getrandbits(128) or 1:032x}",
                span_id=f"{self.random.getrandbits(64) or 1:016x}",
                parent_id=parent.span_id if parent else None,
                name=f"{method} {path}",
                start_ns=int((end_s - seconds) * 1e9),
                end_ns=int(end_s * 1e9),
                is_error=status >= 500,
                attributes=attributes,
            )
        )
