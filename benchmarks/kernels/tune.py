"""Times the candidates' tiles at the models' sizes; the fastest go in a table.

The table has the form of `glimt/kernels/tiles.json`: by the name of a GPU, then product, outputs ×
inputs, and rows, a tile. Beside the products is "measured": of each what the rule's tile and the
best one take in microseconds, what they were timed with, and how many were tried. A tile that is
not clearly better than the rule's is left out, and one that gives other numbers is not taken.

Products come in the order of what they are worth to a step. The table is written after each, and
what a table has measured is not measured again, so tuning may be stopped and taken up at any time.
Most of it is compiling, which other processes do ahead, side by side (`compilers.py`).
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.kernels.compilers import Compilers, only_compiled
from benchmarks.kernels.jobs import Job
from benchmarks.kernels.measure import microseconds, numbers
from glimt.kernels import tiles
from glimt.kernels.pending import settled

LEAST_GAIN = 0.02  # of the time; less is chance
LARGEST_ERROR = 0.02  # between two tiles: of e4m3 numbers a few round the other way
FINALISTS = 4

Timer = Callable[[Job, Any, list[Any], int], float]  # microseconds of a tile in so many rounds


@dataclass
class Tuner:
    """Fills a table job by job, until the time is over."""

    file: Path | None
    device: torch.device
    seconds: float = float("inf")
    compilers: Compilers | None = None
    timer: Timer | None = None
    table: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """What is in the file stays."""
        self._until = time.monotonic() + self.seconds
        if self.file is not None and self.file.exists():
            self.table = json.loads(self.file.read_text())

    @property
    def own(self) -> dict[str, Any]:
        """The part of this GPU."""
        part: dict[str, Any] = self.table.setdefault(tiles.gpu_name(), {"measured": {}})
        return part

    def run(self, jobs: Sequence[Job]) -> dict[str, Any]:
        """The table."""
        left = [job for job in jobs if job.name not in self.own["measured"]]
        for number, job in enumerate(left):
            rest = self._until - time.monotonic()
            if self.compilers is not None and not self.compilers.wait_for(job.name, rest):
                rest = 0.0
            if rest <= 0:
                print(f"time is over: {len(left) - number} of {len(jobs)} products left")
                break
            self._try(job)
            if self.file is not None:
                self.file.write_text(json.dumps(self.table, indent=1) + "\n")
        return self.table

    def report(self, jobs: Sequence[Job]) -> str:
        """The table of what was measured, before and after."""
        lines = ["microseconds: the rule's tile, the best one, its GB/s of weights, and it"]
        for job in jobs:
            found = self.own["measured"].get(job.name)
            if found is not None:
                rule, best = found["rule_us"], found["best_us"]
                speed = job.num_bytes / best / 1000
                tile = ", ".join(f"{key} {value}" for key, value in found["best"].items())
                lines.append(
                    f"{job.name:28} {rule:8.2f} {best:8.2f} {best / rule:5.2f} {speed:6.0f}  {tile}"
                    f"  {job.within}"
                )
        return "\n".join(lines)

    def _try(self, job: Job) -> None:
        sets = [job.make(n) for n in range(job.num_sets)]
        times = self._times(job, job.tiles, sets, 2)
        if job.rule not in times:
            print(f"{job.name}: not even the rule's tile runs", flush=True)
            return
        best = sorted(times, key=lambda tile: times[tile])[:FINALISTS]
        finals = self._times(job, list(dict.fromkeys([job.rule, *best])), sets, 9)
        for tile in sorted(finals, key=lambda tile: finals[tile]):
            if tile == job.rule or self._is_right(job, tile, sets[0]):
                self._note(job, tile, finals[tile], finals[job.rule], len(times))
                return

    def _times(self, job: Job, tried: list[Any], sets: list[Any], rounds: int) -> dict[Any, float]:
        times: dict[Any, float] = {}
        for tile in tried:
            try:
                times[tile] = (self.timer or self._time)(job, tile, sets, rounds)
            except Exception as error:  # too much shared memory, say
                print(f"  {job.name} {tile}: {type(error).__name__}: {error}"[:200], flush=True)
                if self.device.type == "cuda":
                    torch.cuda.synchronize()
        return times

    def _time(self, job: Job, tile: Any, sets: list[Any], rounds: int) -> float:
        return microseconds(job.run_with(tile), sets, self.device, rounds)

    def _is_right(self, job: Job, tile: Any, given: tuple[Any, ...]) -> bool:
        """Whether a tile gives what the rule's does."""
        pairs = zip(
            *(_outputs(job.run_with(each)(*given)) for each in (tile, job.rule)), strict=True
        )
        error = max(((a - b).norm() / b.norm()).item() for a, b in pairs)
        if not error <= LARGEST_ERROR:
            print(f"  {job.name} {tile}: WRONG by {error:.3f}", flush=True)
        return error <= LARGEST_ERROR

    def _note(self, job: Job, tile: Any, best_us: float, rule_us: float, tried: int) -> None:
        line = {
            "rule_us": round(rule_us, 2),
            "best_us": round(best_us, 2),
            "best": tile._asdict(),
            "tried": tried,
        }
        if job.within:
            line["within"] = job.within
        if best_us < (1 - LEAST_GAIN) * rule_us:
            sizes = self.own.setdefault(job.product, {}).setdefault(job.size, {})
            sizes[str(job.rows)] = tile._asdict()
        self.own["measured"][job.name] = line
        print(f"{job.name}: {rule_us:.2f} -> {best_us:.2f} us  {tile}", flush=True)


def _outputs(result: Any) -> list[torch.Tensor]:
    """What a job's run gives, as float32."""
    is_plain = isinstance(result, (tuple, torch.Tensor)) and not hasattr(result, "total")
    return numbers(result if is_plain else settled(result))


def compile_part(jobs: Sequence[Job], part: int, parts: int) -> None:
    """Compile a part of each job's tiles; says so after each job."""
    for number, job in enumerate(jobs):
        with only_compiled():
            given = job.make(0)
        for tile in job.tiles[(part + number) % parts :: parts]:
            try:
                with only_compiled():
                    job.run_with(tile)(*given)
            except Exception as error:  # who times it will say which
                print(f"  {tile}: {type(error).__name__}", flush=True)
        print(f"job {job.name}", flush=True)
