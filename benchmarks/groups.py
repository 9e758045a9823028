"""Several answers to each of some questions at once: with and without waiting for each other.

    python benchmarks/groups.py                      GLM-4.5V-FP8, two minutes on one H200
    python benchmarks/groups.py --follow 0 256 512 1024
    python benchmarks/groups.py --model tiny --device cpu --dtype float32 --quantization none \
        --max-model-len 4096 --grid 24 24 --text 300 --groups 1x4 2x2 4x1 --rounds 1

The last one only tells whether it runs. `1x8` is one question with eight answers, `64x1` is 64 of
one; each question has an image that is new. For each number of tokens from which on a request waits
for another (`SchedulerLimits.follow_tokens`; 0: never), medians over the rounds: tokens that were
computed until all had their first, and milliseconds to the first token, the mean and the last.
"""

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from dummy_model import Driver, add_model_arguments, image, model_line
from dummy_model import build as build_model

from glimt.engine.scheduler import Scheduler
from glimt.wire import SamplingParams, Submit


def submits(
    driver: Driver, groups: int, answers: int, options: argparse.Namespace
) -> Iterator[Submit]:
    """Questions that were never asked, each so many times."""
    for _ in range(groups):
        options.salt += 1
        span = image(options.salt, tuple(options.grid), options.text // 2)
        token_ids = driver.tokens(options.text + span.num_tokens).tobytes()
        for answer in range(answers):
            options.number += 1
            yield Submit(
                request_id=options.number,
                server=0,
                token_ids=token_ids,
                images=(span,),
                sampling=SamplingParams(max_tokens=options.tokens, temperature=0.8, seed=answer),
            )


def measure(
    driver: Driver, groups: int, answers: int, options: argparse.Namespace
) -> tuple[int, list[float]]:
    """Tokens computed until all had their first, and milliseconds until each had."""
    scheduler = driver.engine.scheduler
    waiting = []
    for submit in submits(driver, groups, answers, options):
        if scheduler.add(submit):
            raise SystemExit("the benchmark's own request was refused")
        waiting.append(scheduler.roster.all()[-1])
    began, num_tokens, first_ms = time.perf_counter(), 0, []
    for turn in driver.turns():
        now_ms = 1000 * (time.perf_counter() - began)
        if turn.plan is not None and waiting:
            num_tokens += turn.plan.num_tokens
        first_ms += [now_ms for request in waiting if request.output_ids]
        waiting = [request for request in waiting if not request.output_ids]
    return num_tokens, first_ms


def main() -> None:
    """Build once; then all groups with each number of tokens."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_model_arguments(parser)
    parser.add_argument("--follow", type=int, nargs="*", default=[0, 512])
    parser.add_argument("--groups", nargs="*", default=["1x2", "1x8", "8x8", "64x1"])
    parser.add_argument("--grid", type=int, nargs=2, default=[64, 84], help="patches of an image")
    parser.add_argument("--text", type=int, default=90, help="tokens beside an image")
    parser.add_argument("--tokens", type=int, default=16, help="of an answer")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="file for the result")
    options = parser.parse_args()
    options.salt = options.number = 0
    kinds = [tuple(map(int, text.split("x"))) for text in options.groups]
    options.requests = [  # rows
        max(groups * answers for groups, answers in kinds)
    ]
    engine = build_model(options)
    print(model_line(engine, options))
    scheduler = Scheduler(replace(engine.scheduler.limits, prefix_caching=True))
    driver = Driver(replace(engine, scheduler=scheduler))
    results: list[dict[str, Any]] = []
    for groups, answers in kinds:
        rounds: dict[int, list[tuple[int, list[float]]]] = {}
        for number in range(options.rounds + 1):
            for follow in options.follow:  # in turns, so that all have the same chances
                scheduler.limits = replace(scheduler.limits, follow_tokens=follow)
                found = measure(driver, groups, answers, options)
                if number:  # the first one compiles and records
                    rounds.setdefault(follow, []).append(found)
        for follow, all_found in rounds.items():
            result = {
                "groups": groups,
                "answers": answers,
                "follow_tokens": follow,
                "tokens": statistics.median(tokens for tokens, _ in all_found),
                "mean_ms": statistics.median(statistics.mean(ms) for _, ms in all_found),
                "last_ms": statistics.median(max(ms) for _, ms in all_found),
            }
            results.append(result)
            print(
                f"{groups:3d} questions x {answers} answers, from {follow:4d} tokens on:"
                f" {result['tokens']:8.0f} tokens computed, first token after"
                f" {result['mean_ms']:8.1f} ms, the last {result['last_ms']:8.1f}",
                flush=True,
            )
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))
    engine.close()


if __name__ == "__main__":
    main()
