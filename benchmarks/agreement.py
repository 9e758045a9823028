"""The same load by `vllm bench serve` and by `glimt bench serve`: do they say the same?

    python benchmarks/agreement.py --vllm VENV/bin/vllm --tokenizer FOLDER [--serve CHECKPOINT]

Without --serve, the server is the scripted one of `mock_server.py`, whose times are known. Both
clients send the same prompts at the same times, one after the other, as often as --repeats says. Of
each latency the lowest mean counts: what else runs on the machine can only add to it. Printed: a
Markdown table, and whether token totals are equal and means agree within 2 % + 1 ms.

With --wire (as root) the kernel is the witness: it stamps packets, so that a client can be compared
with what was on the wire in its own run (from the last packet of the request to the first token and
the last). What the clients add to that must then differ by no more than 2 % + 1 ms, where what they
say differs by more: the server may be slower in one run than in another. With --pin the server
has the first half of the cores and the clients have the other.
docs/benchmarking.md says how to get vLLM's client on a machine without a GPU.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from serving import served
from wire import Witness

Server = Callable[[], contextlib.AbstractContextManager[list[str]]]

HERE = Path(__file__).resolve().parent
CHAT = ["--backend", "openai-chat", "--endpoint", "/v1/chat/completions"]
TOTALS = ("completed", "failed", "total_input_tokens", "total_output_tokens")
MEANS = ("mean_ttft_ms", "mean_tpot_ms", "mean_itl_ms", "mean_e2el_ms")
CORES = len(os.sched_getaffinity(0))
PEAKS = ("max_concurrent_requests", "max_output_tokens_per_s")


def cases(arena: Path, seconds: float) -> dict[str, list[str]]:
    """Loads by name; `seconds` is about how long each takes on the mock server."""
    parquet = ["--dataset-name", "hf", "--dataset-path", str(arena), "--disable-shuffle"]
    parquet += ["--hf-name", "lmarena-ai/VisionArena-Chat"]
    text = ["--dataset-name", "random", "--random-input-len", "90", "--random-output-len", "128"]
    count = str(max(10, round(20 * seconds)))
    few = str(max(5, round(seconds / 1.4)))
    return {
        "VisionArena, 20 requests/s": [
            *CHAT,
            *parquet,
            "--num-prompts",
            count,
            "--request-rate",
            "20",
        ],
        "VisionArena, one at a time": [
            *CHAT,
            *parquet,
            "--num-prompts",
            few,
            "--max-concurrency",
            "1",
        ],
        "text, 20 requests/s, burstiness 0.5": [
            *(*CHAT, *text, "--num-prompts", count, "--request-rate", "20", "--burstiness", "0.5"),
        ],
        "text by /v1/completions, 4 at a time": [
            *("--backend", "openai", "--endpoint", "/v1/completions", *text),
            *("--num-prompts", count, "--max-concurrency", "4"),
        ],
        "thinking, 20 requests/s": [
            *(*CHAT, *text, "--num-prompts", count, "--request-rate", "20"),
            *("--extra-body", '{"script": {"reasoning_tokens": 64}}'),
        ],
    }


def server_cases(arena: Path, seconds: float, rate: float, tokens: int) -> dict[str, list[str]]:
    """Loads for a real server: fewer requests, shorter answers."""
    parquet = ["--dataset-name", "hf", "--dataset-path", str(arena), "--disable-shuffle"]
    parquet += ["--hf-output-len", str(tokens)]
    parquet += ["--hf-name", "lmarena-ai/VisionArena-Chat", "--ignore-eos"]
    text = ["--dataset-name", "random", "--random-input-len", "300"]
    text += ["--random-output-len", str(tokens)]
    count, few = str(round(rate * seconds)), str(max(10, round(rate * seconds / 2)))
    return {
        f"VisionArena, {rate:g} requests/s": [
            *(*CHAT, *parquet, "--num-prompts", count, "--request-rate", f"{rate:g}")
        ],
        "VisionArena, one at a time": [
            *CHAT,
            *parquet,
            "--num-prompts",
            few,
            "--max-concurrency",
            "1",
        ],
        f"text, {rate:g} requests/s": [
            *(*CHAT, *text, "--num-prompts", count, "--request-rate", f"{rate:g}")
        ],
        "text, one at a time": [*CHAT, *text, "--num-prompts", few, "--max-concurrency", "1"],
    }


def measure(
    command: Sequence[str], common: Sequence[str], extra: Sequence[str], *, wire: bool
) -> dict[str, Any]:
    """Run a client; its JSON result, with the server's part of TTFT if the wire is watched."""
    if not wire:
        return run_client(command, common, extra)
    port = int(common[common.index("--base-url") + 1].rsplit(":", 1)[1])
    with Witness(port) as witness:
        result = run_client(command, common, extra)
    seen = witness.exchanges(extra[extra.index("--endpoint") + 1].encode())
    if len(seen) != result["completed"] or not all(each.first_s for each in seen):
        raise SystemExit(f"{len(seen)} requests on the wire, {result['completed']} completed")
    tokens = result["total_output_tokens"] / result["completed"]
    ttft = 1e3 * statistics.mean(each.first_s - each.sent_s for each in seen)
    rest = 1e3 * statistics.mean(each.last_s - each.first_s for each in seen)
    wire = {"mean_ttft_ms": ttft, "mean_tpot_ms": rest / (tokens - 1), "mean_e2el_ms": ttft + rest}
    return result | {"wire": wire}


