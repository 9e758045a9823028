"""The seam between deciding and doing: what a step is to do, and what it gave.

`Scheduler.schedule()` makes a `StepPlan`, an `Executor` carries it out, `Scheduler.commit()` takes
the `StepResult`. Plans are frozen and complete: an executor needs nothing but the plans it was
given, in order. A plan may be made and launched before the result of the one before is known;
then the token at a row's first position is still on the device, where the executor keeps it.
"""

from dataclasses import dataclass, field
from typing import Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from glimt.wire import ErrorInfo, ImageSpan, SamplingParams, TokenLogprobs

IntArray = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class NewRow:
    """A request takes a row: for the first time, or again after a preemption.

    `token_ids` [L] are all tokens known now (prompt, then generated), `positions` [3, L_prompt]
    or None for plain text. A token at sequence index i >= L_prompt has position i + rope_delta on
    all three axes. `page_ids` are pages that already hold the KV of the first tokens.
    """

    row: int
    token_ids: IntArray
    num_prompt_tokens: int
    positions: IntArray | None
    rope_delta: int
    images: tuple[ImageSpan, ...]
    sampling: SamplingParams
    page_ids: tuple[int, ...]


class RowWork(msgspec.Struct, frozen=True, gc=False):
    """Compute the tokens [start, start + num_tokens) of a row, after appending `new_pages`.

    `samples`: the last of them is the row's last token, so the step draws the next one. The token
    drawn belongs to sequence index start + num_tokens. (A struct, not a dataclass: hundreds are
    made in every step, and a frozen dataclass takes seven times as long to make.)
    """

    row: int
    start: int
    num_tokens: int
    new_pages: tuple[int, ...] = ()
    samples: bool = False


class Lockstep(msgspec.Struct, frozen=True, array_like=True):
    """What the replicas that share experts have agreed on for a step, since all exchange rows in
    it: how many tokens the one with most computes, and whether none does more than draw the next
    token of each of its rows.
    """

    max_tokens: int
    all_decode: bool


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One pass over all scheduled rows, in this order: free, take, encode, compute, sample.

    `encode` lists images that are not in the executor's image cache and whose embeddings are needed
    in this step or soon: those that none of its work reads may be finished in a later step.
    `drop_images` are the cache entries (by key) to give up first. The cache key is
    `ImageSpan.content_hash` (the client tower has mixed the tenant's salt into it).
    """

    step: int
    freed_rows: tuple[int, ...] = ()
    new_rows: tuple[NewRow, ...] = ()
    drop_images: tuple[bytes, ...] = ()
    encode: tuple[ImageSpan, ...] = ()
    work: tuple[RowWork, ...] = ()
    waits_for_masks: bool = False  # draws when `InFlight.draw` is called, not before
    lockstep: Lockstep | None = None  # with other replicas, for whose tokens experts are computed
    is_idle: bool = False  # only they have work; not one of the scheduler's plans

    @property
    def num_tokens(self) -> int:
        """Tokens this step computes, over all rows."""
        return sum(work.num_tokens for work in self.work)


@dataclass(frozen=True, slots=True)
class TokenMasks:
    """Which tokens may be drawn in the rows that are under a grammar; all tokens in the others.

    `bits` int32 [G, W]: token t may be drawn in `rows[g]` if bit t % 32 of word t // 32 is set.
    """

    rows: tuple[int, ...]
    bits: IntArray


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step drew: token by row, for each row whose work had `samples`.

    `prompt_logprobs`: by row that asked for them, of the prompt tokens from start + 1 to
    start + num_tokens of its work.

    `failed` rows have an error instead of a token (NaN logits, a bad image): these requests end,
    the others do not notice.

    `encoded`: images, of this step or of earlier ones, that nobody has to wait for any more. Each
    is told once, and those that cannot be encoded are, too: who computes them finds out.
    """

    step: int
    token_ids: dict[int, int] = field(default_factory=dict)
    logprobs: dict[int, TokenLogprobs] = field(default_factory=dict)
    prompt_logprobs: dict[int, tuple[TokenLogprobs, ...]] = field(default_factory=dict)
    failed: dict[int, ErrorInfo] = field(default_factory=dict)
    encoded: tuple[bytes, ...] = ()


class InFlight(Protocol):
    """A launched step."""

    @property
    def plan(self) -> StepPlan:
        """What was launched."""
        ...

    def draw(self, masks: TokenMasks) -> None:
        """Draw, in a step that waits for masks: once, and before the next step is launched.

        The masks depend on the tokens of the step before, so the host makes them while the device
        computes. Returns without waiting for the device, and never raises.
        """
        ...

    def result(self) -> StepResult:
        """Wait for the step and give its result. Raises what the step raised."""
        ...


class Executor(Protocol):
    """Carries plans out, in order.

    A step may fail, its bookkeeping may not: rows freed and taken, pages appended and images
    dropped by a plan count even when its step raised, since the plan after it may already be
    made. Dropping an image that is not cached does nothing.
    """

    def launch(self, plan: StepPlan) -> InFlight:
        """Start the step and return without waiting for the device."""
        ...
