"""How long streams wait for a token while images of others arrive, with random weights.

    python benchmarks/image_gap.py                     GLM-4.5V-FP8, two minutes on one H200
    python benchmarks/image_gap.py encodes_beside=0 "" tower_stream=1 tower_stream=1,tower_sms=88
    python benchmarks/image_gap.py --model tiny --device cpu --dtype float32 --quantization none \
        --max-model-len 4096 --grid 24 24 --prompt 16 --text 8 --requests 2 --images 4 --every 8

The last one only tells whether it runs. So many requests decode; every few steps one comes with an
image that is new and some text, and is answered with one token. For each set of switches
(`switches.py`; encodes_beside=0 is how it was once, each step waits for its images; "" is the code
as it is): milliseconds between two tokens of the streams that decode, in all steps and in those
that computed no prompt, and to the first token of who came with an image. Weights are made once.
"""

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from ab_steps import rebuild
from dummy_model import Driver, add_model_arguments, end, image, model_line
from dummy_model import build as build_model
from switches import Switches, switch, switches_of

from glimt.engine.scheduler import Scheduler
from glimt.processes import build
from glimt.processes.machine import Machine

SETTLE = 16  # turns before images come: they compile and record
LAST = 24  # turns that are measured when the last image has been answered
MAX_TURNS = 20_000


class Load:
    """Streams that decode, and requests with images that come every so many turns."""

    def __init__(self, driver: Driver, options: argparse.Namespace) -> None:
        self.gaps_ms: dict[bool, list[float]] = {False: [], True: []}  # by: it computed a prompt
        self.first_token_ms: list[float] = []
        self.num_tokens = 0
        self._driver = driver
        self._options = options
        self._open: dict[int, float] = {}  # who waits for a first token, and since when
        self._numbers = itertools.count(1)

    def run(self, num_streams: int) -> None:
        """Until all images have been answered, and some turns more."""
        driver, options = self._driver, self._options
        scheduler = driver.engine.scheduler
        streams = [driver.add(options.prompt, options.longest) for _ in range(num_streams)]
        num_come, last_s, turns_left = 0, None, LAST
        for number, turn in enumerate(driver.turns()):
            now_s = time.perf_counter()
            self._take(now_s)
            plan = turn.plan
            decodes = plan is not None and len(plan.work) >= num_streams
            if decodes and last_s is not None and number > SETTLE:
                has_prompt = any(work.num_tokens > 1 for work in plan.work)
                self.gaps_ms[has_prompt].append(1000 * (now_s - last_s))
                self.num_tokens += num_streams
            last_s = now_s if decodes else None
            if number > SETTLE and number % options.every == 0 and num_come < options.images:
                self._come()
                num_come += 1
            if num_come == options.images and not self._open:
                turns_left -= 1
            if turns_left == 0 or number == MAX_TURNS:
                for request_id in streams:
                    scheduler.abort(0, request_id)

    def _come(self) -> None:
        options, number = self._options, next(self._numbers)
        span = image(options.salt + number, tuple(options.grid), options.text // 2)
        count = options.text + span.num_tokens
        self._open[self._driver.add(count, 1, (span,))] = time.perf_counter()

    def _take(self, now_s: float) -> None:
        find = self._driver.engine.scheduler.roster.find
        for request_id in [one for one in self._open if find((0, one)) is None]:
            self.first_token_ms.append(1000 * (now_s - self._open.pop(request_id)))


def measure(driver: Driver, options: argparse.Namespace, num_streams: int) -> dict[str, Any]:
    """One load, with images that were never seen."""
    options.salt += 1000
    load = Load(driver, options)
    began = time.perf_counter()
    load.run(num_streams)
    took = time.perf_counter() - began
    plain, prompts = load.gaps_ms[False], load.gaps_ms[True]
    return {
        "streams": num_streams,
        "largest_ms": max(plain + prompts),
        "largest_without_prompt_ms": max(plain, default=0.0),
        "median_ms": statistics.median(plain + prompts),
        "p95_ms": sorted(plain + prompts)[int(0.95 * len(plain + prompts))],
        "prompt_steps": len(prompts),
        "steps": len(plain) + len(prompts),
        "first_token_median_ms": statistics.median(load.first_token_ms),
        "first_token_largest_ms": max(load.first_token_ms),
        "tokens_per_s": load.num_tokens / took,
    }


def with_switches(driver: Driver, switches: Switches, device: str) -> Driver:
    """The same model with another scheduler and executor."""
    switch(switches)
    engine = driver.engine
    machine = engine.executor
    if isinstance(machine, Machine):
        rebuild(machine, torch.device(device))
        machine.record_graphs()
    limits = replace(engine.scheduler.limits, encodes_beside=bool(build.ENCODES_BESIDE))
    return Driver(replace(engine, scheduler=Scheduler(limits)))


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_model_arguments(parser)
    parser.add_argument("switches", nargs="*", default=["encodes_beside=0", "", "tower_stream=1"])
    parser.add_argument("--requests", type=int, nargs="*", default=[1, 8, 64])
    parser.add_argument("--prompt", type=int, default=256, help="tokens of who decodes")
    parser.add_argument("--longest", type=int, default=4000, help="tokens of their answers")
    parser.add_argument("--grid", type=int, nargs=2, default=[64, 84], help="patches of the image")
    parser.add_argument("--text", type=int, default=90, help="tokens beside the image")
    parser.add_argument("--images", type=int, default=12)
    parser.add_argument("--every", type=int, default=20, help="turns between two images")
    parser.add_argument("--json", type=Path, help="file for the result")
    options = parser.parse_args(given)
    options.salt = 0  # of the images' numbers
    return options


def main() -> None:
    """Build once; then each number of streams with each set of switches."""
    options = arguments()
    sets = [switches_of(text) for text in options.switches]
    options.num_rows = options.requests
    options.requests = [max(options.requests) + options.images]
    driver = Driver(build_model(options))
    print(model_line(driver.engine, options))
    results = []
    for text, switches in zip(options.switches, sets, strict=True):
        driver = with_switches(driver, switches, options.device)
        options.salt += 1000
        few = argparse.Namespace(**vars(options) | {"images": 2})
        measure(driver, few, options.num_rows[0])  # compiles and records
        for num_streams in options.num_rows:
            found = measure(driver, options, num_streams)
            results.append({"switches": text, **found})
            print(
                f"{text or 'as it is':<28}{num_streams:4d} streams: largest gap"
                f" {found['largest_ms']:7.1f} ms, without a prompt"
                f" {found['largest_without_prompt_ms']:7.1f}, p95 {found['p95_ms']:6.1f}, median"
                f" {found['median_ms']:6.1f}; image's first token"
                f" {found['first_token_median_ms']:7.1f} ms (largest"
                f" {found['first_token_largest_ms']:.1f}); {found['tokens_per_s']:6.0f} tokens/s",
                flush=True,
            )
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))
    end(driver.engine)


if __name__ == "__main__":
    main()
