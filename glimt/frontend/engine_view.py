"""What a client knows of each engine, and of each request that an engine has of it."""

from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from glimt.frontend.generation import Generation
from glimt.frontend.routing import Memory
from glimt.wire import EngineInfo, EngineStats

COPY_HEADER = "X-Data-Parallel-Rank"  # of requests: the copy that shall answer

Send = Callable[[msgspec.Struct], bool]


@dataclass(slots=True, eq=False)
class EngineView:
    """What a client knows of one engine."""

    index: int
    send: Send
    info: EngineInfo
    stats: EngineStats
    memory: Memory
    heard_s: float  # when it last said anything; an idle engine speaks twice a second
    num_open: int = 0
    outstanding_tokens: int = 0
    waiting_tokens: int = 0  # of prompts that have had no output yet
    is_leaving: bool = False  # finishes what it has

    @property
    def usage(self) -> float:
        """Share of its rows or of its KV cache that is in use, whichever is the greater."""
        stats = self.stats
        rows, pages = self.info.max_num_seqs, stats.num_pages
        return max(stats.num_running / max(1, rows), stats.num_used_pages / max(1, pages))


@dataclass(slots=True, eq=False)
class OpenSubmit:
    """A Submit without its terminal output."""

    engine: EngineView
    generation: Generation
    choice: int
    num_prompt_tokens: int
    prompt_work: int  # tokens that were to be computed of the prompt
    outstanding_tokens: int  # that are still to be computed, of prompt and answer
    is_started: bool = False
