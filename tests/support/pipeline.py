"""A scheduler and an executor at work without a loop: steps launched ahead of their results."""

from collections import deque
from collections.abc import Iterator

from glimt.engine.plan import Executor, InFlight, StepPlan
from glimt.engine.scheduler import Scheduler
from glimt.wire import Output


class Pipeline:
    """`depth` steps are launched before the first result is read."""

    def __init__(self, scheduler: Scheduler, executor: Executor, depth: int) -> None:
        self._scheduler = scheduler
        self._executor = executor
        self._depth = depth
        self._in_flight: deque[InFlight] = deque()

    @property
    def is_busy(self) -> bool:
        """Requests are left, or steps."""
        return self._scheduler.has_requests or bool(self._in_flight)

    def turn(self) -> tuple[StepPlan | None, list[Output]]:
        """The step that was planned and launched, and what came of earlier ones."""
        plan = self._scheduler.schedule()
        if plan is not None:
            self._in_flight.append(self._executor.launch(plan))
        outputs: list[Output] = []
        while self._in_flight and (len(self._in_flight) >= self._depth or plan is None):
            step = self._in_flight.popleft()
            outputs += [out for _, out in self._scheduler.commit(step.plan, step.result())]
        return plan, outputs

    def run(self) -> Iterator[Output]:
        """All outputs, until no request is left."""
        while self.is_busy:
            yield from self.turn()[1]