def run_client(
    command: Sequence[str], common: Sequence[str], extra: Sequence[str]
) -> dict[str, Any]:
    """Run a client; its JSON result."""
    with tempfile.TemporaryDirectory() as folder:
        whole = [*command, *common, *extra, "--temperature", "0", "--save-result"]
        whole += ["--percentile-metrics", "ttft,tpot,itl,e2el", "--disable-tqdm"]
        whole += ["--result-dir", folder, "--result-filename", "r.json"]
        environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
        done = subprocess.run(whole, env=environment, capture_output=True, text=True)
        file = Path(folder) / "r.json"
        if not file.exists():
            raise SystemExit(f"{' '.join(whole)}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}")
        return dict(json.loads(file.read_text()))


def best(results: Sequence[dict[str, Any]], key: str) -> float:
    """The lowest latency, or the highest rate, of the repeats."""
    values = [result[key] for result in results]
    return max(values) if key.endswith("throughput") else min(values)


def judge(theirs: Sequence[dict[str, Any]], ours: Sequence[dict[str, Any]]) -> list[str]:
    """What does not agree."""
    wrong = [
        f"{key}: {sorted({r[key] for r in theirs})} and {sorted({r[key] for r in ours})}"
        for key in TOTALS
        if {r[key] for r in theirs} != {r[key] for r in ours}
    ]
    for key in MEANS:
        a, b = best(theirs, key), best(ours, key)
        difference = abs(a - b)
        seen = "mean_tpot_ms" if key == "mean_itl_ms" else key  # of the same gaps
        if seen in ours[0].get("wire", {}):
            difference = min(difference, abs(added(theirs, seen) - added(ours, seen)))
        if difference > 0.02 * a + 1:
            wrong.append(f"{key}: {a:.2f} and {b:.2f}, by {difference:.2f} for the clients' part")
    return wrong


def added(results: Sequence[dict[str, Any]], key: str) -> float:
    """What the client says above what was on the wire, mean over runs, in ms."""
    return statistics.mean(result[key] - result["wire"][key] for result in results)


def wire_row(name: str, theirs: Sequence[dict[str, Any]], ours: Sequence[dict[str, Any]]) -> str:
    """A row of the second table: per client, what was on the wire + what the client added."""
    cells = [
        f"{statistics.mean(r['wire'][key] for r in results):.2f} + {added(results, key):.2f}"
        for key in ours[0]["wire"]
        for results in (theirs, ours)
    ]
    return f"| {name} | {' | '.join(cells)} |"


