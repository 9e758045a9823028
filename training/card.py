"""`python -m training.card`: the model card of a trained model, from its measurements.

    glimt eval --quantization fp8 --output build/eval
    python -m training.card build/eval/results.json --log training/record/log.jsonl \
        --out glimt/builtin/model/README.md

Every figure in it comes from results.json (accuracy) or log.jsonl (the training).
"""

import argparse
import json
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

from training.logbook import read_log

Json = dict[str, Any]

AIMS = {  # per cent, on held-out tasks, greedy, FP8
    "attributes": 97,
    "yes/no": 97,
    "counting": 95,
    "relations": 95,
    "reading": 93,
    "boxes": 90,
    "two images": 93,
    "motion": 95,
    "tools": 95,
    "format": 99,
}

HEAD = Path(__file__).parent / "card_head.md"  # what it is and what it is for


def card(results: Json, log: dict[str, list[Json]]) -> str:
    """The whole card, as Markdown."""
    return "\n".join([HEAD.read_text("utf-8"), *_accuracy(results), "", *_training(log)]) + "\n"


def _accuracy(results: Json) -> Iterator[str]:
    side = results["sides"][0]
    facts, summary = side["facts"], side["summary"]
    yield "## How good it is"
    yield ""
    yield (
        f"Weights: {facts['weights']}; KV cache: {facts['kv_cache_dtype']}; greedy; "
        f"{facts['device']}. On {summary['overall']['accuracy']['n']} held-out tasks "
        f"({results['tasks_file']['name']}): typefaces, pairs of colours, layouts and tools that "
        "the training never showed. Measure it again with `glimt eval --quantization fp8`."
    )
    yield ""
    yield "| skill | right | of | accuracy | 95 % interval | aim |"
    yield "|---|---|---|---|---|---|"
    for skill in summary["skills"]:
        yield _row(skill["skill"], skill["accuracy"])
    yield _row("format", summary["in_format"])
    yield _row("all", summary["overall"]["accuracy"])
    missed = [name for name, share in _shares(summary) if 100 * share < AIMS[name]]
    yield ""
    yield f"Below its aim: {', '.join(missed)}." if missed else "All aims are met."


def _row(name: str, share: Json) -> str:
    aim = f"{AIMS[name]} %" if name in AIMS else "–"
    return (
        f"| {name} | {share['num']} | {share['n']} | {100 * share['share']:.1f} % "
        f"| {100 * share['low']:.1f} – {100 * share['high']:.1f} % | {aim} |"
    )


def _shares(summary: Json) -> Iterator[tuple[str, float]]:
    """What was reached, of everything that has an aim."""
    for skill in summary["skills"]:
        if skill["skill"] in AIMS:
            yield skill["skill"], skill["accuracy"]["share"]
    yield "format", summary["in_format"]["share"]


def _training(log: dict[str, list[Json]]) -> Iterator[str]:
    steps = log["steps"]
    last = steps[-1]
    seconds = [after["elapsed_s"] - before["elapsed_s"] for before, after in pairwise(steps)]
    rates = [record["samples_per_s"] for record in steps[1:]]
    samples = sum(a * b for a, b in zip(seconds, rates, strict=True))
    yield "## How it was made"
    yield ""
    yield (
        "From nothing, by `python -m training.train`, on drawn scenes with conversations about "
        f"them and no other data. The run took {last['elapsed_s'] / 60:.1f} minutes on one "
        f"GPU: {last['step']:,} steps, {samples / 1e6:.1f} million samples, last loss "
        f"{last['loss']:.3f} nats per token. Command, hardware, seed and curves are in "
        "`training/record`."
    )


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m training.card", description=__doc__)
    parser.add_argument("results", type=Path, help="results.json of glimt eval")
    parser.add_argument("--log", type=Path, required=True, help="log.jsonl of the last run")
    parser.add_argument("--out", type=Path, required=True, help="the card's file")
    options = parser.parse_args(arguments)
    try:
        results = json.loads(options.results.read_text("utf-8"))
        text = card(results, read_log(options.log))
    except (FileNotFoundError, KeyError, ValueError) as error:
        print(f"{options.results} or {options.log} cannot be used: {error!r}", file=sys.stderr)
        return 1
    options.out.write_text(text, "utf-8")
    print(options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
