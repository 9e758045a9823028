"""The same load by `vllm bench serve` and by `glimt bench serve`: do they say the same?

    python -m benchmarks.agreement --vllm VENV/bin/python [--minutes 8] [--wire]

Both clients send the same prompts at the same times to the same server: the scripted one of
`mock_server.py`, whose times are known, and `glimt serve` with the built-in model (or --serve).
They take turns, and so do the loads: A B, B A, A B, … in rounds over all loads until the time is
over, so that slow changes of the machine meet both alike. The server forgets between runs what it
saw, servers have the first half of the cores and clients the other, and a first short run of each
client and load does not count.

Printed: of each mean both clients' figures and the difference with its 95 % interval over pairs of
runs, in Markdown, and whether token totals are equal and means agree within 2 % + 1 ms ("✗": a
mean does not; "?": its interval holds both, so that the runs do not tell). With --wire (as root)
the kernel is the witness: it stamps packets, so that of each figure the server's part (from the
last packet of the request to the first token and the last) and the client's are told apart.
--record writes the tables into docs/benchmarking.md, which says how to get vLLM's client on a
machine without a GPU. Exits with 1 if something disagrees.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.agreement import servers, verdict
from benchmarks.agreement.clients import Client, glimt, vllm
from benchmarks.agreement.loads import Load, model_loads, scripted_loads
from benchmarks.agreement.wire import Witness
from benchmarks.run_all import machine
from glimt.builtin.model import NAME, model_folder

_SCRIPTED_SHARE = 0.35  # of the time: its answers hardly vary, so that few pairs say enough
_WARM = 2  # requests of a run that does not count
_LEAST_PAIRS = 2
BEGIN = "<!-- agreement: made by python -m benchmarks.agreement -->"
END = "<!-- end of agreement -->"


class Clients:
    """Both clients and how to look at what they do."""

    def __init__(self, sides: dict[str, Client], tokenizer: Path, *, wire: bool) -> None:
        self._sides = sides
        self._tokenizer = tokenizer
        self._wire = wire

    def warm(self, target: servers.Target, loads: Sequence[Load]) -> None:
        """Some requests of every load by each client."""
        for load in loads:
            for client in self._sides.values():
                target.forget()
                client([*target.arguments(self._tokenizer), *load.arguments(_WARM)])

    def pair(self, target: servers.Target, load: Load, *, swap: bool) -> dict[str, Any]:
        """A run of each, one after the other."""
        order = [*self._sides]
        if swap:
            order.reverse()
        return {side: self._run(side, target, load) for side in order}

    def _run(self, side: str, target: servers.Target, load: Load) -> dict[str, Any]:
        target.forget()
        arguments = [*target.arguments(self._tokenizer), *load.arguments()]
        if not self._wire:
            return self._sides[side](arguments)
        with Witness(target.port) as witness:
            result = self._sides[side](arguments)
        return result | {"wire": seen(witness, load, result)}


def seen(witness: Witness, load: Load, result: dict[str, Any]) -> dict[str, float]:
    """The same figures from the packets of the run, in ms."""
    exchanges = witness.exchanges(load.endpoint.encode())
    if len(exchanges) != result["completed"] or not all(each.first_s for each in exchanges):
        raise SystemExit(f"{len(exchanges)} requests on the wire, {result['completed']} completed")
    tokens = result["total_output_tokens"] / result["completed"]
    ttft = 1e3 * statistics.mean(each.first_s - each.sent_s for each in exchanges)
    rest = 1e3 * statistics.mean(each.last_s - each.first_s for each in exchanges)
    return {"mean_ttft_ms": ttft, "mean_tpot_ms": rest / (tokens - 1), "mean_e2el_ms": ttft + rest}


def measure(
    clients: Clients, target: servers.Target, loads: Sequence[Load], until_s: float
) -> list[verdict.Verdict]:
    """Rounds over all loads, as many as end in time."""
    clients.warm(target, loads)
    found = [verdict.Verdict(load.name, [], []) for load in loads]
    longest_s, number = 0.0, 0
    while number < _LEAST_PAIRS or time.monotonic() + longest_s < until_s:
        began_s = time.monotonic()
        for load, each in zip(loads, found, strict=True):
            pair = clients.pair(target, load, swap=number % 2 == 1)
            each.vllm.append(pair["vllm"])
            each.glimt.append(pair["glimt"])
        longest_s = max(longest_s, time.monotonic() - began_s)
        number += 1
        print(f"round {number} took {time.monotonic() - began_s:.1f} s", file=sys.stderr)
    return found


def on_cores(which: slice) -> list[str]:
    """What to put before a command so that it runs on some of the cores, in one thread each."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        return []
    names = ",".join(map(str, cores[which]))
    return ["env", f"OMP_NUM_THREADS={max(1, len(cores) // 2)}", "taskset", "-c", names]


