"""What FP8 costs the built-in model: runs `glimt eval` twice and writes docs/fp8-cost.md.

    python tools/measure_fp8.py                 (make fp8-cost)

BF16 weights against FP8 weights and activations, and the plain KV cache against the FP8 one, on
the held-out tasks. Everything in the document comes from the two results.json.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
DOCUMENT = ROOT / "docs" / "fp8-cost.md"
RUNS = {
    "FP8 weights and activations": ("weights", ["--against-quantization", "fp8"]),
    "FP8 KV cache": ("kv", ["--against-kv-cache-dtype", "fp8"]),
}

Json = dict[str, Any]


def measure(folder: Path, flags: list[str]) -> Json:
    """One comparison; its results.json."""
    command = [sys.executable, "-m", "glimt", "eval", *flags, "--output", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True)
    results: Json = json.loads((folder / "results.json").read_text("utf-8"))
    return results


def document(runs: dict[str, Json], more: list[str]) -> str:
    """The page. `more`: arguments beside the defaults."""
    return "\n".join([*_head(runs, more), *_accuracy(runs), "", *_likeness(runs)]) + "\n"


def _head(runs: dict[str, Json], more: list[str]) -> Iterator[str]:
    first = next(iter(runs.values()))
    facts, tasks = first["sides"][0]["facts"], first["tasks_file"]
    yield "# What FP8 costs the built-in model"
    yield ""
    yield "Made by `make fp8-cost`" + (f" with `{' '.join(more)}`" if more else "") + ":"
    yield (
        f"{first['comparison']['overall']['n']} tasks of {tasks['name']} (SHA-256 "
        f"`{tasks['sha256'][:16]}`), greedy, on {_machine(facts)}, torch {facts['torch']}, "
        f"computing in {facts['dtype']}. A is the model as it is shipped ({facts['weights']}),"
    )
    yield "B the same in FP8. Differences are B - A with a paired 95 % interval; see"
    yield "[evaluating](evaluation.md) for the terms."
    yield ""


def _machine(facts: Json) -> str:
    cores = len(os.sched_getaffinity(0))
    return facts["device"] if facts["device"] != "cpu" else f"{cores} cores ({platform.machine()})"


def _accuracy(runs: dict[str, Json]) -> Iterator[str]:
    yield "| skill | n | A | " + " | ".join(f"B - A: {name}" for name in runs) + " |"
    yield "|---|---|---|" + "---|" * len(runs)
    comparisons = [run["comparison"] for run in runs.values()]
    for rows in zip(*([*each["skills"], each["overall"]] for each in comparisons), strict=True):
        first = rows[0]
        cells = [
            f"{100 * row['difference']:+.1f} % ({100 * row['interval'][0]:+.1f} – "
            f"{100 * row['interval'][1]:+.1f})"
            for row in rows
        ]
        head = f"| {first['skill']} | {first['n']} | {100 * first['accuracy_a']:.1f} % | "
        yield head + " | ".join(cells) + " |"


def _likeness(runs: dict[str, Json]) -> Iterator[str]:
    yield "| | " + " | ".join(runs) + " |"
    yield "|---|" + "---|" * len(runs)
    comparisons = [run["comparison"] for run in runs.values()]
    for name, cell in (
        ("only A right / only B right", _discordant),
        ("McNemar's p", lambda each: f"{each['overall']['p_value']:.3f}"),
        ("the same answer to the letter", lambda each: _percent(each["same_answer"]["share"])),
        ("KL(A ‖ B), mean", lambda each: f"{each['divergence']['mean_kl']:.2e} nats"),
        ("KL(A ‖ B), quantiles", _quantiles),
        ("top-1 agreement", lambda each: _percent(each["divergence"]["same_top"]["share"])),
        ("perplexity, B / A", lambda each: f"{each['divergence']['perplexity_ratio']:.5f}"),
        ("tokens compared", lambda each: f"{each['divergence']['num_places']:,}"),
    ):
        yield f"| {name} | " + " | ".join(cell(each) for each in comparisons) + " |"


def _discordant(comparison: Json) -> str:
    return f"{comparison['overall']['only_a']} / {comparison['overall']['only_b']}"


def _quantiles(comparison: Json) -> str:
    quantiles = comparison["divergence"]["kl_quantiles"].items()
    return ", ".join(f"{name} {value:.1e}" for name, value in quantiles)


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def main() -> None:
    """Command line; arguments it does not know go to `glimt eval`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=DOCUMENT)
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "fp8-cost")
    options, more = parser.parse_known_args()
    runs = {
        name: measure(options.work / folder, [*flags, *more])
        for name, (folder, flags) in RUNS.items()
    }
    options.out.write_text(document(runs, more), "utf-8")
    print(f"written: {options.out}")


if __name__ == "__main__":
    main()
