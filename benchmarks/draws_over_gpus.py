"""Draws over GPUs that each have a share of the logits: all gathered, or split.

    python benchmarks/draws_over_gpus.py           two GPUs, within 40 s
    python benchmarks/draws_over_gpus.py --gpus 4 --json draws.json
    python benchmarks/draws_over_gpus.py --device cpu --rows 1 --rounds 1       whether it runs

GLM-4.5V's vocabulary, random logits. Each draw is a CUDA graph, as in decode steps; microseconds.
Split draws exchange candidates; those by top_p alone look for their cut together. In earnest GPUs
do so from as many rows on as `SPLIT_FROM` and `CUT_TOGETHER_FROM` of glimt/kernels/draws.py say.
"""

import argparse
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from ranks import Seat, add_arguments, run_ranks
from torch import Tensor

from glimt.kernels import draws
from glimt.parallel.group import join
from glimt.parallel.mesh import Mesh
from glimt.runner.sampler import DrawInputs, draw, prepare_draws
from glimt.runner.sampling_rows import SamplingRows
from glimt.runner.split_draw import can_split, draw_over_ranks
from glimt.wire import SamplingParams

VOCAB = 151552
ROWS = (1, 64, 8, 110)  # the time may be up before the last
WISHES: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "temperature": {"temperature": 0.8},
    "min_p": {"min_p": 0.05},
    "top_k 50": {"top_k": 50},
    "top_k 50, top_p 0.9": {"top_k": 50, "top_p": 0.9},
    "top_k 1024": {"top_k": 1024},
    "top_p 0.9": {"top_p": 0.9},
    "top_p 0.9, min_p 0.01": {"top_p": 0.9, "min_p": 0.01},
}


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
    if not can_split(inputs, device):
        raise ValueError(f"{fields} cannot be drawn from shares")
    return inputs


def measure(share: Tensor, inputs: DrawInputs, mesh: Mesh, seat: Seat, rounds: int) -> Any:
    """Both ways of one draw."""
    history = torch.zeros(1, 1, dtype=torch.int32, device=share.device)

    def all_gathered() -> Tensor:
        return from_all(share, history, inputs, mesh)

    def split() -> Tensor:
        return draw_over_ranks(share, history, inputs, mesh).token_N

    differ = int((all_gathered() != split()).sum())
    times = [seat.microseconds(way, 1, rounds) for way in (all_gathered, split)]
    return {"all_us": times[0], "split_us": times[1], "differ": differ}


def measure_all(seat: Seat, options: argparse.Namespace) -> None:
    """This rank's part; every rank measures the same."""
    draws.SPLIT_FROM = draws.CUT_TOGETHER_FROM = 1
    groups = join(seat.meeting(), seat.rank, seat.size, seat.device, only_nccl=True)
    mesh = Mesh(seat.size, seat.rank, tp_group=groups.device)
    for num_rows in options.rows:
        for name, fields in WISHES.items():
            if not seat.goes_on(groups.host):
                return
            generator = torch.Generator(seat.device).manual_seed(seat.rank)
            shape = num_rows, VOCAB // seat.size
            share = 3 * torch.randn(*shape, generator=generator, device=seat.device)
            inputs = inputs_of(num_rows, fields, seat.device)
            row = measure(share.bfloat16(), inputs, mesh, seat, options.rounds)
            line = (
                f"{name:<22}{num_rows:>5} rows   all {row['all_us']:8.1f} µs   split "
                f"{row['split_us']:8.1f} µs   {row['differ']} tokens differ"
            )
            seat.keep({"wish": name, "rows": num_rows, **row}, line)


def main() -> int:
    """Start the other ranks, be rank 0."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser)
    parser.add_argument("--rows", type=int, nargs="*", default=ROWS)
    parser.add_argument("--rounds", type=int, default=50)
    options = parser.parse_args()
    return run_ranks(options, lambda seat: measure_all(seat, options))


if __name__ == "__main__":
    sys.exit(main())