def circumstances(python: Path) -> str:
    """vLLM's version, the machine, and what else ran on it before."""
    ask = "import importlib.metadata as m; print(m.version('vllm'))"
    version = subprocess.check_output([python, "-c", ask], text=True).strip()
    return f"vLLM {version}; {machine()}; load average before: {os.getloadavg()[0]:.1f}."


@contextlib.contextmanager
def arena(tokenizer: Path, count: int) -> Iterator[Path]:
    """A folder with `count` rows of VisionArena's look-alike in the columns of the original."""
    script = Path(__file__).resolve().parents[1] / "make_parquet.py"
    with tempfile.TemporaryDirectory() as folder:
        make = [sys.executable, str(script), "--out", folder, "--tokenizer", str(tokenizer)]
        make += ["--num-prompts", str(count)]
        subprocess.run(make, check=True, stdout=subprocess.DEVNULL)
        yield Path(folder)


def run(options: argparse.Namespace) -> list[tuple[str, list[verdict.Verdict]]]:
    """Both servers, one after the other: (which, what was found)."""
    began_s, half = time.monotonic(), len(os.sched_getaffinity(0)) // 2
    serving, asking = on_cores(slice(0, half)), on_cores(slice(half, None))
    options.out.mkdir(parents=True, exist_ok=True)
    folder = model_folder() if options.serve is None else options.serve
    end_s = began_s + 60 * options.minutes
    found = []
    with (
        arena(folder, round(20 * max(options.seconds))) as pictures,
        vllm(options.vllm, asking, options.out / "vllm.log") as theirs,
    ):
        clients = Clients({"vllm": theirs, "glimt": glimt(asking)}, folder, wire=options.wire)
        if options.only != "model":
            loads = scripted_loads(pictures, options.seconds[0])
            share = 1.0 if options.only else _SCRIPTED_SHARE
            until_s = time.monotonic() + share * (end_s - time.monotonic())
            with servers.scripted(serving) as target:
                found.append(("the scripted server", measure(clients, target, loads, until_s)))
        if options.only != "scripted":
            loads = model_loads(pictures, options.seconds[1], options.rates, options.tokens)
            name = NAME if options.serve is None else str(options.serve)
            with servers.model(name, serving, options.out / "server.log") as target:
                what = f"`glimt serve {name}`, answers of {options.tokens} tokens"
                found.append((what, measure(clients, target, loads, end_s)))
    return found


def report(found: Sequence[tuple[str, list[verdict.Verdict]]], head: str) -> tuple[str, bool]:
    """(Markdown of everything under `head`, whether all agrees)."""
    text, every = [head], []
    for name, verdicts in found:
        text += [f"Against {name}:", verdict.means_table(verdicts)]
        if verdicts[0].on_wire():
            text.append(verdict.wire_table(verdicts))
        every += verdicts
    lines, does_agree = verdict.conclusions(every)
    return "\n\n".join([*text, "\n".join(f"* {line}" for line in lines)]) + "\n", does_agree


def record(file: Path, text: str) -> None:
    """Put it between the marks of a document."""
    before, begin, rest = file.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"{file} lacks the lines {BEGIN} and {END}")
    file.write_text(f"{before}{begin}\n\n{text}{end}{after}")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--vllm", type=Path, required=True, help="the Python that has vLLM")
    parser.add_argument("--minutes", type=float, default=8, help="of all, servers' start included")
    parser.add_argument("--wire", action="store_true", help="have the kernel as witness (root)")
    parser.add_argument(
        "--only", choices=["scripted", "model"], help="one of the servers in place of both"
    )
    parser.add_argument("--serve", type=Path, help="a checkpoint in place of the built-in model")
    parser.add_argument(
        "--seconds", type=float, nargs=2, default=(1.5, 5.0), help="of a run, on either server"
    )
    parser.add_argument(
        "--rates", type=float, nargs=2, default=(0.6, 0.8), help="pictures, texts a second"
    )
    parser.add_argument("--tokens", type=int, default=24, help="of answers of the model")
    parser.add_argument("--out", type=Path, default=Path("build/agreement"))
    parser.add_argument("--record", type=Path, help="a document to put the tables into")
    options = parser.parse_args()
    head = circumstances(options.vllm)
    found = run(options)
    text, does_agree = report(found, head)
    runs = {
        server: {each.name: {"vllm": each.vllm, "glimt": each.glimt} for each in verdicts}
        for server, verdicts in found
    }
    (options.out / "runs.json").write_text(json.dumps(runs))
    (options.out / "tables.md").write_text(text)
    if options.record is not None:
        record(options.record, text)
    print(text)
    return 0 if does_agree else 1


if __name__ == "__main__":
    sys.exit(main())
