"""Tries every tile of the kernels' candidates at the models' sizes; the fastest go in a table.

The table has the form of `glimt/kernels/tiles.json`: a GPU's name, product, outputs × inputs, rows.
Under "measured" are the microseconds of the best tile and of the one that is used today; a tile
that is not clearly better is left out. What a step spends most on comes first, and the table is
written after each product, so that it may be stopped at any time. Most of the time goes into
compiling, which other processes do ahead, side by side (`compilers.py`).
"""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.kernels.cases import Inputs, all_cases
from benchmarks.kernels.compilers import Compilers, NoInputs, only_compiled
from benchmarks.kernels.measure import MAX_SETS, ROTATED_BYTES, microseconds
from benchmarks.kernels.shapes import Shape, linear_products, shape_of
from glimt.kernels import choice, tiles

MODELS = ("106b:1", "106b:2", "9b:1", "106b:4")
BUCKETS = (1, 16, 64, 32)  # rows, in the order of what they are worth
EXPERT_SETS = 8  # of the same weights, with other experts
_LEAST_GAIN = 0.02  # of the time; less is chance
_PROCESSORS = 132  # of an H100 or H200

Run = Callable[..., Any]


@dataclass(frozen=True)
class Job:
    """One product of one size with so many rows."""

    product: str
    size: str
    rows: int
    today: Any
    candidates: Sequence[Any]
    run_with: Callable[[Any], Run]
    make: Callable[[int], tuple[Any, ...]]  # the n-th set of inputs
    num_sets: int
    launches: int  # in a step

    @property
    def tiles(self) -> list[Any]:
        """All to try, today's first."""
        return list(dict.fromkeys([self.today, *self.candidates]))


@dataclass
class Tuner:
    """Fills a table job by job, until the time is over."""

    file: Path | None
    device: torch.device
    seconds: float = float("inf")
    compilers: Compilers | None = None
    table: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """What is in the file stays, but for what is measured anew."""
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
        for number, job in enumerate(jobs):
            if self.compilers is not None:
                self.compilers.wait_for(number)
            if time.monotonic() > self._until:
                print(f"time is over: {len(jobs) - number} of {len(jobs)} products left")
                break
            self._note(job, self._times(job))
            if self.file is not None:
                self.file.write_text(json.dumps(self.table, indent=1) + "\n")
        return self.table

    def _times(self, job: Job) -> dict[Any, float]:
        sets = [job.make(n) for n in range(job.num_sets)]
        times: dict[Any, float] = {}
        for tile in job.tiles:
            try:
                times[tile] = microseconds(job.run_with(tile), sets, self.device, 3)
            except Exception as error:  # too much shared memory, say
                print(f"  {tile}: {type(error).__name__}", flush=True)
                if self.device.type == "cuda":
                    torch.cuda.synchronize()
        return times

    def _note(self, job: Job, times: dict[Any, float]) -> None:
        if not times:
            return
        best = min(times, key=lambda tile: times[tile])
        line = {"best_us": round(times[best], 2)}
        if job.today in times:
            line["today_us"] = round(times[job.today], 2)
        if times[best] < (1 - _LEAST_GAIN) * times.get(job.today, float("inf")):
            sizes = self.own.setdefault(job.product, {}).setdefault(job.size, {})
            sizes[str(job.rows)] = best._asdict()
        self.own["measured"][f"{job.product} {job.size} {job.rows}"] = line
        print(f"{job.product} {job.size} {job.rows:4d} rows: {line}  {best}", flush=True)


def compile_part(jobs: Sequence[Job], part: int, parts: int) -> None:
    """Compile a part of each job's tiles; says so after each job."""
    for number, job in enumerate(jobs):
        given = job.make(0)
        for tile in job.tiles[part::parts]:
            try:
                with only_compiled():
                    job.run_with(tile)(*given)
            except Exception as error:  # who times it will say which
                print(f"  {tile}: {type(error).__name__}", flush=True)
        print(f"job {number}", flush=True)


