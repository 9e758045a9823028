"""A trace of steps of a model with random weights: launches, how busy the GPU is, and the gaps.

    python benchmarks/trace_step.py --layers 4 --requests 8 --out trace.json
    python benchmarks/trace_step.py --layers 4 --what prompt --requests 1 --out trace.json
    python benchmarks/trace_step.py --layers 1 --what image --out trace.json
    python benchmarks/trace_step.py -tp 2 [-ep] --requests 1 --drop     rank 0 of two GPUs

`--what decode`: steps in which every request draws a token. `--what prompt`: steps that compute
so many prompts. `--what image`: passes of the vision tower over one image each. The file opens in
chrome://tracing or ui.perfetto.dev. The summary counts what the GPU ran (kernels, copies, fills),
the share of the time in which it ran anything, the time between runs, the longest gaps with what
came after them, the most expensive kernels, and the host's part: phases, and the operations and
calls of CUDA that took the most of its time, each with what it calls.
"""

import argparse
import json
import statistics
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from dummy_model import Driver, Turn, add_model_arguments, build, end, image
from torch.profiler import ProfilerActivity, profile

from glimt.engine.plan import StepPlan

SKIPPED = 8  # steps before the trace: they compile and record
PHASES = ("schedule", "launch", "wait", "commit")  # of a turn of the host
ON_GPU = ("kernel", "gpu_memcpy", "gpu_memset")
ON_HOST = ("cpu_op", "cuda_runtime", "cuda_driver")


@dataclass(frozen=True)
class Run:
    """One thing that the GPU did, in microseconds."""

    name: str
    start: float
    end: float


def main() -> None:
    """Build, warm up, trace, summarise."""
    options = arguments()
    options.requests = [options.requests]
    activities = [ProfilerActivity.CPU]
    if options.device == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities):
        pass  # sets the tracer up before graphs are recorded
    driver = Driver(build(options))
    profiler = profile(activities=activities)
    traced: list[Turn] = []
    turns = {"decode": decoding, "prompt": prompts, "image": images}[options.what](driver, options)
    for number, turn in enumerate(turns):
        if number > SKIPPED:
            traced.append(turn)
        if number == SKIPPED or len(traced) == options.steps:
            _synchronize(options.device)
        if number == SKIPPED:
            profiler.start()
        if len(traced) == options.steps:
            break
    profiler.stop()
    profiler.export_chrome_trace(str(options.out))
    summary = summarise(json.loads(options.out.read_text()), traced, options.layers or 46)
    print("\n".join(summary))
    if options.drop:
        options.out.unlink()
    end(driver.engine)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_model_arguments(parser)
    parser.add_argument("--what", choices=["decode", "prompt", "image"], default="decode")
    parser.add_argument("--requests", type=int, default=8)
    parser.add_argument("--prompt", type=int, default=1433, help="tokens of each prompt")
    parser.add_argument("--steps", type=int, default=5, help="steps in the trace")
    parser.add_argument("--out", type=Path, default=Path("trace.json"))
    parser.add_argument("--drop", action="store_true", help="keep the summary alone")
    return parser.parse_args()


def decoding(driver: Driver, options: argparse.Namespace) -> Iterator[Turn]:
    """Turns whose step all requests decoded in."""
    for _ in range(options.requests[0]):
        driver.add(options.prompt, SKIPPED + options.steps + 64)
    for turn in driver.turns():
        if turn.is_decoding and turn.plan and len(turn.plan.work) == options.requests[0]:
            yield turn


def prompts(driver: Driver, options: argparse.Namespace) -> Iterator[Turn]:
    """So many prompts that come together and are answered with one token, all turns as one."""
    for _ in range(SKIPPED + options.steps + 1):
        for _ in range(options.requests[0]):
            driver.add(options.prompt, 1)
        turns = list(driver.turns())
        times = (sum(getattr(turn, f"{name}_ms") for turn in turns) for name in PHASES)
        yield Turn(turns[-1].plan, *times)


def images(driver: Driver, options: argparse.Namespace) -> Iterator[Turn]:
    """A pass of the vision tower each, waited for."""
    executor = driver.engine.executor
    for number in range(SKIPPED + options.steps + 1):
        span = image(number, (64, 84), 0)
        began = time.perf_counter()
        step = executor.launch(StepPlan(number, encode=(span,)))
        launched = time.perf_counter()
        step.result()
        _synchronize(options.device)
        done = time.perf_counter()
        yield Turn(None, 0.0, 1000 * (launched - began), 1000 * (done - launched), 0.0)
        executor.launch(StepPlan(number, drop_images=(span.content_hash,))).result()


def _synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def summarise(trace: dict[str, Any], turns: list[Turn], layers: int) -> Iterator[str]:
    """Lines for people."""
    steps = len(turns)
    host = {
        name: statistics.median(getattr(turn, f"{name}_ms") for turn in turns)
        for name in (*PHASES, "all")
    }
    yield f"{steps} steps; medians of the host in ms: " + ", ".join(
        f"{name} {value:.2f}" for name, value in host.items()
    )
    runs = sorted(
        (
            Run(event["name"], event["ts"], event["ts"] + event["dur"])
            for event in trace["traceEvents"]
            if event.get("cat") in ON_GPU and "dur" in event
        ),
        key=lambda run: run.start,
    )
    calls = [Run(e["name"], 0.0, e["dur"]) for e in trace["traceEvents"] if e.get("cat") in ON_HOST]
    if not runs:
        yield "nothing ran on a GPU"
        yield from _most_expensive(calls, steps, 12)
        return
    busy, gaps, end = 0.0, [], runs[0].start
    for run in runs:
        if run.start > end:
            gaps.append((run.start - end, run.name))
        busy += max(0.0, run.end - max(end, run.start))
        end = max(end, run.end)
    span = end - runs[0].start
    yield (
        f"{len(runs) / steps:.0f} launches a step, {len(runs) / steps / layers:.1f} a layer; "
        f"{span / steps / 1000:.3f} ms a step, of which the GPU is busy {100 * busy / span:.1f} %"
    )
    small = [gap for gap, _ in gaps if gap < 20]
    yield (
        f"gaps: {len(gaps) / steps:.0f} a step, median {statistics.median(g for g, _ in gaps):.2f}"
        f" us; those below 20 us add up to {sum(small) / steps / 1000:.3f} ms a step, the others "
        f"to {sum(g for g, _ in gaps if g >= 20) / steps / 1000:.3f} ms"
        if gaps
        else "gaps: none"
    )
    for gap, name in sorted(gaps, reverse=True)[:5]:
        yield f"  {gap:9.1f} us before {name[:90]}"
    yield from _most_expensive(runs, steps, 25)
    yield from _most_expensive(calls, steps, 12)


def _most_expensive(runs: list[Run], steps: int, count: int) -> Iterator[str]:
    """A table of what took the most time in all."""
    times: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    for run in runs:
        times[run.name] += run.end - run.start  # type: ignore[assignment]
        counts[run.name] += 1
    if runs:
        yield f"{'ms a step':>10} {'calls':>9} {'us each':>9}"
    for name, total in times.most_common(count):
        yield (
            f"{total / steps / 1000:10.3f} {counts[name] / steps:9.1f} "
            f"{total / counts[name]:9.2f}  {name[:100]}"
        )


if __name__ == "__main__":
    main()
