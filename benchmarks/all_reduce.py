"""Sums over two or more GPUs by size: NCCL against one kernel over symmetric memory.

    python benchmarks/all_reduce.py                two GPUs
    python benchmarks/all_reduce.py --gpus 4 --json sums.json

Each is recorded into a CUDA graph of many sums, as decode steps are; microseconds of one.
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

from glimt.parallel.group import Meeting, join
from glimt.parallel.mesh import Mesh

SUMS, ROUNDS = 64, 20


def microseconds(sum_up: Callable[[Tensor], object], part: Tensor) -> float:
    """Of one sum, in a replayed graph."""
    sum_up(part)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        for _ in range(SUMS):
            sum_up(part)
    graph.replay()
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(ROUNDS):
        graph.replay()
    torch.cuda.synchronize()
    return 1e6 * (time.perf_counter() - started) / ROUNDS / SUMS


def run(rank: int, gpus: int, folder: Path) -> list[dict[str, float | None]]:
    """This rank's part; every rank measures the same."""
    device = torch.device("cuda", rank)
    torch.cuda.set_device(device)
    groups = join(Meeting(folder / "meeting-point"), rank, gpus, device)
    nccl = Mesh(gpus, rank, tp_group=groups.device)
    rows: list[dict[str, float | None]] = []
    for num_bytes in (8192 << power for power in range(12)):
        part = torch.zeros(num_bytes // 2, dtype=torch.bfloat16, device=device)
        one_kernel = None
        if groups.small_sums is not None and groups.small_sums.sum(part) is not None:
            one_kernel = microseconds(groups.small_sums.sum, part)
        by_nccl = microseconds(nccl.tp_sum, part)
        rows.append({"bytes": num_bytes, "nccl_us": by_nccl, "one_kernel_us": one_kernel})
        if rank == 0:
            shown = "–" if one_kernel is None else f"{one_kernel:.1f}"
            print(f"{num_bytes:>10,} bytes   NCCL {by_nccl:8.1f} µs   one kernel {shown:>8} µs")
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
