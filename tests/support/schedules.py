"""Random schedules, made by hand: any chunks, any company, preemptions, one or two steps ahead."""

import random
from collections import deque
from dataclasses import dataclass, field, replace

import numpy as np

from glimt.engine.plan import InFlight, NewRow, RowWork, StepPlan, StepResult
from glimt.runner.executor import ModelExecutor
from glimt.wire import TokenLogprobs
from tests.support.tiny_model import Ask, new_row


@dataclass
class Course:
    """One request on its way."""

    ask: Ask
    known: list[int]
    row: int | None = None
    num_computed: int = 0
    num_flying: int = 0  # tokens drawn that the host has not seen
    pages: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)

    @property
    def num_missing(self) -> int:
        end = len(self.ask.token_ids) + self.ask.sampling.max_tokens
        return end - len(self.known) - self.num_flying

    @property
    def answer(self) -> list[int]:
        return self.known[len(self.ask.token_ids) :]


class Schedule:
    """Drives an executor through a random course of steps that ends with all requests answered."""

    def __init__(
        self,
        executor: ModelExecutor,
        asks: list[Ask],
        *,
        seed: int = 0,
        depth: int = 1,
        whole: bool = False,
        ahead: float = 0.1,
        num_pages: int = 64,
        page_size: int = 4,
    ) -> None:
        self.executor = executor
        self.courses = [Course(ask, ask.token_ids.tolist()) for ask in asks]
        self._random = random.Random(seed)
        self._depth = depth  # steps launched before the first result is read
        self._whole = whole  # no preemption, no chunks, nobody waits
        self._ahead = ahead  # how likely an image is begun before it is needed
        self._page_size = page_size
        self._free_pages = list(range(num_pages))
        self._random.shuffle(self._free_pages)
        self._free_rows = list(range(8))
        self._freed: list[int] = []
        self._cached: set[bytes] = set()
        self._owners: dict[int, list[Course]] = {}
        self._step = 0

    def run(self) -> list[list[int]]:
        """Tokens of every request."""
        flying: deque[InFlight] = deque()
        while any(course.num_missing or course.num_flying for course in self.courses):
            plan = self._plan()
            if plan is not None:
                flying.append(self.executor.launch(plan))
            while flying and (len(flying) >= self._depth or plan is None):
                step = flying.popleft()
                self._commit(step.plan, step.result())
        return [course.answer for course in self.courses]

    def _plan(self) -> StepPlan | None:
        chance = self._random.random
        new_rows: list[NewRow] = []
        work: list[RowWork] = []
        owners: list[Course] = []
        needed: set[bytes] = set()
        encode = []
        for course in self._random.sample(self.courses, len(self.courses)):
            if course.row is not None and (not course.num_missing or self._is_unlucky()):
                self._stop(course)
            if not course.num_missing or (not self._whole and work and chance() < 0.3):
                continue
            if course.row is None:
                if course.num_flying or not self._free_rows:
                    continue  # its tokens must be known before it can start anew
                new_rows.append(self._start(course))
            item = self._work(course)
            work.append(item)
            owners.append(course)
            for image in course.ask.images:
                end = image.start + image.num_tokens
                if item.start < end and image.start < item.start + item.num_tokens:
                    if image.content_hash not in self._cached | needed:
                        encode.append(image)
                    needed.add(image.content_hash)
        if not work:
            return None
        for image in [image for course in self.courses for image in course.ask.images]:
            if image.content_hash not in self._cached | needed and chance() < self._ahead:
                encode.append(image)
                needed.add(image.content_hash)
        dropped = [key for key in sorted(self._cached - needed) if chance() < 0.3]
        self._cached = (self._cached - set(dropped)) | needed
        freed, self._freed = tuple(self._freed), []
        self._step += 1
        self._owners[self._step] = owners
        return StepPlan(
            step=self._step,
            freed_rows=freed,
            new_rows=tuple(new_rows),
            drop_images=tuple(dropped),
            encode=tuple(encode),
            work=tuple(work),
        )

    def _is_unlucky(self) -> bool:
        return not self._whole and self._random.random() < 0.08

    def _start(self, course: Course) -> NewRow:
        course.row = self._free_rows.pop(0)
        # After a preemption the tokens generated so far come back with the prompt.
        return replace(new_row(course.ask, course.row), token_ids=np.array(course.known, np.int32))

    def _stop(self, course: Course) -> None:
        assert course.row is not None
        self._freed.append(course.row)
        self._free_rows.append(course.row)
        self._free_pages += course.pages
        course.row, course.num_computed, course.pages = None, 0, []

    def _work(self, course: Course) -> RowWork:
        assert course.row is not None
        start = course.num_computed
        remaining = len(course.known) + course.num_flying - start
        count = remaining if self._whole else self._random.randint(1, remaining)
        course.num_computed += count
        num_pages = -(-course.num_computed // self._page_size) - len(course.pages)
        new_pages = tuple(self._free_pages.pop(0) for _ in range(num_pages))
        course.pages += new_pages
        course.num_flying += count == remaining
        return RowWork(course.row, start, count, new_pages, samples=count == remaining)

    def _commit(self, plan: StepPlan, result: StepResult) -> None:
        assert not result.failed
        assert result.step == plan.step
        for item, course in zip(plan.work, self._owners.pop(plan.step), strict=True):
            if item.samples:
                course.known.append(result.token_ids[item.row])
                course.num_flying -= 1
                if item.row in result.logprobs:
                    course.logprobs.append(result.logprobs[item.row])
