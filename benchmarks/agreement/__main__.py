"""The same load by `vllm bench serve` and by `glimt bench serve`: do they say the same?

    python -m benchmarks.agreement --vllm VENV/bin/python [--minutes 8] [--wire]

Both clients send the same prompts at the same times to the same server: the scripted one of
`mock_server.py`, whose times are known, and `glimt serve` with the built-in model (or --serve).
They take turns, A B B A and then B A A B, and so do the loads, in rounds over all of them until the
time is over, so that slow changes of the machine meet both alike. The server forgets between runs
what it saw, servers have the first half of the cores and clients the other, and a first short run
of each client and load does not count. Loads of the model are one request at a time, and requests
at fixed gaps that are wide enough for none to wait for another.

Printed, in Markdown: of each mean both clients' figures and the difference with its 95 % interval
over pairs of runs; how much a client differs from itself in the same rounds; and the verdict. They
agree if all intervals lie within 2 % + 1 ms and token totals are equal, they differ if one lies
beyond ("✗"), and else it is undecided ("?"): runs of the same client differ too much there. With
--wire (as root) the kernel is the witness: it stamps packets, so that of each figure the server's
part (from the last packet of the request to the first token and the last) and the client's are told
apart. --record writes the tables into docs/benchmarking.md, which says how to get vLLM's client on
a machine without a GPU. Exits with 0 if they agree, 1 if they differ, 3 if it is undecided.
"""

import argparse
import contextlib
import itertools
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

from benchmarks.agreement import loads, report, servers
from benchmarks.agreement.clients import Client, client
from benchmarks.agreement.loads import Load
from benchmarks.agreement.place import Halves, Stolen, circumstances, gpus
from benchmarks.agreement.verdict import Verdict, answer
from benchmarks.agreement.wire import Witness
from glimt.builtin.model import NAME, model_folder

_SCRIPTED_SHARE = 0.25  # of the time: its answers hardly vary, so that few pairs say enough
_WARM = 2  # requests of a run that does not count
_STATUS = {"agree": 0, "differ": 1, "undecided": 3}


class Clients:
    """Both clients and how to look at what they do."""

    def __init__(self, sides: dict[str, Client], tokenizer: Path, *, wire: bool) -> None:
        self._sides = sides
        self._tokenizer = tokenizer
        self._wire = wire

    def warm(self, target: servers.Target, offered: Sequence[Load]) -> None:
        """Some requests of every load by each client."""
        for load in offered:
            for side in self._sides:
                self._offer(side, target, load, _WARM)

    def took_s(self, target: servers.Target, kind: Load) -> float:
        """What one request of a kind takes, alone, after some that do not count."""
        lonely = loads.alone(kind, kind.count)
        self._offer("glimt", target, lonely, _WARM)
        result = self._offer("glimt", target, lonely)
        return 1e-3 * float(result["mean_e2el_ms"])

    def visit(self, target: servers.Target, load: Load, found: Verdict, *, swap: bool) -> None:
        """Two pairs of runs, A B B A, or B A A B if swapped."""
        first, second = ("glimt", "vllm") if swap else ("vllm", "glimt")
        runs: dict[str, list[dict[str, Any]]] = {"vllm": found.vllm, "glimt": found.glimt}
        for side in (first, second, second, first):
            runs[side].append(self._run(side, target, load))

    def _run(self, side: str, target: servers.Target, load: Load) -> dict[str, Any]:
        if not self._wire:
            return self._offer(side, target, load)
        with Witness(target.port) as witness:
            result = self._offer(side, target, load)
        return result | {"wire": seen(witness, load, result)}

    def _offer(
        self, side: str, target: servers.Target, load: Load, count: int | None = None
    ) -> dict[str, Any]:
        target.forget()
        return self._sides[side]([*target.arguments(self._tokenizer), *load.arguments(count)])


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
    clients: Clients, target: servers.Target, offered: Sequence[Load], until_s: float
) -> list[Verdict]:
    """Rounds over all loads, as many visits as end in time, one at least; of those visited."""
    clients.warm(target, offered)
    found = [Verdict(load.name, [], []) for load in offered]
    longest_s = 0.0
    for visit in itertools.count():
        began_s = time.monotonic()
        number, which = divmod(visit, len(offered))
        if visit and began_s + longest_s > until_s:
            break
        clients.visit(target, offered[which], found[which], swap=number % 2 == 1)
        took_s = time.monotonic() - began_s
        longest_s = max(longest_s, took_s)
        print(f"round {number + 1}, {offered[which].name}: {took_s:.1f} s", file=sys.stderr)
    if missed := [each.name for each in found if not each.vllm]:
        print(f"--minutes were over before: {', '.join(missed)}", file=sys.stderr)
    return [each for each in found if each.vllm]


