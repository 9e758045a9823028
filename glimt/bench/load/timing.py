"""Which job leaves when: by the schedule, by the trace, or as the concurrency limit lets it."""

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle, islice

import msgspec

from glimt.bench.load.runner import Job, Pace
from glimt.bench.load.schedule import Arrivals, arrival_times, endless_times
from glimt.bench.options import Options

Timed = tuple[float, Job]


@dataclass(frozen=True)
class Timing:
    """The timing of one run, the same in each of its processes."""

    options: Options
    arrivals: Arrivals
    seed: int

    @property
    def is_self_timed(self) -> bool:
        """Whether the prompts bring their own times."""
        load = self.options.load
        return load.self_timed is not False and self.options.data.dataset_name == "timed_trace"

    @property
    def pace(self) -> Pace:
        """gate: only the concurrency limit says when a request leaves."""
        load = self.options.load
        has_rate = load.ramp_up_strategy is not None or math.isfinite(load.request_rate)
        if has_rate or self.is_self_timed or load.max_concurrency is None:
            return "schedule"
        return "gate"

    def stop_ns(self, zero_ns: int) -> int | None:
        """When the last request may leave; None: when all have."""
        duration = self.options.load.duration
        return None if duration is None else zero_ns + round(duration * 1e9)

    def digest(self, jobs: list[Job]) -> str:
        """Of the times at which requests are to leave (the first round, if there are several)."""
        times = [at_s for at_s, _ in islice(self.timed_jobs(jobs), len(jobs))]
        return hashlib.sha256(msgspec.json.encode(times)).hexdigest()[:16]

    def timed_jobs(self, jobs: list[Job]) -> Iterator[Timed]:
        """Jobs with their times in seconds; without end if the run is limited by time."""
        if self.is_self_timed:
            yield from sorted(((job.at_s or 0.0, job) for job in jobs), key=lambda pair: pair[0])
        elif self.options.load.duration is None:
            times = arrival_times(self.arrivals, len(jobs), self.seed)
            yield from ((float(time), job) for time, job in zip(times, jobs, strict=True))
        else:
            yield from zip(endless_times(self.arrivals, self.seed), _rounds(jobs), strict=False)


def _rounds(jobs: list[Job]) -> Iterator[Job]:
    """The jobs over and over, each time under new numbers."""
    size = sum(1 + len(job.later) for job in jobs)
    for number, job in enumerate(cycle(jobs)):
        shift = number // len(jobs) * size
        yield msgspec.structs.replace(
            job,
            index=job.index + shift,
            conversation=number,
            later=tuple(
                msgspec.structs.replace(turn, index=turn.index + shift) for turn in job.later
            ),
        )
