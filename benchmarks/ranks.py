"""Runs a benchmark as several ranks of one machine, within a time, and keeps what it finds.

    add_arguments(parser)                    --gpus, --device, --json, --seconds
    sys.exit(run_ranks(options, measure))    measure(seat) runs on every rank

This process is rank 0; the others are started by its own command line and end with it. Ranks
that wait for each other stop together: before each measurement all ask `seat.goes_on()`. Should one
hang all the same, every rank shows where it is and ends a few seconds after its time. The file of
`--json` is written anew with each result, so what was found before that is not lost.
"""

import argparse
import faulthandler
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch.distributed import ProcessGroup, ReduceOp

from glimt.parallel.group import Meeting, dist
from glimt.processes.children import end_with_parent

GRACE_S = 8.0  # from the end of the time to the end of a rank that hangs


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What all benchmarks of ranks can be told."""
    parser.add_argument("--gpus", type=int, default=2, help="ranks; with --device cpu, processes")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--json", type=Path, help="file for the results, written as they come")
    parser.add_argument("--seconds", type=float, default=30.0, help="begin nothing new after them")
    parser.add_argument("--rank", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)


@dataclass
class Seat:
    """One rank's place, time and results."""

    rank: int
    size: int
    device: torch.device
    folder: Path
    json: Path | None
    ends_s: float
    rows: list[dict[str, Any]] = field(default_factory=list)
    is_complete: bool = True

    @property
    def where(self) -> str:
        """The device's name, for people."""
        return torch.cuda.get_device_name() if self.device.type == "cuda" else "CPU"

    def meeting(self, name: str = "ranks") -> Meeting:
        """Where the ranks of a group meet; each group has a name of its own."""
        return Meeting(self.folder / name)

    def goes_on(self, host: ProcessGroup) -> bool:
        """Whether all ranks of the gloo group `host` have time left; the same answer on all."""
        has_time = torch.tensor([int(time.monotonic() < self.ends_s)])
        options = dist.AllreduceOptions()
        options.reduceOp = ReduceOp.MIN
        host.allreduce([has_time], options).wait()
        self.is_complete = bool(has_time.item())
        return self.is_complete

    def keep(self, row: dict[str, Any], line: str) -> None:
        """Note a result, and print `line`, on rank 0."""
        self.rows.append(row)
        if self.rank == 0:
            print(line, flush=True)
            self.write()

    def write(self, **more: Any) -> None:
        """All results so far, and `more`, into the file that was asked for."""
        if self.rank or self.json is None:
            return
        about = {"gpus": self.size, "device": self.where, "torch": torch.__version__}
        about |= {"is_complete": self.is_complete, **more, "rows": self.rows}
        part = self.json.with_suffix(".part")
        part.write_text(json.dumps(about, indent=1))
        part.replace(self.json)

    def microseconds(self, work: Callable[[], object], repeats: int, rounds: int) -> float:
        """Of one piece of work: on a GPU in a graph of `repeats`, as decode steps have it."""
        work()
        if self.device.type != "cuda":
            started = time.perf_counter()
            for _ in range(rounds):
                work()
            return 1e6 * (time.perf_counter() - started) / rounds
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            for _ in range(repeats):
                work()
        graph.replay()
        torch.cuda.synchronize()
        started = time.perf_counter()
        for _ in range(rounds):
            graph.replay()
        torch.cuda.synchronize()
        return 1e6 * (time.perf_counter() - started) / rounds / repeats


def run_ranks(options: argparse.Namespace, measure: Callable[[Seat], None]) -> NoReturn:
    """Run `measure` on all ranks, and end the process: with status 0 if all went well.

    A group of ranks, taken apart in order, takes long and may wait for ever for ranks that have
    ended.
    """
    if options.folder is not None:
        end_with_parent()
        measure(_seat(options, options.folder))
        os._exit(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        command = [sys.executable, *sys.argv, "--folder", name]
        others = [
            subprocess.Popen([*command, "--rank", str(rank)]) for rank in range(1, options.gpus)
        ]
        try:
            seat = _seat(options, folder)
            measure(seat)
            statuses = [other.wait(GRACE_S) for other in others]
        finally:
            for other in others:
                other.kill()
    seat.write()
    faulthandler.cancel_dump_traceback_later()
    print(f"{options.gpus} x {seat.where}, torch {torch.__version__}", end="")
    print("" if seat.is_complete else "; the time was up before the end", flush=True)
    os._exit(max(map(abs, statuses), default=0))


def _seat(options: argparse.Namespace, folder: Path) -> Seat:
    device = torch.device("cpu")
    if options.device == "cuda":
        device = torch.device("cuda", options.rank)
        torch.cuda.set_device(device)
    torch.set_num_threads(1)  # of one rank among several on the same cores
    faulthandler.dump_traceback_later(options.seconds + GRACE_S, exit=True)
    ends_s = time.monotonic() + options.seconds
    return Seat(options.rank, options.gpus, device, folder, options.json, ends_s)
