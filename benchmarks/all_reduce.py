"""Sums over two or more GPUs by number of rows: NCCL, one kernel, and one kernel with the norm.

    python benchmarks/all_reduce.py                two GPUs
    python benchmarks/all_reduce.py --gpus 4 --json sums.json

A row is 4096 bfloat16 numbers, 8 KiB. A decoder block's sum is followed by residual add, norm and
quantisation: the last columns have it all. Each way is recorded into a CUDA graph of many, as
decode steps are; microseconds of one. `differ`: numbers of the fused norm that are not those of
NCCL's sum and a norm of its own (another order of adding squares rounds some last bits otherwise).
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from glimt import kernels
from glimt.kernels import QuantizedRows
from glimt.parallel.group import Groups, Meeting, join
from glimt.parallel.mesh import Mesh

SUMS, ROUNDS = 64, 20
WIDTH, EPS = 4096, 1e-5
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 1024)
COLUMNS = ("nccl_sum", "one_kernel_sum", "norm", "nccl_norm", "one_kernel_norm", "fused", "differ")


def microseconds(work: Callable[[], object]) -> float:
    """Of one piece of work, in a replayed graph."""
    work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        for _ in range(SUMS):
            work()
    graph.replay()
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(ROUNDS):
        graph.replay()
    torch.cuda.synchronize()
    return 1e6 * (time.perf_counter() - started) / ROUNDS / SUMS


class Ways:
    """The ways to sum and norm that these ranks have; None: not so many rows."""

    def __init__(self, groups: Groups, gpus: int, rank: int, weight: Tensor) -> None:
        self.groups = groups
        self.nccl = Mesh(gpus, rank, tp_group=groups.device)
        self.weight = weight

    def norm(self, x: Tensor, delta: Tensor) -> QuantizedRows:
        """What follows a sum that is not fused."""
        return kernels.add_rms_norm_quantize(x, delta, self.weight, EPS)[0]

    def one_kernel_sum(self, part: Tensor) -> Tensor | None:
        """Torch's kernel."""
        small = self.groups.small_sums
        return None if small is None else small.sum(part)

    def fused(self, x: Tensor, part: Tensor) -> QuantizedRows | None:
        """Our kernel."""
        sums = self.groups.norm_sums
        if sums is None:
            return None
        done = sums.add_rms_norm(x, part, self.weight, EPS, quantizes=True)
        return done[0] if done is not None and isinstance(done[0], QuantizedRows) else None

    def measure(self, x: Tensor, part: Tensor) -> dict[str, float | None]:
        """By column. Sums in place grow, so they are timed with zeros."""
        fused = self.fused(x, part)
        row: dict[str, float | None] = dict.fromkeys(COLUMNS)
        if fused is not None:
            expected = self.norm(x, self.nccl.tp_sum(part.clone()))
            row["differ"] = int((fused.x_TI != expected.x_TI).sum())
            row["fused"] = microseconds(lambda: self.fused(x, part))
        part = torch.zeros_like(part)
        row["norm"] = microseconds(lambda: self.norm(x, part))
        row["nccl_sum"] = microseconds(lambda: self.nccl.tp_sum(part))
        row["nccl_norm"] = microseconds(lambda: self.norm(x, self.nccl.tp_sum(part)))
        if self.one_kernel_sum(part) is not None:

            def both() -> None:
                delta = self.one_kernel_sum(part)
                if delta is not None:
                    self.norm(x, delta)

            row["one_kernel_sum"] = microseconds(lambda: self.one_kernel_sum(part))
            row["one_kernel_norm"] = microseconds(both)
        return row


def run(rank: int, gpus: int, folder: Path) -> list[dict[str, float | None]]:
    """This rank's part; every rank measures the same."""
    device = torch.device("cuda", rank)
    torch.cuda.set_device(device)
    groups = join(Meeting(folder / "meeting-point"), rank, gpus, device, width=WIDTH)
    ways = Ways(groups, gpus, rank, torch.ones(WIDTH, dtype=torch.bfloat16, device=device))
    rows: list[dict[str, float | None]] = []
    if rank == 0:
        print("  rows" + "".join(f"{name:>16}" for name in COLUMNS))
    for num_rows in ROWS:
        generator = torch.Generator(device).manual_seed(rank)
        x, part = torch.randn(2, num_rows, WIDTH, generator=generator, device=device).bfloat16()
        row = ways.measure(ways.nccl.tp_broadcast(x.contiguous()), part.contiguous())
        if rank == 0:
            cells = ("–" if row[name] is None else f"{row[name]:.1f}" for name in COLUMNS)
            print(f"{num_rows:>6}" + "".join(f"{cell:>16}" for cell in cells), flush=True)
        rows.append({"rows": num_rows, **row})
    return rows


def main() -> None:
    """Start the other ranks, be rank 0."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gpus", type=int, default=2)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rank", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.folder is not None:
        run(options.rank, options.gpus, options.folder)
        return
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--gpus", str(options.gpus), "--folder", folder]
        others = [
            subprocess.Popen([*command, "--rank", str(rank)]) for rank in range(1, options.gpus)
        ]
        rows = run(0, options.gpus, Path(folder))
        for other in others:
            other.wait()
    print(f"{options.gpus} x {torch.cuda.get_device_name()}, torch {torch.__version__}")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