@contextlib.contextmanager
def arena(tokenizer: Path, count: int) -> Iterator[Path]:
    """A folder with `count` rows of VisionArena's look-alike in the columns of the original."""
    script = Path(__file__).resolve().parents[1] / "make_parquet.py"
    with tempfile.TemporaryDirectory() as folder:
        make = [sys.executable, str(script), "--out", folder, "--tokenizer", str(tokenizer)]
        make += ["--num-prompts", str(count)]
        subprocess.run(make, check=True, stdout=subprocess.DEVNULL)
        yield Path(folder)


def chosen(offered: Sequence[Load], names: Sequence[str]) -> list[Load]:
    """Those whose names have one of these texts in them; all if there are none."""
    found = [load for load in offered if not names or any(name in load.name for name in names)]
    if not found:
        raise SystemExit(f"--loads: none of {[load.name for load in offered]} has {list(names)}")
    return found


def run(options: argparse.Namespace, halves: Halves) -> list[tuple[str, list[Verdict]]]:
    """Both servers, one after the other: (which, what was found)."""
    end_s = time.monotonic() + 60 * options.minutes
    serving, asking = halves.before(halves.serving), halves.before(halves.asking)
    folder = model_folder() if options.serve is None else options.serve
    out, found = options.out, []
    with (
        arena(folder, round(20 * max(options.seconds))) as pictures,
        client("vllm", options.vllm, asking, out / "vllm.log") as theirs,
        client("glimt", Path(sys.executable), asking, out / "glimt.log") as ours,
    ):
        clients = Clients({"vllm": theirs, "glimt": ours}, folder, wire=options.wire)
        if options.only != "model":
            offered = chosen(loads.scripted_loads(pictures, options.seconds[0]), options.loads)
            share = 1.0 if options.only else _SCRIPTED_SHARE
            until_s = time.monotonic() + share * (end_s - time.monotonic())
            with servers.scripted(serving) as target:
                found.append(("the scripted server", measure(clients, target, offered, until_s)))
        if options.only != "scripted":
            name = NAME if options.serve is None else str(options.serve)
            with servers.model(name, serving, out / "server.log") as target:
                kinds = loads.model_kinds(pictures, options.lengths, options.tokens)
                took_s = [clients.took_s(target, kind) for kind in kinds]
                offered = loads.model_loads(kinds, took_s, options.seconds[1])
                offered = chosen(offered, options.loads)
                what = f"`glimt serve {name}`, answers of {options.tokens} tokens"
                found.append((what, measure(clients, target, offered, end_s)))
    return found


def measured(options: argparse.Namespace) -> dict[str, Any]:
    """All that a report needs, as JSON has it: place, head, and runs by server and load."""
    options.out.mkdir(parents=True, exist_ok=True)
    halves = Halves.of([*os.sched_getaffinity(0)])
    head, stolen = circumstances(options.vllm, halves), Stolen()
    if options.wire and (trouble := Witness.trouble()):
        print(f"no witness: {trouble}", file=sys.stderr)
        options.wire = False
    os.sched_setaffinity(0, halves.asking)  # the witness must not disturb the server
    found = run(options, halves)
    runs = [
        [server, [{"name": each.name, "vllm": each.vllm, "glimt": each.glimt} for each in verdicts]]
        for server, verdicts in found
    ]
    place = options.place or ("gpu" if gpus() else "cpu")
    head = f"{head}; taken by the host during the runs: {stolen.share():.1%}."
    return {"place": place, "head": head, "found": runs}


def main() -> int:
    options = _options()
    if options.runs is None:
        told = measured(options)
        (options.out / "runs.json").write_text(json.dumps(told))
    else:
        told = json.loads(options.runs.read_text())
    found = [(server, [Verdict(**each) for each in runs]) for server, runs in told["found"]]
    text = report.text_of(found, told["head"])
    if options.record is not None:
        report.record(options.record, options.place or told["place"], text)
    print(text)
    return _STATUS[answer([each for _, verdicts in found for each in verdicts])]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--vllm", type=Path, help="the Python that has vLLM")
    what.add_argument("--runs", type=Path, help="tell again of runs.json, which a run has written")
    parser.add_argument("--minutes", type=float, default=8, help="of all, servers' start included")
    parser.add_argument("--wire", action="store_true", help="have the kernel as witness (root)")
    parser.add_argument(
        "--only", choices=["scripted", "model"], help="one of the servers in place of both"
    )
    parser.add_argument(
        "--loads", nargs="*", default=(), help="only those with one of these texts in their names"
    )
    parser.add_argument("--serve", type=Path, help="a checkpoint in place of the built-in model")
    parser.add_argument(
        "--seconds", type=float, nargs=2, default=(1.0, 2.5), help="of a run, on either server"
    )
    parser.add_argument(
        "--lengths", type=int, nargs="+", default=(400,), help="of texts for the model, in tokens"
    )
    parser.add_argument("--tokens", type=int, default=8, help="of answers of the model")
    parser.add_argument("--out", type=Path, default=Path("build/agreement"))
    parser.add_argument("--record", type=Path, help="a document to put the tables into")
    parser.add_argument("--place", help="which of its tables; default: gpu where there is one, cpu")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
