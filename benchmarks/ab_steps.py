"""Decode steps of a model with random weights, with different switches of the code in turn.

    python benchmarks/ab_steps.py "" defer_sums=0 --requests 1 8
    python benchmarks/ab_steps.py "" prompt_graphs=1 --prompts --requests 1
    python benchmarks/ab_steps.py "" defer_sums=0 --requests 1 --kernels   what ran, as well

The weights are made once, then for each set of switches (`switches.py`; "" is the code as it is)
an executor. Round after round, so that what changes with time does not look like a difference.
"""

import argparse
import json
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from dummy_model import (
    PROMPTS,
    Driver,
    add_model_arguments,
    build,
    decode_ms,
    end,
    first_token_ms,
    prefill_tokens_per_s,
)
from switches import Switches, switch, switches_of
from torch.profiler import ProfilerActivity, profile
from trace_step import summarise

from glimt.processes.machine import Machine, give_back


def rebuild(machine: Machine, device: torch.device) -> None:
    """Another executor of the same model, as the code is now."""
    machine._executor = None
    give_back(device)
    machine._executor = machine._make(machine._model)  # type: ignore[arg-type]


def measure(driver: Driver, options: argparse.Namespace) -> Iterator[tuple[str, float]]:
    """(what, number) with the switches that are set."""
    for requests in options.requests:
        step = decode_ms(driver, requests, options.prompt, options.tokens)
        yield f"ms at {step['rows']}", step["median_ms"]
    if options.prompts:
        alone = []
        for _ in range(6):
            driver.add(options.prompt, 1)
            alone.append(sum(turn.all_ms for turn in driver.turns()))
        yield "ms of a prompt", statistics.median(alone[3:])
        yield "prompt tokens/s", prefill_tokens_per_s(driver, PROMPTS, options.prompt)
        first = first_token_ms(driver, tuple(options.grid), 90, 6)
        yield "ms to an image's first token", first["whole_ms"]
        yield "ms of the image", first["encode_ms"]


def kernels(driver: Driver, options: argparse.Namespace) -> Iterator[str]:
    """What the GPU does in decode steps of the first number of requests."""
    for _ in range(options.requests[0]):
        driver.add(options.prompt, 32)
    turns = iter(driver.turns())
    for _ in range(12):
        next(turns)
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        traced = [next(turns) for _ in range(5)]
        torch.cuda.synchronize()
    for _ in turns:
        pass
    file = options.out / "trace.json"
    profiler.export_chrome_trace(str(file))
    yield from summarise(json.loads(file.read_text()), traced, options.layers or 46)
    file.unlink()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_model_arguments(parser)
    parser.add_argument("sets", nargs="+")
    parser.add_argument("--requests", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--prompt", type=int, default=1433, help="tokens of each prompt")
    parser.add_argument("--tokens", type=int, default=48, help="tokens of each answer")
    parser.add_argument("--grid", type=int, nargs=2, default=[64, 84], help="patches of an image")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--prompts", action="store_true", help="time prompts as well")
    parser.add_argument("--kernels", action="store_true", help="list what ran on the GPU")
    parser.add_argument("--out", type=Path, default=Path("build/ab"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    sets: list[Switches] = [switches_of(text) for text in options.sets]
    if options.kernels:
        with profile(activities=[ProfilerActivity.CUDA]):
            pass  # sets the tracer up before graphs are recorded
    engine = build(options)
    if not isinstance(engine.executor, Machine):
        raise SystemExit("one process only: no --tensor-parallel-size")
    driver, found = Driver(engine), dict[str, dict[str, list[float]]]()
    for number in range(options.rounds):
        for text, switches in zip(options.sets, sets, strict=True):
            switch(switches)
            rebuild(engine.executor, torch.device(options.device))
            lines = found.setdefault(text, {})
            for name, value in measure(driver, options):
                lines.setdefault(name, []).append(value)
            shown = ", ".join(f"{name} {values[-1]:.3f}" for name, values in lines.items())
            print(f"[{text or 'as it is'}] {shown}", flush=True)
            if options.kernels and number == 0:
                print("\n".join(kernels(driver, options)), flush=True)
    result: dict[str, Any] = {"options": {k: str(v) for k, v in vars(options).items()}, "ms": found}
    (options.out / "ab.json").write_text(json.dumps(result, indent=1))
    end(engine)


if __name__ == "__main__":
    main()
