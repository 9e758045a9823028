"""What deciding costs: schedule() + commit() per step, with a device that takes no time.

    python benchmarks/scheduler.py [--running 1 64 256] [--steps 400] [--prompt-tokens 500]

Requests decode side by side, as they do most of the time; steps overlap as in the engine loop.
Each line is the median over the steps, and the 99th percentile, in milliseconds. The aim is at
most 0.5 ms per step at 256 running requests on one core.
"""

import argparse
import json
import statistics
import time

import numpy as np

from glimt.engine.limits import SchedulerLimits
from glimt.engine.plan import InFlight, StepPlan
from glimt.engine.scheduler import Scheduler
from glimt.engine.simulated import InstantExecutor
from glimt.wire import SamplingParams, Submit


def make_scheduler(num_running: int, num_prompt_tokens: int, num_steps: int) -> Scheduler:
    page_size = 64
    max_model_len = num_prompt_tokens + num_steps + 100
    pages_each = -(-max_model_len // page_size)
    scheduler = Scheduler(
        SchedulerLimits(
            num_pages=(num_running + 1) * (pages_each + 1),
            page_size=page_size,
            max_num_seqs=num_running,
            max_num_batched_tokens=max(8192, num_running),
            max_model_len=max_model_len,
            image_budget=8192,
            image_cache_tokens=8192,
        )
    )
    rng = np.random.default_rng(0)
    for request_id in range(num_running):
        token_ids = rng.integers(0, 100_000, num_prompt_tokens, dtype=np.int32)
        sampling = SamplingParams(max_tokens=num_steps + 50, eos_token_ids=(2**31 - 2,))
        submit = Submit(
            request_id=request_id, server=0, token_ids=token_ids.tobytes(), sampling=sampling
        )
        if scheduler.add(submit):
            raise SystemExit("the benchmark's own request was refused")
    return scheduler


def measure(num_running: int, num_prompt_tokens: int, num_steps: int) -> list[float]:
    """Milliseconds of schedule + commit of each step in which all requests decode."""
    scheduler = make_scheduler(num_running, num_prompt_tokens, num_steps)
    executor = InstantExecutor()
    behind: InFlight | None = None
    times_ms: list[float] = []
    while len(times_ms) < num_steps:
        result = None if behind is None else behind.result()
        began = time.perf_counter()
        plan: StepPlan | None = scheduler.schedule()
        if behind is not None and result is not None:
            scheduler.commit(behind.plan, result)
        took = time.perf_counter() - began
        if plan is None:
            raise SystemExit("the benchmark ran out of work")
        if plan.num_tokens == len(plan.work) == num_running and not plan.new_rows:
            times_ms.append(took * 1000)
        behind = executor.launch(plan)
    return times_ms


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--running", type=int, nargs="+", default=[1, 64, 256])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--prompt-tokens", type=int, default=500)
    parser.add_argument("--json", action="store_true", help="one JSON object per line")
    arguments = parser.parse_args()
    for num_running in arguments.running:
        times_ms = sorted(measure(num_running, arguments.prompt_tokens, arguments.steps))
        median = statistics.median(times_ms)
        p99 = times_ms[int(len(times_ms) * 0.99)]
        if arguments.json:
            print(json.dumps({"running": num_running, "ms_per_step": median, "p99_ms": p99}))
        else:
            print(f"{num_running:4d} running: {median:.3f} ms per step (p99 {p99:.3f} ms)")


if __name__ == "__main__":
    main()
