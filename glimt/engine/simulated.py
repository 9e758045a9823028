"""SimulatedExecutor: an Executor over `SimulatedModel`, with paged KV and faults on demand.

It obeys plans to the letter and nothing else: KV lies in fake pages, history is read back through
page tables, embeddings exist only when a plan had them encoded. A launched step is computed when
its result is asked for, so planning ahead is planning without knowing. What a plan may never ask
for is noted in `violations`.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from glimt.engine.plan import (
    InFlight,
    IntArray,
    NewRow,
    RowWork,
    StepPlan,
    StepResult,
    TokenMasks,
)
from glimt.engine.simulated_model import SimulatedModel, image_at, mix, position_at
from glimt.errors import BadMedia, InvalidRequest, NumericalError
from glimt.wire import ErrorInfo, ImageSpan, TokenLogprobs

_GARBAGE = 0xDEAD
_NOTHING_ALLOWED = ErrorInfo(InvalidRequest.code, "A mask leaves no token to draw.")


class InjectedFault(Exception):
    """A step was told to raise."""


@dataclass(frozen=True, slots=True)
class Faults:
    """Probabilities; whether a thing fails is a function of seed, step and row."""

    seed: int = 0
    raise_in_launch: float = 0.0  # by step
    raise_in_result: float = 0.0  # by step
    nan: float = 0.0  # by row and step
    bad_image: float = 0.0  # by encoding

    def hits(self, kind: int, probability: float, step: int, row: int = 0) -> bool:
        """Whether the fault of this kind happens here."""
        value = mix(mix(mix(self.seed + kind) + step) + row)
        return value / 2**64 < probability


class _Row:
    """What the device knows of a request."""

    def __init__(self, new: NewRow) -> None:
        self.new = new
        self.token_ids: list[int] = new.token_ids.tolist()
        self.page_table = list(new.page_ids)
        self.num_computed = -1  # unknown until the first work


class SimulatedStep:
    """A launched step; see `InFlight`."""

    def __init__(self, executor: "SimulatedExecutor", plan: StepPlan, *, raises: bool) -> None:
        self.plan = plan
        self.raises = raises
        self.outcome: StepResult | InjectedFault | None = None
        self.masks: TokenMasks | None = None
        self._executor = executor

    def draw(self, masks: TokenMasks) -> None:
        """Take the masks, once."""
        self._executor.take_masks(self, masks)

    def result(self) -> StepResult:
        """Compute this step, after all launched before it."""
        self._executor.compute_until(self)
        if isinstance(self.outcome, StepResult):
            return self.outcome
        raise InjectedFault(f"step {self.plan.step} was told to raise")


class SimulatedExecutor:
    """Fake device memory of `num_pages` pages and `image_cache_tokens` of embeddings.

    `on_encode` is called when the pixels of a span are read, that is, as late as possible.
    Embeddings are found to be ready so many steps after their own as `encode_steps`.
    """

    def __init__(
        self,
        num_pages: int,
        page_size: int,
        image_cache_tokens: int,
        *,
        model: SimulatedModel | None = None,
        faults: Faults | None = None,
        on_encode: Callable[[ImageSpan], None] = lambda span: None,
        encode_steps: int = 0,
    ) -> None:
        self.model = model or SimulatedModel()
        self.faults = faults or Faults()
        self.violations: list[str] = []
        self.num_missing_embeddings = 0
        self._page_size = page_size
        self._image_cache_tokens = image_cache_tokens
        self._on_encode = on_encode
        self._kv = np.zeros(num_pages * page_size, dtype=np.uint64)
        self._rows: dict[int, _Row] = {}
        self._embeddings: dict[bytes, int] = {}  # content hash -> tokens
        self._launched: deque[SimulatedStep] = deque()
        self._encode_steps = encode_steps
        self._unready: deque[tuple[int, bytes]] = deque()  # (step, content hash)

    def launch(self, plan: StepPlan) -> InFlight:
        """Take a step on. Raises InjectedFault on demand."""
        faults = self.faults
        raises_here = faults.hits(1, faults.raise_in_launch, plan.step)
        raises = raises_here or faults.hits(2, faults.raise_in_result, plan.step)
        step = SimulatedStep(self, plan, raises=raises)
        self._launched.append(step)
        if raises_here:
            raise InjectedFault(f"the launch of step {plan.step} was told to raise")
        return step

    def take_masks(self, step: SimulatedStep, masks: TokenMasks) -> None:
        """The newest step draws with these masks."""
        if not step.plan.waits_for_masks or step.masks is not None:
            self._complain(step.plan, "is given masks that it does not wait for")
        if not self._launched or self._launched[-1] is not step:
            self._complain(step.plan, "is given masks after a later step was launched")
        step.masks = masks

    def compute_until(self, last: SimulatedStep) -> None:
        """Compute launched steps in order, up to `last`."""
        while last.outcome is None:
            step = self._launched.popleft()
            self._keep_books(step.plan)
            step.outcome = self._fail(step.plan) if step.raises else self._compute(step)

    def _keep_books(self, plan: StepPlan) -> None:
        for row in plan.freed_rows:
            if self._rows.pop(row, None) is None:
                self._complain(plan, f"frees row {row}, which is not held")
        for new in plan.new_rows:
            if new.row in self._rows:
                self._complain(plan, f"takes row {new.row}, which is held")
            self._rows[new.row] = _Row(new)
        for content_hash in plan.drop_images:
            self._embeddings.pop(content_hash, None)
        for work in plan.work:
            self._rows[work.row].page_table += work.new_pages

    def _fail(self, plan: StepPlan) -> InjectedFault:
        for work in plan.work:  # half done: anything may be in the slots it was to write
            row = self._rows[work.row]
            self._kv[self._slots(row, work.start, work.start + work.num_tokens)] = _GARBAGE
            row.num_computed = work.start + work.num_tokens
            if work.samples:
                row.token_ids.append(0)
        return InjectedFault()

    def _compute(self, step: SimulatedStep) -> StepResult:
        plan = step.plan
        if plan.waits_for_masks and step.masks is None:
            self._complain(plan, "is to draw before it has its masks")
        masks = (
            {} if step.masks is None else dict(zip(step.masks.rows, step.masks.bits, strict=True))
        )
        for place, span in enumerate(plan.encode):
            self._on_encode(span)
            if not self.faults.hits(3, self.faults.bad_image, plan.step, place):
                self._embeddings[span.content_hash] = span.num_tokens
            self._unready.append((plan.step + self._encode_steps, span.content_hash))
        if sum(self._embeddings.values()) > self._image_cache_tokens:
            self._complain(plan, "encodes more than the image cache holds")
        result = StepResult(plan.step, encoded=self._encoded(plan.step))
        for work in plan.work:
            self._compute_row(plan, work, result, masks.get(work.row))
        return result

    def _encoded(self, step: int) -> tuple[bytes, ...]:
        ready: list[bytes] = []
        while self._unready and self._unready[0][0] <= step:
            ready.append(self._unready.popleft()[1])
        return tuple(ready)

    def _compute_row(
        self, plan: StepPlan, work: RowWork, result: StepResult, mask: IntArray | None
    ) -> None:
        row = self._rows[work.row]
        self._check_work(plan, work, row)
        history, error = self._extend(row, work)
        if error is None and self.faults.hits(4, self.faults.nan, plan.step, work.row):
            error = ErrorInfo(NumericalError.code, "The model produced NaN for this request.")
        sampling = row.new.sampling
        num_outputs = len(row.token_ids) - row.new.num_prompt_tokens
        token_id = 0
        prompt_end = min(work.start + work.num_tokens, row.new.num_prompt_tokens - 1)
        if sampling.prompt_logprobs is not None and work.start < prompt_end:
            result.prompt_logprobs[work.row] = tuple(
                TokenLogprobs(row.token_ids[index + 1], -1.0 - index, 1, ())
                for index in range(work.start, prompt_end)
            )
        if error is not None:
            result.failed[work.row] = error
        elif work.samples:
            drawn = self.model.draw(history, sampling, num_outputs, mask)
            if drawn is None:
                result.failed[work.row] = _NOTHING_ALLOWED
            else:
                token_id = result.token_ids[work.row] = drawn
            if sampling.logprobs is not None:
                result.logprobs[work.row] = TokenLogprobs(token_id, -1.0, 1, ())
        if work.samples:
            row.token_ids.append(token_id)

    def _extend(self, row: _Row, work: RowWork) -> tuple[int, ErrorInfo | None]:
        """Compute the KV of a row's next tokens; gives the fold of its history, or an error."""
        new, model = row.new, self.model
        start, end = work.start, work.start + work.num_tokens
        history = model.fold_all(self._kv[self._slots(row, 0, start)])
        computed = []
        error = None
        for index in range(start, end):
            image = image_at(new.images, index)
            if image is not None and image[0] not in self._embeddings:
                self.num_missing_embeddings += 1
                error = ErrorInfo(BadMedia.code, "An image of this request has no embedding.")
                image = None
            position = position_at(new.positions, new.num_prompt_tokens, new.rope_delta, index)
            kv = model.kv(model.embed(row.token_ids[index], position, image), history)
            history = model.fold(history, kv, index)
            computed.append(kv)
        self._kv[self._slots(row, start, end)] = np.array(computed, dtype=np.uint64)
        row.num_computed = end
        return history, error

    def _slots(self, row: _Row, start: int, end: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        indices = np.arange(start, end)
        table = np.array(row.page_table, dtype=np.int64)
        return table[indices // self._page_size] * self._page_size + indices % self._page_size

    def _check_work(self, plan: StepPlan, work: RowWork, row: _Row) -> None:
        end = work.start + work.num_tokens
        cached = len(row.new.page_ids) * self._page_size
        if work.start != (row.num_computed if row.num_computed >= 0 else cached):
            self._complain(plan, f"row {work.row} goes on at {work.start}, not where it stood")
        if work.num_tokens < 1 or end > len(row.token_ids):
            self._complain(plan, f"row {work.row} computes tokens that it does not have")
        if work.samples != (end == len(row.token_ids)):
            self._complain(plan, f"row {work.row} draws in the middle, or not at its end")
        if len(row.page_table) * self._page_size < end:
            self._complain(plan, f"row {work.row} has too few pages")

    def _complain(self, plan: StepPlan, what: str) -> None:
        self.violations.append(f"step {plan.step}: {what}")


class InstantStep:
    """A step whose tokens cost nothing."""

    def __init__(self, plan: StepPlan, vocab_size: int) -> None:
        self.plan = plan
        self._vocab_size = vocab_size

    def draw(self, masks: TokenMasks) -> None:
        """Whatever is allowed, the tokens are the same."""

    def result(self) -> StepResult:
        """Some token for each row that draws."""
        step, vocab_size = self.plan.step, self._vocab_size
        drawn = {w.row: (step + 7 * w.row) % vocab_size for w in self.plan.work if w.samples}
        return StepResult(step, drawn)


@dataclass(frozen=True, slots=True)
class InstantExecutor:
    """Draws without looking at any history: for benchmarks of everything but the model."""

    vocab_size: int = 1000

    def launch(self, plan: StepPlan) -> InFlight:
        """Take a step on."""
        return InstantStep(plan, self.vocab_size)
