"""Rows to experts of other replicas and back, by size: all-gather against all-to-all.

    python benchmarks/expert_exchange.py                     two GPUs, GLM-4.5V in FP8; 40 s
    python benchmarks/expert_exchange.py --gpus 4 --json exchange.json
    python benchmarks/expert_exchange.py --model tiny --device cpu --rows 1 8      whether it runs

For each number of rows of a replica: the exchange alone (nothing is computed), by both ways, and by
all-gather in a CUDA graph, as decode steps do it; the layer in such a graph, with the shared expert
beside the exchange and in turn; then the layer by both ways, and with all experts on each GPU,
which exchanges nothing and reads more. First, both ways are compared with that layer: what differs
by more than rounding ends the program with status 1. At the end stand what `DEALS_FROM` of
glimt/parallel/exchange.py should say, as far as the time has sufficed, and a file for
`glimt plan --constants`.
"""

import argparse
import copy
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from model_sizes import MODELS
from ranks import Seat, add_arguments, run_ranks
from torch import Tensor, nn

from glimt.kernels import QuantizedRows, quantize_rows
from glimt.kernels.reference_messages import RowForm
from glimt.layers.dispatch import shared_experts
from glimt.layers.moe import Moe, Routing
from glimt.models.dummy import fill_dummy
from glimt.parallel.beside import Beside
from glimt.parallel.exchange import Exchange
from glimt.parallel.group import join_replicas
from glimt.parallel.mesh import Mesh

ROUNDS = 20
IN_GRAPH = 16
ROWS = (1, 64, 8, 512, 2048, 128, 8192, 1024, 32, 256, 4096)  # the time may be up before the last


TINY = {
    "hidden_size": 64,
    "moe_intermediate_size": 32,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
}


def make_layer(sizes: dict[str, Any], mesh: Mesh, *, fp8: bool) -> Moe:
    """A mixture without weights."""
    routing = Routing(sizes["n_routed_experts"], sizes["num_experts_per_tok"], 1, 1, True, 1.0)
    width = sizes["moe_intermediate_size"]
    names = frozenset({"experts", "shared.gate_up", "shared.down"} if fp8 else ())
    with torch.device("meta"):
        return Moe(sizes["hidden_size"], width, width, routing, mesh=mesh, fp8=names)


def take_share(part: Moe, whole: Moe) -> None:
    """This rank's experts, and all else, of the whole layer's."""
    first, count = part.experts.first_place, part.experts.num_places
    theirs = dict(whole.named_parameters())
    for name, own in list(part.named_parameters()):
        value = theirs[name]
        chosen = value[first : first + count] if name.startswith("experts.") else value
        owner, _, leaf = name.rpartition(".")
        setattr(part.get_submodule(owner), leaf, nn.Parameter(chosen, requires_grad=False))
        if own.shape != chosen.shape:
            raise SystemExit(f"{name}: {own.shape} is not {chosen.shape}")


