"""Scheduler: who computes what in each step, and what becomes of the tokens drawn.

There are no phases: a request has tokens, some of them computed, and each step computes more of
them within the token budget. Running requests go first, then waiting ones are admitted, both in
order of rank (arrival, or priority and arrival); nobody overtakes a request that waits for room.
One that begins with what another computes just now waits for it (`followers.py`), others pass it.

A request whose images are not encoded yet gets its row and pages, and computes nothing while others
have something to compute, whose steps so never wait for the vision tower.

When pages run out, the last running request is preempted: it gives up its pages and is computed
again later, on the same tokens. After three times it goes first, is admitted only when its
longest possible course fits beside the other such requests, and is never preempted again.

A request under a grammar first waits for it to be compiled (`take_ready`). Its mask for a step
depends on its token of the step before, so a step that draws for it waits for `masks()`, which
come when that step is committed; the device computes in the meantime.

`schedule()` of a step may come before `commit()` of the one before. Then a request that turns out
to have finished was scheduled one step too far; the token of that step is dropped.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable

from glimt.engine.admission import read_prompt
from glimt.engine.draft import StepDraft
from glimt.engine.followers import Followers
from glimt.engine.grammars import Failure, Grammars
from glimt.engine.limits import SchedulerLimits
from glimt.engine.outputs import Addressed, of_token, refuse, terminal
from glimt.engine.page_watch import PageWatch
from glimt.engine.plan import StepPlan, StepResult, TokenMasks
from glimt.engine.request import Request, RequestState
from glimt.engine.roster import Roster
from glimt.errors import GlimtError, InvalidRequest, RequestError, StepFailed
from glimt.grammar.compiler import GrammarCompiler
from glimt.wire import EngineStats, ErrorInfo, Output, Submit

_RUNNING, _FINISHED = RequestState.RUNNING, RequestState.FINISHED


class InFlightStep:
    """A planned, uncommitted step: its plan, and by place in `plan.work` whose work it is."""

    def __init__(self, plan: StepPlan, requests: list[Request]) -> None:
        self.plan = plan
        self.requests: list[Request | None] = [*requests]  # None: withdrawn


class Scheduler:
    """The whole policy of one engine; what requests hold is kept in its `roster`.

    Every Submit gets exactly one Output with a finish_reason, from one of `add`, `abort`,
    `commit`, `fail`, `end_all`. It is held back while a step in flight may still read the
    request's pixels from shared memory.
    """

    def __init__(
        self,
        limits: SchedulerLimits,
        clock: Callable[[], float] = time.monotonic,
        compiler: GrammarCompiler | None = None,
    ) -> None:
        self.limits = limits
        self._watch = PageWatch(limits.watched_pages, clock) if limits.watched_pages else None
        self.roster = Roster(limits, self._watch)
        self._grammars = Grammars(compiler, limits.vocab_size)
        self._clock = clock
        self._in_flight: deque[InFlightStep] = deque()
        self._held_back: list[tuple[int, Addressed]] = []  # (step to wait for, terminal output)
        self._num_arrived = 0
        self._step = 0
        self._committed_step = 0
        self._step_tokens = 0
        self._num_preemptions = 0
        self._prefix_query_tokens = 0
        self._prefix_hit_tokens = 0
        self._image_queries = 0
        self._image_hits = 0

    @property
    def has_requests(self) -> bool:
        """Someone still waits for a terminal output."""
        return len(self.roster) > 0 or bool(self._held_back)

    @property
    def is_compiling(self) -> bool:
        """Someone waits for a grammar: `take_ready` may soon have something to do."""
        return self._grammars.num_compiling > 0

    # ------------------------------------------------------------------------- requests come, go

    def add(self, submit: Submit) -> list[Addressed]:
        """Take a request on. Gives its terminal output if it is malformed or can never fit."""
        try:
            if self.roster.find((submit.server, submit.request_id)) is not None:
                raise InvalidRequest(f"request_id {submit.request_id} is in use")
            prompt = read_prompt(submit, self.limits)
            request = Request(submit, prompt, self.limits, self._num_arrived)
            if submit.sampling.grammar is not None:
                self._grammars.start(request, submit.sampling.grammar)
        except RequestError as error:
            return [refuse(submit, ErrorInfo(error.code, error.message))]
        self.roster.enlist(request)
        self._num_arrived += 1
        return self.take_ready()

    def take_ready(self) -> list[Addressed]:
        """Let those wait for a row whose grammar is compiled now; end those whose is refused."""
        ready, failed = self._grammars.take_ready()
        for request in ready:
            self.roster.waiting.add(request)
        return self._end_failed(failed)

    def abort(self, server: int, request_id: int) -> list[Addressed]:
        """End a request now. Unknown and finished ids are ignored."""
        request = self.roster.find((server, request_id))
        return [] if request is None else self._end(request, terminal(request, "abort"))

    def end_all(self, error: ErrorInfo) -> list[Addressed]:
        """End every request with `error`. Steps in flight count as done."""
        self._in_flight.clear()
        self._committed_step = self._step
        outputs = self._due_outputs()
        for request in self.roster.all():
            outputs += self._end(request, terminal(request, "error", error))
        return outputs

    def close(self) -> None:
        """End the thread that compiles grammars."""
        self._grammars.close()

    def reset_caches(self, *, prefix: bool, images: bool) -> None:
        """Forget cached pages and embeddings that no request holds."""
        if prefix:
            self.roster.pool.reset()
        if images:
            self.roster.images.reset()

    # --------------------------------------------------------------------------------- schedule

    def schedule(self) -> StepPlan | None:
        """Plan the next step, and count it as computed. None if there is nothing to compute."""
        draft = StepDraft(self._step + 1, self.limits, self.roster.images)
        self._fill(draft)
        if draft.holds_back and not draft.work:
            draft.may_wait = True  # nobody else would have to
            self._fill(draft)
        if not draft.work:
            return None
        draft.release_passed_images()
        self._step = draft.step
        self._image_queries += draft.num_image_queries
        self._image_hits += draft.num_image_queries - len(draft.encode)
        self._step_tokens = self.limits.max_num_batched_tokens - draft.token_budget
        plan = StepPlan(
            step=draft.step,
            freed_rows=self.roster.take_freed_rows(),
            new_rows=tuple(draft.new_rows),
            drop_images=self.roster.images.take_dropped(),
            encode=tuple(draft.encode),
            work=tuple(draft.work),
            waits_for_masks=draft.waits_for_masks,
        )
        self._in_flight.append(InFlightStep(plan, draft.requests))
        return plan

    def _fill(self, draft: StepDraft) -> None:
        self._continue_running(draft)
        self._admit_waiting(draft)

    def _continue_running(self, draft: StepDraft) -> None:
        running = self.roster.running.requests
        page_size = self.limits.page_size
        place = 0
        while place < len(running):  # preemption shortens it from the end
            request = running[place]
            place += 1
            if request.num_tokens >= request.max_num_tokens:
                continue  # its last token is on the device
            start = request.num_computed_tokens
            num_tokens = request.num_tokens - start
            if start < request.num_prompt_tokens or num_tokens > 1:
                # One token of the budget is kept for everyone who comes after.
                num_tokens = min(num_tokens, draft.token_budget - (len(running) - place))
                if (claimed := draft.claim_images(request, num_tokens) or 0) > 0:
                    draft.add(request, claimed)
            elif start < len(request.page_ids) * page_size:
                draft.add_decode(request)
            elif (page := self._grow(request)) is not None:
                draft.add_decode(request, (page,))

    def _grow(self, request: Request) -> int | None:
        """One more page for a running request; None if that took preempting the request itself."""
        while (pages := self.roster.pool.allocate(1)) is None:
            victim = self.roster.running.requests[-1]  # never one with work in this step already
            if victim.is_protected:
                raise RuntimeError("protected requests were promised more pages than there are")
            self._num_preemptions += 1
            self.roster.preempt(victim)
            if victim is request:
                return None
        request.page_ids += pages
        return pages[0]

    def _admit_waiting(self, draft: StepDraft) -> None:
        waiting, place = self.roster.waiting.requests, 0
        if not waiting or draft.token_budget <= 0 or not self.roster.num_free_rows:
            return  # who leads is not asked in each step of a full machine
        followers = Followers(self.limits, self.roster)
        while (
            place < len(waiting)
            and draft.token_budget > 0
            and self.roster.num_free_rows > followers.num_rows
        ):
            request = waiting[place]
            if request.num_in_flight:
                break  # these tokens must be known before it can be computed again
            hits = followers.hits(request)
            if hits is None:
                place += 1  # this one waits for no room, so others may pass
                continue
            has_room = self.roster.has_room(request, hits, followers.num_pages)
            if not has_room or not self._admit(request, hits, draft):
                break  # first come, first served: a smaller request must not overtake
            followers.note_running(request)

    def _admit(self, request: Request, hits: list[int], draft: StepDraft) -> bool:
        roster, page_size = self.roster, self.limits.page_size
        request.num_computed_tokens = len(hits) * page_size
        num_tokens = min(request.num_tokens - len(hits) * page_size, draft.token_budget)
        claimed = draft.claim_images(request, num_tokens)
        if claimed == 0:
            request.num_computed_tokens = 0
            return False
        roster.seat(request, hits)
        if not request.scheduled_s:
            request.scheduled_s = self._clock()
            request.num_cached_tokens = len(hits) * page_size
            self._prefix_query_tokens += request.num_tokens
            self._prefix_hit_tokens += request.num_cached_tokens
        draft.new_rows.append(request.new_row(len(hits)))
        if claimed is not None:  # else it has its place, and begins when its images are there
            draft.add(request, claimed)
        return True

    def masks(self, plan: StepPlan) -> tuple[TokenMasks, list[Addressed]]:
        """Masks of the newest step, to be asked for when all steps before it are committed.

        Also ends requests: those that turn out to need no further token, and those whose grammar
        fails.
        """
        step = self._in_flight[-1]
        if step.plan.step != plan.step or len(self._in_flight) > 1:
            raise RuntimeError(f"the masks of step {plan.step} cannot be known yet")
        masks, complete, failed = self._grammars.masks(
            (work.row, request)
            for work, request in zip(plan.work, step.requests, strict=True)
            if work.samples and request is not None and request.state is _RUNNING
        )
        outputs = self._end_failed(failed)
        for request in complete:
            outputs += self._end(request, terminal(request, "stop"))
        return masks, outputs

    # ----------------------------------------------------------------------------------- commit

    def commit(self, plan: StepPlan, result: StepResult) -> list[Addressed]:
        """Write the tokens of a finished step back. Steps are committed in order."""
        step = self._take_in_flight(plan)
        outputs: list[Addressed] = []
        self.note_encoded(result)
        token_ids, logprobs, failed = result.token_ids, result.logprobs, result.failed
        for work, request in zip(plan.work, step.requests, strict=True):
            if request is None or request.state is _FINISHED:
                continue
            request.num_in_flight -= 1
            row = work.row
            if failed and row in failed:
                outputs += self._fail_row(request, plan, failed[row])
                continue
            if row in result.prompt_logprobs:
                request.judge_prompt(work.start, result.prompt_logprobs[row])
            end = work.start + work.num_tokens
            if end >= request.next_page_end and request.state is _RUNNING:
                self.roster.register_pages(request, end)
            if not work.samples:
                continue
            token_id = token_ids.get(row)
            if token_id is None:
                error = ErrorInfo(StepFailed.code, "The step drew no token for this request.")
                outputs += self._fail_row(request, plan, error)
                continue
            try:
                finish_reason = request.append(token_id)
            except GlimtError as error:
                outputs += self._end_failed([(request, error)])
                continue
            output = of_token(request, finish_reason, logprobs.get(row))
            if finish_reason is None:
                outputs.append((request.submit.server, output))
            else:
                outputs += self._end(request, output)
        if self._held_back:
            outputs += self._due_outputs()
        return outputs

    def note_encoded(self, result: StepResult) -> None:
        """Nobody waits any more for images that a step found ready, be it one without any work."""
        self.roster.images.encoded(result.encoded)

    def fail(self, plan: StepPlan, error: ErrorInfo) -> list[Addressed]:
        """A step raised: its requests end with `error`, everybody else goes on."""
        step = self._take_in_flight(plan)
        outputs: list[Addressed] = []
        for request in step.requests:
            if request is not None and request.state is not _FINISHED:
                outputs += self._end(request, terminal(request, "error", error))
        self._distrust_images(plan, {span.content_hash for span in plan.encode})
        return outputs + self._due_outputs()

    def _take_in_flight(self, plan: StepPlan) -> InFlightStep:
        if not self._in_flight or self._in_flight[0].plan.step != plan.step:
            raise RuntimeError(f"step {plan.step} is not the oldest in flight")
        self._committed_step = plan.step
        return self._in_flight.popleft()

    def _fail_row(self, request: Request, plan: StepPlan, error: ErrorInfo) -> list[Addressed]:
        # Whatever went wrong may sit in its KV or its embeddings: no later request may find them.
        self.roster.pool.forget(self.roster.pool.match(request.page_hashes))
        outputs = self._end(request, terminal(request, "error", error))
        self._distrust_images(plan, {span.content_hash for span in request.images})
        return outputs

    def _distrust_images(self, plan: StepPlan, content_hashes: set[bytes]) -> None:
        """Forget embeddings, and undo later steps in flight that relied on those of `plan`."""
        self.roster.images.forget(content_hashes)
        missing = content_hashes & {span.content_hash for span in plan.encode}
        if not missing:
            return
        for step in self._in_flight:
            for work, request in zip(step.plan.work, step.requests, strict=True):
                if request is not None and request.reads(work, missing):
                    self._withdraw(request)

    def _withdraw(self, request: Request) -> None:
        """Compute a request again from what is known; steps in flight are void for it."""
        for step in self._in_flight:
            for place, other in enumerate(step.requests):
                if other is request:
                    step.requests[place] = None
                    request.withdraw(samples=step.plan.work[place].samples)
        if request.state is _RUNNING:
            self.roster.preempt(request, counts=False)

    # -------------------------------------------------------------------------------------- end

    def _end(self, request: Request, output: Output) -> list[Addressed]:
        self.roster.dismiss(request)
        addressed = (request.submit.server, output)
        if request.last_encode_step <= self._committed_step:
            return [addressed]
        self._held_back.append((request.last_encode_step, addressed))
        return []

    def _end_failed(self, failed: Iterable[Failure]) -> list[Addressed]:
        outputs: list[Addressed] = []
        for request, error in failed:
            info = ErrorInfo(error.code, error.message)
            outputs += self._end(request, terminal(request, "error", info))
        return outputs

    def _due_outputs(self) -> list[Addressed]:
        due = [output for step, output in self._held_back if step <= self._committed_step]
        self._held_back = [held for held in self._held_back if held[0] > self._committed_step]
        return due

    def stats(self) -> EngineStats:
        """The state now."""
        return EngineStats(
            step=self._step,
            num_running=len(self.roster.running),
            num_waiting=len(self.roster.waiting) + self._grammars.num_compiling,
            num_pages=self.limits.num_pages,
            num_used_pages=self.roster.pool.num_used,
            prefix_query_tokens=self._prefix_query_tokens,
            prefix_hit_tokens=self._prefix_hit_tokens,
            image_queries=self._image_queries,
            image_hits=self._image_hits,
            preemptions=self._num_preemptions,
            step_tokens=self._step_tokens,
            page_lives=() if self._watch is None else self._watch.told(),
        )
