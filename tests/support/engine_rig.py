"""Rig: scheduler and simulated device, stepped by hand as the engine loop steps them."""

from __future__ import annotations

from collections import defaultdict

from glimt.engine.limits import SchedulerLimits
from glimt.engine.outputs import Addressed
from glimt.engine.plan import InFlight, StepPlan
from glimt.engine.scheduler import Scheduler
from glimt.engine.simulated import Faults, InjectedFault, SimulatedExecutor
from glimt.engine.simulated_model import SimulatedModel, expected_tokens
from glimt.errors import BadGrammar
from glimt.grammar.compiler import GrammarCompiler
from glimt.wire import ErrorInfo, ImageSpan, Output, Submit


class Rig:
    """Checks every invariant after every step, and collects outputs by request id."""

    def __init__(
        self,
        limits: SchedulerLimits,
        *,
        model: SimulatedModel | None = None,
        faults: Faults | None = None,
        compiler: GrammarCompiler | None = None,
        encode_steps: int = 0,
    ) -> None:
        self.limits = limits
        self.compiler = compiler
        self.model = model or SimulatedModel(limits.vocab_size)
        self.scheduler = Scheduler(limits, clock=lambda: 5.0, compiler=compiler)
        self.executor = SimulatedExecutor(
            limits.num_pages,
            limits.page_size,
            limits.image_cache_tokens,
            model=self.model,
            faults=faults,
            on_encode=self._on_encode,
            encode_steps=encode_steps,
        )
        self.plans: list[StepPlan] = []
        self.outputs: defaultdict[int, list[Output]] = defaultdict(list)
        self.submits: dict[int, Submit] = {}
        self.reads_after_end: list[int] = []
        self.behind: InFlight | None = None

    def add(self, *submits: Submit) -> None:
        for submit in submits:
            self.submits[submit.request_id] = submit
            self._collect(self.scheduler.add(submit))

    def abort(self, request_id: int) -> None:
        server = self.submits[request_id].server
        self._collect(self.scheduler.abort(server, request_id))
        self.check()

    def step(self) -> StepPlan | None:
        """One turn of the loop; gives the plan made in it, whose result is not yet known."""
        self._collect(self.scheduler.take_ready())
        plan = self.scheduler.schedule()
        self.check()
        ahead: InFlight | None = None
        failed: StepPlan | None = None
        if plan is not None:
            self.plans.append(plan)
            self._check_budgets(plan)
            try:
                ahead = self.executor.launch(plan)
            except InjectedFault:
                failed = plan
        self.settle()
        if failed is not None:
            self._collect(self.scheduler.fail(failed, ErrorInfo("step_failed", "launch")))
        if ahead is not None and ahead.plan.waits_for_masks:
            masks, ended = self.scheduler.masks(ahead.plan)
            self._collect(ended)
            ahead.draw(masks)
        self.behind = ahead
        self.check()
        return plan

    def settle(self) -> None:
        """Commit what is in flight."""
        behind, self.behind = self.behind, None
        if behind is None:
            return
        try:
            result = behind.result()
        except InjectedFault:
            self._collect(self.scheduler.fail(behind.plan, ErrorInfo("step_failed", "result")))
        else:
            self._collect(self.scheduler.commit(behind.plan, result))

    def run(self, max_steps: int = 5000) -> None:
        """Step until everyone is answered and nothing is in flight."""
        for _ in range(max_steps):
            if self.step() is None and self.behind is None and not self.scheduler.has_requests:
                break
        else:
            raise AssertionError(f"not finished after {max_steps} steps")
        assert self.scheduler.roster.pool.num_used == 0
        assert self.executor.violations == []
        assert self.reads_after_end == []

    def check(self) -> None:
        roster = self.scheduler.roster
        assert roster.check() == []
        assert all(request.num_preemptions <= 3 for request in roster.all())

    def tokens(self, request_id: int) -> list[int]:
        return [token for output in self.outputs[request_id] for token in output.token_ids]

    def end(self, request_id: int) -> Output:
        """Its one terminal output, which must be the last."""
        *before, last = self.outputs[request_id]
        assert all(output.finish_reason is None for output in before)
        assert last.finish_reason is not None
        return last

    def expected(self, request_id: int) -> tuple[list[int], str]:
        submit = self.submits[request_id]
        compiled = None
        if submit.sampling.grammar is not None:
            assert self.compiler is not None
            try:
                compiled = self.compiler.start(submit.sampling.grammar.text).result()
            except BadGrammar:
                return [], "error"
        return expected_tokens(self.model, submit, self.limits.max_model_len, compiled)

    def assert_answered(self, *request_ids: int) -> None:
        """These requests (default: all) ended by themselves with exactly the right tokens."""
        for request_id in request_ids or self.submits:
            end = self.end(request_id)
            assert (self.tokens(request_id), end.finish_reason) == self.expected(request_id)

    def assert_consistent(self) -> None:
        """Every request ended once; its tokens are right as far as they go."""
        for request_id in self.submits:
            end = self.end(request_id)
            tokens, finish_reason = self.expected(request_id)
            if end.finish_reason in ("stop", "length"):
                assert (self.tokens(request_id), end.finish_reason) == (tokens, finish_reason)
            else:
                mine = self.tokens(request_id)
                assert mine == tokens[: len(mine)]

    def _collect(self, addressed: list[Addressed]) -> None:
        for server, output in addressed:
            assert server == self.submits[output.request_id].server
            self.outputs[output.request_id].append(output)

    def _check_budgets(self, plan: StepPlan) -> None:
        assert plan.num_tokens <= self.limits.max_num_batched_tokens
        assert sum(span.num_tokens for span in plan.encode) <= self.limits.image_budget
        rows = [work.row for work in plan.work]
        assert len(set(rows)) == len(rows)
        assert all(0 <= row < self.limits.max_num_seqs for row in rows)

    def _on_encode(self, span: ImageSpan) -> None:
        owner = span.pixels.offset
        if any(output.finish_reason for output in self.outputs[owner]):
            self.reads_after_end.append(owner)