class Rank:
    """One replica of one GPU."""

    def __init__(self, options: argparse.Namespace, seat: Seat) -> None:
        self.device, self.seat = seat.device, seat
        size, rank = seat.size, seat.rank
        groups = join_replicas(seat.meeting(), rank, size, seat.device)
        self.host = groups.host
        self.mesh = Mesh(
            dp_size=size,
            dp_rank=rank,
            ep_size=size,
            ep_rank=rank,
            dp_group=groups.device,
            dp_host_group=groups.host,
            beside=Beside(seat.device),
        )
        self.is_fp8 = options.quantization == "fp8"
        sizes = TINY if options.model == "tiny" else MODELS[options.model]["text_config"]
        dtype = torch.bfloat16 if options.device == "cuda" else torch.float32
        self.whole = make_layer(sizes, Mesh.single(), fp8=self.is_fp8)
        fill_dummy(self.whole, self.device, dtype, seed=0)
        self.part = make_layer(sizes, self.mesh, fp8=self.is_fp8)
        take_share(self.part, self.whole)
        self.in_turn = copy.copy(self.part)  # the same weights
        self.in_turn.mesh = replace(self.mesh, beside=None)
        self.num_experts, self.width = sizes["n_routed_experts"], sizes["hidden_size"]
        self.per_token = sizes["num_experts_per_tok"]

    def rows(self, count: int) -> Tensor | QuantizedRows:
        """Normed activations of this replica, quantised as the norm before leaves them."""
        generator = torch.Generator(self.device).manual_seed(100 * count + self.mesh.dp_rank)
        drawn = torch.randn(count, self.width, generator=generator, device=self.device)
        x_TD = drawn.to(self.whole.router.weight.dtype)
        return QuantizedRows(x_TD, *quantize_rows(x_TD)) if self.is_fp8 else x_TD

    @property
    def pair_bytes(self) -> int:
        """Of a row on its way to other replicas, and of its result on the way back."""
        dtype = self.whole.router.weight.dtype
        sent = torch.float8_e4m3fn if self.is_fp8 else dtype
        return RowForm(self.width, sent, self.per_token).num_bytes + self.width * dtype.itemsize

    def differs(self, count: int) -> float:
        """The largest difference of both ways from the layer with all experts, over its size."""
        x = self.rows(count)
        expected = self.whole(x).float()
        worst = 0.0
        for deals in (False, True):
            way = Exchange(count + 3, deals)
            found = self.part(x, way).float()
            if not torch.equal(found, self.in_turn(x, way).float()):
                raise SystemExit(f"{count} rows: the shared expert beside the exchange is wrong")
            worst = max(worst, float((found - expected).abs().max() / expected.abs().max()))
        return worst

    def measure(self, count: int) -> dict[str, float | None]:
        """Microseconds, the median over rounds."""
        x = self.rows(count)
        plain_TD = x.x_TI if isinstance(x, QuantizedRows) else x
        weights_TK, places_TK = self.whole.router(plain_TD)

        def nothing(rows: Tensor | QuantizedRows, weights: Tensor, places: Tensor) -> Tensor:
            computed = rows.x_TI if isinstance(rows, QuantizedRows) else rows
            return computed.new_empty(computed.shape)

        def exchange(deals: bool) -> Callable[[], object]:
            each = self.part.experts.num_places
            way = Exchange(count, deals)
            given = (x, weights_TK, places_TK, way)
            return lambda: shared_experts(self.mesh, each, nothing, *given, is_fp8=self.is_fp8)

        def in_graph(work: Callable[[], object]) -> float | None:
            if self.device.type != "cuda":
                return None
            return self.seat.microseconds(work, IN_GRAPH, ROUNDS)

        way = Exchange(count, False)
        return {
            "rows": count,
            "gather_us": self._time(exchange(False)),
            "gather_in_graph_us": in_graph(exchange(False)),
            "layer_in_graph_us": in_graph(lambda: self.part(x, way)),
            "layer_in_turn_in_graph_us": in_graph(lambda: self.in_turn(x, way)),
            "deal_us": self._time(exchange(True)),
            "layer_gather_us": self._time(lambda: self.part(x, way)),
            "layer_deal_us": self._time(lambda: self.part(x, Exchange(count, True))),
            "layer_whole_us": self._time(lambda: self.whole(x)),
        }

    def _time(self, work: Callable[[], object]) -> float:
        times = []
        for _ in range(ROUNDS):
            self.mesh.least(0)  # all begin together
            self._wait()
            started = time.perf_counter()
            work()
            self._wait()
            times.append(1e6 * (time.perf_counter() - started))
        return statistics.median(times[ROUNDS // 4 :])  # the first ones compile

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def threshold(lines: list[dict[str, float | None]]) -> int | None:
    """Rows from which dealing out stays ahead, by the whole layer; None if it never does."""
    found = None
    for line in sorted(lines, key=lambda line: -(line["rows"] or 0)):
        gather, deal = line["layer_gather_us"], line["layer_deal_us"]
        if gather is None or deal is None or deal >= gather:
            break
        found = line["rows"]
    return None if found is None else int(found)


def _num_rows(line: dict[str, float | None]) -> float:
    return line["rows"] or 0.0


def as_constants(lines: list[dict[str, float | None]], gpus: int, pair_bytes: int) -> str:
    """What `glimt plan --constants` reads: of each collective half of the exchange's time and of
    the bytes that reach a GPU, `pair_bytes` for each row of the others, there and back."""
    points = []
    for line in lines:
        both_us = line["gather_in_graph_us"] or line["gather_us"] or 0.0
        num_bytes = (gpus - 1) * (line["rows"] or 0) * pair_bytes / 2
        points.append(f"[{num_bytes:.0f}, {both_us / 2 / 1e6:.3g}]")
    note = f"over {gpus} GPUs: python benchmarks/expert_exchange.py --gpus {gpus}"
    return f'[exchange]\nsource = "measured"\nnote = "{note}"\npoints = [{", ".join(points)}]\n'


@torch.inference_mode()
def measure(seat: Seat, options: argparse.Namespace) -> None:
    """This rank's part."""
    rank = Rank(options, seat)
    limit = 2e-2 if options.device == "cuda" else 1e-4
    for count in (0, 1, 5, 300 if options.device == "cuda" else 9):
        worst = rank.differs(count) if count else 0.0
        if not count:  # a replica without rows takes part
            for deals in (False, True):
                rank.part.take_part(Exchange(4, deals))
        if worst > limit:
            raise SystemExit(f"{count} rows: results differ by {worst:.1e}, more than {limit:.0e}")
    for count in options.rows:
        if not seat.goes_on(rank.host):
            break
        line = rank.measure(count)
        shown = [f"{name} {value:10.1f}" for name, value in line.items() if value]
        seat.keep(line, "   ".join(shown))
    if seat.rank == 0:
        found = threshold(seat.rows)
        print(f"DEALS_FROM, for {seat.size} replicas: {found or 'nothing'}")
        print(as_constants(sorted(seat.rows, key=_num_rows), seat.size, rank.pair_bytes), end="")


def main() -> int:
    """Start the other ranks, be rank 0."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser)
    parser.add_argument("--model", choices=["106b", "tiny"], default="106b")
    parser.add_argument("--quantization", choices=["fp8", "none"], default="fp8")
    parser.add_argument("--rows", type=int, nargs="*", default=ROWS, help="of each replica")
    options = parser.parse_args()
    return run_ranks(options, lambda seat: measure(seat, options))


if __name__ == "__main__":
    sys.exit(main())
