"""Request: one generation's state inside the engine, and how it may change.

    COMPILING ── ready ──▶ WAITING ── admit ──▶ RUNNING ── finish ──▶ FINISHED
    (with a grammar)          ▲                    │                     ▲
                              └───── preempt ──────┘      finish ────────┘ (from anywhere)

Counts run ahead of knowledge: `advance` is called when a step is planned, `append` when its token
is known. In between `num_tokens` counts a token whose id only the device has.
"""

import enum
from collections.abc import Sequence

import numpy as np

from glimt.engine.admission import Prompt
from glimt.engine.constraint import Constraint
from glimt.engine.image_cache import CachedImage
from glimt.engine.limits import SchedulerLimits
from glimt.engine.plan import IntArray, NewRow, RowWork
from glimt.engine.prefix import page_hash, root_hash
from glimt.engine.thoughts import ThoughtLimit
from glimt.wire import ImageSpan, Submit, TokenLogprobs

# After so many preemptions a request goes first and is never preempted again.
MAX_PREEMPTIONS = 3
NO_ROW = -1

# (0 if protected else 1, priority, number of arrival): lower goes first
Rank = tuple[int, int, int]


class RequestState(enum.Enum):
    """Where a request is; see the module."""

    COMPILING = enum.auto()
    WAITING = enum.auto()
    RUNNING = enum.auto()
    FINISHED = enum.auto()


