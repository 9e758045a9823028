"""Plan: all that a run needs."""

from dataclasses import dataclass

from glimt.bench.load.prepare import Workload
from glimt.bench.load.runner import Early
from glimt.bench.load.schedule import Arrivals
from glimt.bench.load.timing import Timing
from glimt.bench.options import Options
from glimt.bench.target import Target


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All that a run needs; nothing is decided after this."""

    options: Options
    target: Target
    workload: Workload
    warmups: Workload
    probe_body: bytes
    arrivals: Arrivals
    seed: int
    early: Early | None = None

    @property
    def timing(self) -> Timing:
        """When which job leaves."""
        return Timing(self.options, self.arrivals, self.seed)
