"""Sums over two or more GPUs by number of rows: NCCL, one kernel, and one kernel with the norm.

    python benchmarks/all_reduce.py                two GPUs, within 40 s
    python benchmarks/all_reduce.py --gpus 4 --json sums.json
    python benchmarks/all_reduce.py --device cpu --rows 1 8       whether it runs

A row is 4096 bfloat16 numbers, 8 KiB. A decoder block's sum is followed by residual add, norm and
quantisation: the last columns have it all. Each way is recorded into a CUDA graph of many, as
decode steps are; microseconds of one. On CPUs gloo stands for NCCL, and the others are missing.
`differ`: numbers of the fused norm that are not those of NCCL's sum and a norm of its own (another
order of adding squares rounds some last bits otherwise).
"""

import argparse
import sys
from collections.abc import Callable

import torch
from ranks import Seat, add_arguments, run_ranks
from torch import Tensor

from glimt import kernels
from glimt.kernels import QuantizedRows
from glimt.parallel.group import Groups, join
from glimt.parallel.mesh import Mesh

SUMS, ROUNDS = 64, 20
WIDTH, EPS = 4096, 1e-5
ROWS = (1, 8, 64, 128, 256, 1024, 2, 4, 16, 32)  # the time may be up before the last
COLUMNS = ("nccl_sum", "one_kernel_sum", "norm", "nccl_norm", "one_kernel_norm", "fused", "differ")


class Ways:
    """The ways to sum and norm that these ranks have; None: not so many rows."""

    def __init__(self, groups: Groups, seat: Seat) -> None:
        self.groups = groups
        self.seat = seat
        self.nccl = Mesh(seat.size, seat.rank, tp_group=groups.device)
        self.weight = torch.ones(WIDTH, dtype=torch.bfloat16, device=seat.device)

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
            row["fused"] = self.time(lambda: self.fused(x, part))
        part = torch.zeros_like(part)
        row["norm"] = self.time(lambda: self.norm(x, part))
        row["nccl_sum"] = self.time(lambda: self.nccl.tp_sum(part))
        row["nccl_norm"] = self.time(lambda: self.norm(x, self.nccl.tp_sum(part)))
        if self.one_kernel_sum(part) is not None:

            def both() -> None:
                delta = self.one_kernel_sum(part)
                if delta is not None:
                    self.norm(x, delta)

            row["one_kernel_sum"] = self.time(lambda: self.one_kernel_sum(part))
            row["one_kernel_norm"] = self.time(both)
        return row

    def time(self, work: Callable[[], object]) -> float:
        """Microseconds of one."""
        return self.seat.microseconds(work, SUMS, ROUNDS)


def measure(seat: Seat, numbers: list[int]) -> None:
    """This rank's part; every rank measures the same."""
    groups = join(seat.meeting(), seat.rank, seat.size, seat.device, width=WIDTH)
    ways = Ways(groups, seat)
    if seat.rank == 0:
        print("  rows" + "".join(f"{name:>16}" for name in COLUMNS))
    for num_rows in numbers:
        if not seat.goes_on(groups.host):
            return
        generator = torch.Generator(seat.device).manual_seed(seat.rank)
        drawn = torch.randn(2, num_rows, WIDTH, generator=generator, device=seat.device)
        x, part = drawn.bfloat16()
        row = ways.measure(ways.nccl.tp_broadcast(x.contiguous()), part.contiguous())
        cells = ("–" if row[name] is None else f"{row[name]:.1f}" for name in COLUMNS)
        line = f"{num_rows:>6}" + "".join(f"{cell:>16}" for cell in cells)
        seat.keep({"rows": num_rows, **row}, line)


def main() -> int:
    """Start the other ranks, be rank 0."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser)
    parser.add_argument("--rows", type=int, nargs="*", default=ROWS)
    options = parser.parse_args()
    return run_ranks(options, lambda seat: measure(seat, options.rows))


if __name__ == "__main__":
    sys.exit(main())