def all_jobs(
    models: Sequence[str] | None,
    rows: Sequence[int] | None,
    only: Sequence[str] | None,
    inputs: Inputs,
    is_quick: bool,
) -> list[Job]:
    """The jobs of all products of `models`. `only`: parts of a product's name and size.

    What is launched once a step comes last, and else few rows before many.
    """
    if choice.triton_linear is None or choice.triton_experts is None:
        raise SystemExit("Triton is not there, so there is nothing to tune")
    found: dict[tuple[str, str, int], Job] = {}
    step = 4 if is_quick else 1
    for count in rows or BUCKETS:
        for model in models or MODELS:
            shape = shape_of(model)
            for job in (*_linear_jobs(inputs, shape, count), *_expert_jobs(inputs, shape, count)):
                if not only or any(part in f"{job.product} {job.size}" for part in only):
                    fewer = Job(**(vars(job) | {"candidates": job.candidates[::step]}))
                    found.setdefault((job.product, job.size, job.rows), fewer)
    return sorted(found.values(), key=lambda job: job.launches == 1)


def jobs_to_compile(options: Any) -> list[Job]:
    """`all_jobs`, of tensors without memory."""
    return all_jobs(options.models, options.rows, options.only, NoInputs(), options.quick)


def worth_trying(num_out: int, num_in: int) -> list[tiles.LinearTile]:
    """The candidates that make about one to six programs for each processor, of several steps."""
    found = []
    for tile in tiles.LINEAR_CONFIGS:
        programs = -(-num_out // tile.block_o) * tile.parts
        steps = num_in // (tile.block_i * tile.parts)
        if 0.7 * _PROCESSORS <= programs <= 6 * _PROCESSORS and steps >= 2:
            found.append(tile)
    return found or list(tiles.LINEAR_CONFIGS)


def _linear_jobs(inputs: Inputs, shape: Shape, rows: int) -> Iterator[Job]:
    for name, (num_out, num_in) in linear_products(shape).items():
        if name.startswith("shared"):
            continue  # the experts' kernels do that
        is_everywhere = name in ("qkv", "o") or not shape.num_experts

        def make(n: int, num_out: int = num_out, num_in: int = num_in) -> tuple[Any, ...]:
            x = inputs.randn(n, rows, num_in)
            weight, scale = inputs.fp8(n, num_out, num_in)
            return choice.QuantizedRows(x, *choice.quantize_rows(x)), weight, scale

        def run_with(tile: tiles.LinearTile) -> Run:
            return lambda *given: choice.triton_linear.fp8_linear(*given, None, tile)

        yield Job(
            product="fp8_linear",
            size=f"{num_out}x{num_in}",
            rows=rows,
            today=tiles.linear_tile(num_out, num_in, rows),
            candidates=worth_trying(num_out, num_in),
            run_with=run_with,
            make=make,
            num_sets=max(2, min(MAX_SETS, -(-ROTATED_BYTES // (num_out * num_in)))),
            launches=shape.layers if is_everywhere else 1,
        )


def _expert_jobs(inputs: Inputs, shape: Shape, rows: int) -> Iterator[Job]:
    """Both products, each timed within the whole feed-forward, shared expert included."""
    if not shape.num_experts:
        return
    case = next(case for case in all_cases(shape, rows, inputs) if case.op == "fp8_moe")

    def make(n: int) -> tuple[Any, ...]:
        x, *others = case.make(n)
        return choice.QuantizedRows(x, *choice.quantize_rows(x)), *others

    module = choice.triton_experts
    sizes = {
        "gate_up": (shape.expert_width, shape.hidden),
        "down": (shape.hidden, shape.expert_width),
    }
    for product, size in sizes.items():
        rule = getattr(module, f"{product}_tile")

        def run_with(tile: tiles.ExpertTile, product: str = product, rule: Run = rule) -> Run:
            def run(*given: Any) -> Any:
                setattr(module, f"{product}_tile", lambda *_: tile)
                try:
                    return module.fp8_experts(*given)
                finally:
                    setattr(module, f"{product}_tile", rule)

            return run

        yield Job(
            product=product,
            size=f"{size[0]}x{size[1]}",
            rows=rows,
            today=rule(*size, rows),
            candidates=tiles.EXPERT_CONFIGS,
            run_with=run_with,
            make=make,
            num_sets=EXPERT_SETS,
            launches=shape.layers - 1,
        )