class Request:
    """Written only through its methods; pages, rows and images themselves have other owners."""

    __slots__ = (  # noqa: RUF023 - in the order a reader wants
        "submit",
        "prompt",
        "num_prompt_tokens",
        "output_ids",  # known ones
        "state",
        "rank",
        "row",
        "page_ids",  # its page table
        "untold_pages",  # its last pages, of which the executor knows nothing yet
        "page_hashes",  # of its full pages from the first, as far as anyone asked
        "next_page_end",  # KV up to here makes one more page full and so findable
        "num_tokens",  # prompt and output, the one still on the device included
        "num_computed_tokens",  # KV reaches so far once all planned steps are done
        "max_num_tokens",  # prompt and output
        "stop_ids",
        "constraint",  # of its answer, once the grammar is compiled
        "thought_limit",  # of its answer
        "num_in_flight",  # planned and uncommitted steps that have work for it
        "num_preemptions",
        "last_encode_step",  # its pixels are read up to this step
        "held_images",  # by the end of their span: embeddings before or in which KV stands
        "num_cached_tokens",  # prompt tokens found in the prefix cache when it first ran
        "scheduled_s",  # when it first ran
        "leader",  # while it waits: who computes now what it begins with (`followers.py`)
        "prompt_logprobs",  # of its prompt tokens from the second, as far as they are known
    )

    def __init__(
        self, submit: Submit, prompt: Prompt, limits: SchedulerLimits, arrival: int
    ) -> None:
        sampling = submit.sampling
        self.submit = submit
        self.prompt = prompt
        self.num_prompt_tokens = len(prompt.token_ids)
        self.output_ids: list[int] = []
        needs_grammar = sampling.grammar is not None
        self.state = RequestState.COMPILING if needs_grammar else RequestState.WAITING
        self.rank: Rank = (1, submit.priority if limits.policy == "priority" else 0, arrival)
        self.row = NO_ROW
        self.page_ids: list[int] = []
        self.untold_pages: tuple[int, ...] = ()
        self.page_hashes: list[bytes] = []
        self.next_page_end = 0
        self.num_tokens = self.num_prompt_tokens
        self.num_computed_tokens = 0
        self.max_num_tokens = min(
            self.num_prompt_tokens + sampling.max_tokens, limits.max_model_len
        )
        self.stop_ids = frozenset(sampling.eos_token_ids) | frozenset(sampling.stop_token_ids)
        self.constraint: Constraint | None = None
        thinking = sampling.thinking
        self.thought_limit = None if thinking is None else ThoughtLimit(thinking)
        self.num_in_flight = 0
        self.num_preemptions = 0
        self.last_encode_step = 0
        self.held_images: dict[int, CachedImage] = {}
        self.num_cached_tokens = 0
        self.scheduled_s = 0.0
        self.leader: Request | None = None
        self.prompt_logprobs: list[TokenLogprobs] = []

    @property
    def key(self) -> tuple[int, int]:
        """(server, request_id): unique among unfinished requests."""
        return self.submit.server, self.submit.request_id

    @property
    def images(self) -> tuple[ImageSpan, ...]:
        """The spans of its prompt, ascending."""
        return self.submit.images

    @property
    def num_known_tokens(self) -> int:
        """Prompt and output, without what only the device knows."""
        return self.num_prompt_tokens + len(self.output_ids)

    @property
    def is_protected(self) -> bool:
        """It was preempted often enough."""
        return self.rank[0] == 0

    @property
    def lacks_prompt_logprobs(self) -> bool:
        """It asked for them, so every token of its prompt has to be computed."""
        wanted = self.submit.sampling.prompt_logprobs is not None
        return wanted and len(self.prompt_logprobs) < self.num_prompt_tokens - 1

    @property
    def prompt_logprobs_to_send(self) -> tuple[TokenLogprobs, ...] | None:
        """What goes out with the first token only."""
        if self.submit.sampling.prompt_logprobs is None or len(self.output_ids) > 1:
            return None
        return tuple(self.prompt_logprobs)

    @property
    def may_be_masked(self) -> bool:
        """Not every token may come where the step last planned for it draws."""
        if self.constraint is not None:
            return True
        if self.thought_limit is None:
            return False
        return self.thought_limit.may_force(self.num_tokens - 1 - self.num_known_tokens)

    def ready(self, constraint: Constraint) -> None:
        """Its grammar is compiled."""
        self._move(RequestState.COMPILING, RequestState.WAITING)
        self.constraint = constraint

    def admit(
        self, row: int, hits: list[int], new_pages: list[int], num_cached_tokens: int, page_end: int
    ) -> None:
        """Take a row and a page table whose first pages, the `hits`, are computed already."""
        self._move(RequestState.WAITING, RequestState.RUNNING)
        self.row = row
        self.page_ids = [*hits, *new_pages]
        self.untold_pages = tuple(new_pages)
        self.num_computed_tokens = num_cached_tokens
        self.next_page_end = page_end

    def tell_pages(self) -> tuple[int, ...]:
        """The pages that go to the executor with the next work, once."""
        pages, self.untold_pages = self.untold_pages, ()
        return pages

    def advance(self, num_tokens: int) -> bool:
        """Plan the next tokens. True if this reaches the last one, so the step draws another."""
        self.num_computed_tokens += num_tokens
        self.num_in_flight += 1
        if self.num_computed_tokens < self.num_tokens:
            return False
        self.num_tokens += 1
        return True

    def advance_by_one(self) -> None:
        """`advance(1)` of a request whose every token but the last is computed: the usual case."""
        self.num_computed_tokens += 1
        self.num_tokens += 1
        self.num_in_flight += 1

    def append(self, token_id: int) -> str | None:
        """The token drawn in a committed step; gives the finish_reason if it is the last.

        Raises GlimtError if it is under a grammar that cannot read the token.
        """
        output_ids = self.output_ids
        output_ids.append(token_id)
        if self.thought_limit is not None:
            self.thought_limit.advance(token_id)
        if token_id in self.stop_ids and len(output_ids) > self.submit.sampling.min_tokens:
            return "stop"
        if self.constraint is not None and self.constraint.advance(token_id):
            return "stop"
        if self.num_prompt_tokens + len(output_ids) >= self.max_num_tokens:
            return "length"
        return None

    def judge_prompt(self, start: int, logprobs: Sequence[TokenLogprobs]) -> None:
        """Log-probabilities of prompt tokens from `start` + 1; those known already are dropped."""
        self.prompt_logprobs += logprobs[max(0, len(self.prompt_logprobs) - start) :]

    def preempt(self, *, counts: bool = True) -> None:
        """Back to waiting, to be recomputed. Pages, row and images must be given up by now.

        Steps in flight still count: their tokens will be appended.
        """
        self._move(RequestState.RUNNING, RequestState.WAITING)
        self.row = NO_ROW
        self.page_ids = []
        self.untold_pages = ()
        self.num_computed_tokens = 0
        self.num_preemptions += counts
        if self.num_preemptions >= MAX_PREEMPTIONS:
            self.rank = (0, *self.rank[1:])

    def withdraw(self, *, samples: bool) -> None:
        """A step in flight is void for this request: the token that it may draw is not counted."""
        self.num_in_flight -= 1
        self.num_tokens -= samples

    def finish(self) -> None:
        """Nothing changes after this, whatever steps in flight may bring."""
        if self.state is RequestState.FINISHED:
            raise RuntimeError(f"request {self.key} finishes twice")
        self.state = RequestState.FINISHED
        self.page_ids = []
        self.constraint = None

    def new_row(self, num_cached_pages: int) -> NewRow:
        """What an executor must know to compute this request behind its first, cached pages."""
        prompt = self.prompt
        return NewRow(
            row=self.row,
            token_ids=self.known_ids(0, self.num_known_tokens),
            num_prompt_tokens=self.num_prompt_tokens,
            positions=prompt.positions,
            rope_delta=self.submit.rope_delta,
            images=self.submit.images,
            sampling=self.submit.sampling,
            page_ids=tuple(self.page_ids[:num_cached_pages]),
        )

    def reads(self, work: RowWork, content_hashes: set[bytes]) -> bool:
        """Whether this work needs the embedding of one of these images."""
        return any(
            span.content_hash in content_hashes
            and span.start < work.start + work.num_tokens
            and span.start + span.num_tokens > work.start
            for span in self.images
        )

    def known_ids(self, start: int, end: int) -> IntArray:
        """Token ids [end - start] of a range whose tokens are all known."""
        num_prompt = self.num_prompt_tokens
        if end <= num_prompt:
            return self.prompt.token_ids[start:end]
        generated = np.array(
            self.output_ids[max(start - num_prompt, 0) : end - num_prompt], dtype=np.int32
        )
        return np.concatenate((self.prompt.token_ids[start:num_prompt], generated))

    def page_hash(self, place: int, page_size: int) -> bytes:
        """Hash of its full page number `place`, whose tokens must be known; computed once."""
        while len(self.page_hashes) <= place:
            start = len(self.page_hashes) * page_size
            end = start + page_size
            self.page_hashes.append(
                page_hash(
                    self.page_hashes[-1] if start else root_hash(self.submit.cache_salt),
                    self.known_ids(start, end),
                    start,
                    self.images,
                    self._positions(start, end),
                )
            )
        return self.page_hashes[place]

    def _positions(self, start: int, end: int) -> IntArray | None:
        delta, num_prompt = self.submit.rope_delta, self.num_prompt_tokens
        if self.prompt.positions is None and delta == 0:
            return None
        positions = np.tile(np.arange(start, end, dtype=np.int32), (3, 1))
        in_prompt = max(0, min(end, num_prompt) - start)
        positions[:, in_prompt:] += delta
        if self.prompt.positions is not None:
            positions[:, :in_prompt] = self.prompt.positions[:, start : start + in_prompt]
        return positions

    def _move(self, before: RequestState, after: RequestState) -> None:
        if self.state is not before:
            raise RuntimeError(f"request {self.key} cannot go from {self.state} to {after}")
        self.state = after
