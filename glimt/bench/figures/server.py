"""What the server's own counters say of the run: caches, preemptions, speculative decoding.

Counters are read before and after the run; what counts is their difference. Names are vLLM's, which
Glimt uses too; a server without them has no such figures.
"""

from dataclasses import dataclass

from glimt.bench.events import EventLog


@dataclass(frozen=True, kw_only=True)
class SpeculativeDecoding:
    """Drafted tokens, and how many of them were right."""

    drafts: int
    draft_tokens: int
    accepted_tokens: int

    @property
    def acceptance_rate(self) -> float:
        """Percent of drafted tokens that were accepted."""
        return 100 * self.accepted_tokens / self.draft_tokens if self.draft_tokens else 0.0

    @property
    def acceptance_length(self) -> float:
        """Tokens of a step: the accepted ones and the one that the model adds."""
        return 1 + self.accepted_tokens / self.drafts if self.drafts else 0.0


@dataclass(frozen=True, kw_only=True)
class ServerFigures:
    """Differences of the server's counters over the run; None where it has no such counter."""

    prefix_cache_hit_rate: float | None  # of prompt tokens
    image_cache_hit_rate: float | None  # of images
    preemptions: int | None
    speculative: SpeculativeDecoding | None


def server_figures(log: EventLog) -> ServerFigures | None:
    """From the first and the last reading of the counters; None without two readings."""
    if len(log.server) < 2:
        return None
    first, last = log.server[0].values, log.server[-1].values

    def gained(name: str) -> float | None:
        if name not in last:
            return None
        return max(last[name] - first.get(name, 0.0), 0.0)

    preemptions = gained("vllm:num_preemptions_total")
    drafts = gained("vllm:spec_decode_num_drafts_total")
    speculative = None
    if drafts:
        speculative = SpeculativeDecoding(
            drafts=int(drafts),
            draft_tokens=int(gained("vllm:spec_decode_num_draft_tokens_total") or 0),
            accepted_tokens=int(gained("vllm:spec_decode_num_accepted_tokens_total") or 0),
        )
    return ServerFigures(
        prefix_cache_hit_rate=_share(
            gained("vllm:prefix_cache_hits_total"), gained("vllm:prefix_cache_queries_total")
        ),
        image_cache_hit_rate=_share(
            gained("vllm:mm_cache_hits_total"), gained("vllm:mm_cache_queries_total")
        ),
        preemptions=None if preemptions is None else int(preemptions),
        speculative=speculative,
    )


def _share(part: float | None, whole: float | None) -> float | None:
    return part / whole if part is not None and whole else None
