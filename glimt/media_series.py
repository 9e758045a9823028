"""The series of images and videos on their way to pixels, and of the memory that these lie in."""

from collections.abc import Callable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

MEDIA_KINDS = ("image", "video")

_SECONDS = (
    *(0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0),
)
_PARTS = {
    "queue": "Wait of one medium for a worker",
    "decode": "Decoding of one medium",
    "resize": "Resizing of one medium, and cutting it into patches",
}


class MediaSeries:
    """Those of one server, in `registry`; `who` are the labels that all its series have."""

    def __init__(self, registry: CollectorRegistry, who: Mapping[str, str]) -> None:
        self._registry = registry
        self._who = who
        self._seconds = self._by_kind("glimt:media_seconds", "Fetch to pixels of one medium")
        self._parts = {
            part: self._by_kind(f"glimt:media_{part}_seconds", text)
            for part, text in _PARTS.items()
        }
        self.waiting = self._gauge("glimt:num_media_waiting", "Media not yet prepared")
        self._queries = self._counter("vllm:mm_cache_queries", "Media items looked up")
        self._hits = self._counter("vllm:mm_cache_hits", "Media items found prepared")
        self._free = self._gauge(
            "glimt:media_memory_free_bytes", "Memory for pixels that nothing holds"
        )
        self._kept = self._gauge(
            "glimt:media_memory_items", "Prepared media in memory, in use or cached"
        )
        self.fetch_errors = self._counter("glimt:media_fetch_errors", "Failed fetches")

    def _counter(self, name: str, text: str) -> Counter:
        return Counter(name, text, self._who.keys(), registry=self._registry).labels(**self._who)

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(name, text, self._who.keys(), registry=self._registry).labels(**self._who)

    def _by_kind(self, name: str, text: str) -> dict[str, Histogram]:
        family = Histogram(
            name, text, (*self._who, "kind"), registry=self._registry, buckets=_SECONDS
        )
        return {kind: family.labels(**self._who, kind=kind) for kind in MEDIA_KINDS}

    def observe(self, kind: str, seconds: float) -> None:
        """An image or video was fetched, decoded and resized in `seconds`."""
        self._seconds[kind].observe(seconds)

    def observe_work(self, kind: str, *, queue_s: float, decode_s: float, resize_s: float) -> None:
        """A worker has decoded and resized an image or video."""
        for part, seconds in (("queue", queue_s), ("decode", decode_s), ("resize", resize_s)):
            self._parts[part][kind].observe(seconds)

    def observe_lookup(self, *, hit: bool) -> None:
        """A media item was looked up among the prepared ones."""
        self._queries.inc()
        if hit:
            self._hits.inc()

    def watch_memory(
        self, num_free_bytes: Callable[[], float], num_kept: Callable[[], float]
    ) -> None:
        """Ask these for the state of the memory that pixels pass through."""
        self._free.set_function(num_free_bytes)
        self._kept.set_function(num_kept)
