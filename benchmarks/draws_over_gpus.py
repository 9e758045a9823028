"""Draws over GPUs that each have a share of the logits: all gathered, or candidates only.

    python benchmarks/draws_over_gpus.py           two GPUs
    python benchmarks/draws_over_gpus.py --gpus 4 --json draws.json

GLM-4.5V's vocabulary, random logits. Each draw is a CUDA graph, as in decode steps; microseconds.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from glimt.parallel.group import Meeting, join
from glimt.parallel.mesh import Mesh
from glimt.runner.sampler import DrawInputs, draw, prepare_draws
from glimt.runner.sampling_rows import SamplingRows
from glimt.runner.split_draw import can_split, draw_over_ranks
from glimt.wire import SamplingParams

VOCAB, ROUNDS = 151552, 50
ROWS = (1, 8, 64, 110)
WISHES: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "temperature": {"temperature": 0.8},
    "min_p": {"min_p": 0.05},
    "top_k 50": {"top_k": 50},
    "top_k 50, top_p 0.9": {"top_k": 50, "top_p": 0.9},
    "top_k 1024": {"top_k": 1024},
}


def microseconds(work: Callable[[], object]) -> float:
    """Of one replay; the ranks wait for each other in each."""
    work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        work()
    graph.replay()
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(ROUNDS):
        graph.replay()
    torch.cuda.synchronize()
    return 1e6 * (time.perf_counter() - started) / ROUNDS


def from_all(share: Tensor, history: Tensor, inputs: DrawInputs, mesh: Mesh) -> Tensor:
    """How draws are done that candidates do not suffice for."""
    outputs = draw(mesh.tp_concat(share), history, replace(inputs, first=0))
    return mesh.tp_broadcast(outputs.token_N)


def inputs_of(num_rows: int, fields: dict[str, Any], device: torch.device) -> DrawInputs:
    """All rows with the same wishes and seeds of their own."""
    rows = SamplingRows(num_rows, VOCAB)
    for row in range(num_rows):
        rows.take(row, 1, SamplingParams(max_tokens=9, seed=row, **fields))
    row_N = np.arange(num_rows)
    ones = np.ones_like(row_N)
    (inputs,) = prepare_draws(rows, row_N, ones, ones, device)
    if not can_split(inputs):
        raise ValueError(f"{fields} cannot be drawn from candidates")
    return inputs


def measure(share: Tensor, inputs: DrawInputs, mesh: Mesh) -> dict[str, float]:
    """Both ways of one draw."""
    history = torch.zeros(1, 1, dtype=torch.int32, device=share.device)

    def all_gathered() -> Tensor:
        return from_all(share, history, inputs, mesh)

    def candidates() -> Tensor:
        return draw_over_ranks(share, history, inputs, mesh).token_N

    differ = int((all_gathered() != candidates()).sum())
    times = microseconds(all_gathered), microseconds(candidates)
    return {"all_us": times[0], "candidates_us": times[1], "differ": differ}


def run(rank: int, gpus: int, folder: Path) -> list[dict[str, Any]]:
    """This rank's part; every rank measures the same."""
    device = torch.device("cuda", rank)
    torch.cuda.set_device(device)
    groups = join(Meeting(folder / "meeting-point"), rank, gpus, device, only_nccl=True)
    mesh = Mesh(gpus, rank, tp_group=groups.device)
    found: list[dict[str, Any]] = []
    for name, fields in WISHES.items():
        for num_rows in ROWS:
            generator = torch.Generator(device).manual_seed(rank)
            share = torch.randn(num_rows, VOCAB // gpus, generator=generator, device=device)
            inputs = inputs_of(num_rows, fields, device)
            row = measure((3 * share).bfloat16(), inputs, mesh)
            found.append({"wish": name, "rows": num_rows, **row})
            if rank == 0:
                print(
                    f"{name:<20}{num_rows:>5} rows   all {row['all_us']:8.1f} µs   candidates "
                    f"{row['candidates_us']:8.1f} µs   {row['differ']} tokens differ",
                    flush=True,
                )
    return found


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
        found = run(0, options.gpus, Path(folder))
        for other in others:
            other.wait()
    print(f"{options.gpus} x {torch.cuda.get_device_name()}, torch {torch.__version__}")
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
