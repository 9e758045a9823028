"""What FP8 costs the built-in model: runs `glimt eval` twice and writes docs/fp8-cost.md.

    python tools/measure_fp8.py --limit 30      (make fp8-cost LIMIT=30)

BF16 weights against FP8 weights and activations, and the plain KV cache against the FP8 one, on
the held-out tasks. Everything in the document comes from the two results.json.
"""

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
import time
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


def document(runs: dict[str, Json], command: str, seconds: float) -> str:
    """The page. `command` that made it, and how long that took."""
    head = _head(runs, command, seconds)
    in_short = [_in_short(name, run["comparison"]) for name, run in runs.items()]
    return "\n".join([*head, *in_short, "", *_accuracy(runs), "", *_likeness(runs)]) + "\n"


def _head(runs: dict[str, Json], command: str, seconds: float) -> Iterator[str]:
    first = next(iter(runs.values()))
    facts, tasks = first["sides"][0]["facts"], first["tasks_file"]
    yield "# What FP8 costs the built-in model"
    yield ""
    yield (
        f"Made by `{command}` in {seconds / 60:.0f} minutes: "
        f"{first['comparison']['overall']['n']} tasks of {tasks['name']} (SHA-256 "
        f"`{tasks['sha256'][:16]}`), greedy, on {_machine(facts)}, torch {facts['torch']}, "
        f"computing in {facts['dtype']}. A is the model as it is shipped: weights in "
        f"{facts['weights']}, KV cache in {facts['kv_cache_dtype']}; B has the one or the other in "
        "FP8. Differences are B - A with a paired 95 % interval; see "
        "[evaluating](evaluation.md) for the terms. In short:"
    )
    yield ""


def _in_short(name: str, comparison: Json) -> str:
    """What the numbers say, as far as they say something."""
    overall, same = comparison["overall"], comparison["same_answer"]
    low, high = (100 * end for end in overall["interval"])
    if low > 0 or high < 0:
        verdict = f"{'a loss' if high < 0 else 'a gain'} that is more than chance"
    else:
        verdict = (
            f"no difference that {overall['n']} tasks show; a loss of more than {-low:.1f} points "
            "would be a surprise"
        )
    return (
        f"* **{name}**: {100 * overall['difference']:+.1f} points ({low:+.1f} – {high:+.1f}), "
        f"{verdict}. {_percent(same['share'])} of the answers are the same to the letter."
    )


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
    began_s = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=DOCUMENT)
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "fp8-cost")
    parser.add_argument("--limit", type=int, default=30, help="tasks of each skill")
    parser.add_argument("--dtype", default="bfloat16", help="what both compute in; A's KV cache")
    options, more = parser.parse_known_args()
    flags_of_all = ["--limit", str(options.limit), "--dtype", options.dtype, *more]
    runs = {
        name: measure(options.work / folder, [*flags, *flags_of_all])
        for name, (folder, flags) in RUNS.items()
    }
    command = f"make fp8-cost LIMIT={options.limit}"
    if more or options.dtype != "bfloat16":
        command = f"python tools/measure_fp8.py {shlex.join(flags_of_all)}"
    options.out.write_text(document(runs, command, time.monotonic() - began_s), "utf-8")
    print(f"written: {options.out}")


if __name__ == "__main__":
    main()
