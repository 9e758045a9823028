"""The series of HTTP requests, under the names that FastAPI servers give them.

`handler` is a path of the table of routes, with names in braces; what is at no address of ours is
`none`. Nothing a client writes becomes a label.
"""

from prometheus_client import CollectorRegistry, Counter, Histogram, Summary

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
NO_HANDLER = "none"

_FEW_S = (0.1, 0.5, 1.0)
_MANY_S = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5),
    *(5.0, 7.5, 10.0, 30.0, 60.0),
)


class HttpSeries:
    """Counts, times and sizes of answers. Children appear when they are first needed."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._requests = Counter(
            "http_requests",
            "Requests answered",
            ("method", "status", "handler"),
            registry=registry,
        )
        self._request_size = Summary(
            "http_request_size_bytes", "Bodies of requests", ("handler",), registry=registry
        )
        self._response_size = Summary(
            "http_response_size_bytes", "Bodies of answers", ("handler",), registry=registry
        )
        self._duration = Histogram(
            "http_request_duration_seconds",
            "First byte in to last byte out",
            ("method", "handler"),
            buckets=_FEW_S,
            registry=registry,
        )
        self._duration_fine = Histogram(
            "http_request_duration_highr_seconds",
            "The same over all handlers, in finer steps",
            buckets=_MANY_S,
            registry=registry,
        )

    def observe(
        self,
        *,
        handler: str,
        method: str,
        status: int,
        seconds: float,
        request_bytes: int,
        response_bytes: int,
    ) -> None:
        """One request was answered. `handler` must come from the table of routes."""
        method = method if method in METHODS else "other"
        self._requests.labels(method, f"{status // 100}xx", handler).inc()
        self._request_size.labels(handler).observe(request_bytes)
        self._response_size.labels(handler).observe(response_bytes)
        self._duration.labels(method, handler).observe(seconds)
        self._duration_fine.observe(seconds)