def row(name: str, theirs: Sequence[dict[str, Any]], ours: Sequence[dict[str, Any]]) -> str:
    """A row of the table: vLLM's figure, then ours."""
    pair = [(best(theirs, key), best(ours, key)) for key in MEANS]
    cells = [f"{a:.2f} · {b:.2f}" for a, b in pair]
    tokens = f"{ours[0]['total_input_tokens']:,} + {ours[0]['total_output_tokens']:,}"
    rates = f"{best(theirs, 'request_throughput'):.3f} · {best(ours, 'request_throughput'):.3f}"
    return f"| {name} | {tokens} | {rates} | {' | '.join(cells)} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vllm", required=True, help="vLLM's command")
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder with a tokenizer")
    parser.add_argument("--serve", help="a checkpoint: measure `glimt serve`, started for each run")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10, help="length of each run")
    parser.add_argument("--rate", type=float, default=2.0, help="with --serve: requests per second")
    parser.add_argument("--tokens", type=int, default=32, help="with --serve: length of answers")
    parser.add_argument("--only", nargs="*", help="words that the names of cases must have")
    parser.add_argument("--wire", action="store_true", help="take TTFT apart on the wire (root)")
    parser.add_argument("--pin", action="store_true", help="server and clients on cores apart")
    options = parser.parse_args()
    server_cores = on_cores(slice(0, CORES // 2)) if options.pin else []
    with tempfile.TemporaryDirectory() as folder:
        arena = Path(folder) / "arena"
        make = [sys.executable, str(HERE / "make_parquet.py"), "--out", str(arena)]
        subprocess.run([*make, "--tokenizer", str(options.tokenizer)], check=True)
        if options.serve is None:
            chosen = cases(arena, options.seconds)
            return compare(options, chosen, lambda: scripted(server_cores))
        chosen = server_cases(arena, options.seconds, options.rate, options.tokens)
        return compare(options, chosen, lambda: fresh(options.serve, server_cores, Path(folder)))


def on_cores(which: slice) -> list[str]:
    """What to put before a command so that it runs on some of the cores."""
    cores = sorted(os.sched_getaffinity(0))[which]
    return ["taskset", "-c", ",".join(map(str, cores))]


@contextlib.contextmanager
def scripted(cores: Sequence[str]) -> Iterator[list[str]]:
    """The scripted server; the options that lead to it."""
    command = [*cores, sys.executable, str(HERE / "mock_server.py")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        url = process.stdout.readline().strip() if process.stdout else ""
        yield ["--base-url", url, "--model", "mock-model"]
    finally:
        process.terminate()
        process.wait()


@contextlib.contextmanager
def fresh(model: str, cores: Sequence[str], folder: Path) -> Iterator[list[str]]:
    """`glimt serve`, with nothing in its caches; the options that lead to it."""
    wish = ["--served-model-name", "tiny"]
    with served(model, *wish, log=folder / "server.log", before=cores) as (url, name):
        yield ["--base-url", url, "--model", name]


def compare(options: argparse.Namespace, chosen: dict[str, list[str]], server: Server) -> int:
    """Run all cases; 1 if one does not agree."""
    heads = ("load", "tokens in + out", "req/s", "TTFT", "TPOT", "ITL", "E2EL")
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}", flush=True)
    failures, on_wire = [], []
    client = on_cores(slice(CORES // 2, None)) if options.pin else []
    tokenizer = ["--tokenizer", str(options.tokenizer)]
    ours_command = [sys.executable, "-m", "glimt", "bench", "serve", "--vllm-compat"]
    for name, extra in chosen.items():
        if options.only and not any(word in name for word in options.only):
            continue
        theirs: list[dict[str, Any]] = []
        ours: list[dict[str, Any]] = []
        sides = [([options.vllm, "bench", "serve"], theirs), (ours_command, ours)]
        for _ in range(options.repeats):
            for command, results in sides:
                with server() as target:
                    whole = [*client, *command, *tokenizer]
                    results.append(measure(whole, target, extra, wire=options.wire))
            sides.reverse()  # so that whoever is first has no advantage
        print(row(name, theirs, ours), flush=True)
        failures += [f"{name}: {wrong}" for wrong in judge(theirs, ours)]
        if options.wire:
            on_wire.append(wire_row(name, theirs, ours))
        for key in PEAKS:
            pair = [sorted({r[key] for r in side}) for side in (theirs, ours)]
            print(f"    {key}: {pair[0]} and {pair[1]}", file=sys.stderr)
    if options.wire:
        heads = tuple(
            f"{key} {who}" for key in ("TTFT", "TPOT", "E2EL") for who in ("vLLM", "Glimt")
        )
        print(f"\n| on the wire + added | {' | '.join(heads)} |\n|{'---|' * 7}")
        print("\n".join(on_wire))
    for failure in failures:
        print(f"DIFFERS: {failure}", file=sys.stderr)
    print("all agree" if not failures else f"{len(failures)} differ", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
