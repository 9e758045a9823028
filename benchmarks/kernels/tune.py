"""Tries every tile of the kernels' candidates at the models' sizes; the fastest go in a table.

The table has the form of `glimt/kernels/tiles.json`: product, then outputs × inputs, then rows.
Under "measured" are the microseconds of the best tile and of the one that is used today. Most of
the time goes into compiling, which other processes do first, side by side: Triton keeps on disk
what it compiled.
"""

import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.kernels.cases import Inputs, all_cases
from benchmarks.kernels.measure import MAX_SETS, ROTATED_BYTES, microseconds
from benchmarks.kernels.shapes import Shape, linear_products, shape_of
from glimt.kernels import choice, tiles

BUCKETS = (1, 16, 32, 64)
EXPERT_SETS = 8  # of the same weights, with other experts

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

    @property
    def tiles(self) -> list[Any]:
        """All to try, today's first."""
        return list(dict.fromkeys([self.today, *self.candidates]))


def tune(jobs: Sequence[Job], device: torch.device) -> dict[str, Any]:
    """The table for all jobs."""
    table: dict[str, Any] = {"measured": {}}
    for job in jobs:
        sets = [job.make(n) for n in range(job.num_sets)]
        times: dict[Any, float] = {}
        for tile in job.tiles:
            try:
                times[tile] = microseconds(job.run_with(tile), sets, device, 3)
            except Exception as error:  # too much shared memory, say
                print(f"  {tile}: {type(error).__name__}", flush=True)
                torch.cuda.synchronize()
        if not times:
            continue
        best = min(times, key=lambda tile: times[tile])
        line = {"best_us": round(times[best], 2)}
        if job.today in times:
            line["today_us"] = round(times[job.today], 2)
        table.setdefault(job.product, {}).setdefault(job.size, {})[str(job.rows)] = best._asdict()
        table["measured"][f"{job.product} {job.size} {job.rows}"] = line
        print(f"{job.product} {job.size} {job.rows:4d} rows: {line}  {best}", flush=True)
    return table


def compile_part(jobs: Sequence[Job], part: int, parts: int) -> None:
    """Run each of a part of the tiles once."""
    for job in jobs:
        given = job.make(0)
        for tile in job.tiles[part::parts]:
            try:
                job.run_with(tile)(*given)
                torch.cuda.synchronize()
            except Exception as error:
                print(f"  {tile}: {type(error).__name__}", flush=True)


def compile_all(arguments: Sequence[str], parts: int) -> None:
    """`compile_part` in processes of their own; `arguments` are this one's."""
    command = [sys.executable, "-m", "benchmarks.kernels", *arguments]
    others = [
        subprocess.Popen([*command, "--compile-part", str(part)], stdout=subprocess.DEVNULL)
        for part in range(parts)
    ]
    for other in others:
        other.wait()


def all_jobs(
    models: Sequence[str],
    rows: Sequence[int] | None,
    only: Sequence[str] | None,
    device: torch.device,
    is_quick: bool,
) -> Iterator[Job]:
    """The jobs of all products of `models`. `only`: parts of a product's name and size."""
    if choice.triton_linear is None or choice.triton_experts is None:
        raise SystemExit("Triton is not there, so there is nothing to tune")
    inputs, seen = Inputs(device, torch.bfloat16), set[tuple[str, str, int]]()
    step = 4 if is_quick else 1
    for model in models:
        shape = shape_of(model)
        for count in rows or BUCKETS:
            for job in (*_expert_jobs(inputs, shape, count), *_linear_jobs(inputs, shape, count)):
                key = (job.product, job.size, job.rows)
                wanted = not only or any(part in f"{job.product} {job.size}" for part in only)
                if wanted and key not in seen:
                    seen.add(key)
                    yield Job(**(vars(job) | {"candidates": job.candidates[::step]}))


def _linear_jobs(inputs: Inputs, shape: Shape, rows: int) -> Iterator[Job]:
    for num_out, num_in in linear_products(shape).values():

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
            candidates=tiles.LINEAR_CONFIGS,
            run_with=run_with,
            make=make,
            num_sets=max(2, min(MAX_SETS, -(-ROTATED_BYTES // (num_out * num_in)))),
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
        )
