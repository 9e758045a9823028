"""Rows to experts of other replicas and back, by size: all-gather against all-to-all.

    python benchmarks/expert_exchange.py                     two GPUs, a layer of GLM-4.5V in FP8
    python benchmarks/expert_exchange.py --gpus 4 --json exchange.json
    python benchmarks/expert_exchange.py --model tiny --device cpu --rows 1 8      whether it runs

For each number of rows of a replica: the exchange alone (nothing is computed), by both ways, and by
all-gather in a CUDA graph, as decode steps do it; then the whole layer by both ways, and with all
experts on each GPU, which exchanges nothing and reads more. First, both ways are compared with that
layer: what differs by more than rounding ends the program with status 1. The last line is what
`DEALS_FROM` of glimt/parallel/exchange.py should say.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from model_sizes import MODELS
from torch import Tensor, nn

from glimt.kernels import QuantizedRows, quantize_rows
from glimt.layers.dispatch import shared_experts
from glimt.layers.moe import Moe, Routing
from glimt.models.dummy import fill_dummy
from glimt.parallel.exchange import Exchange
from glimt.parallel.group import Meeting, join_replicas
from glimt.parallel.mesh import Mesh

ROUNDS = 20
IN_GRAPH = 16


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

    def __init__(self, options: argparse.Namespace) -> None:
        self.device = torch.device("cpu")
        torch.set_num_threads(1)  # of one rank among several on the same cores
        if options.device == "cuda":
            self.device = torch.device("cuda", options.rank)
            torch.cuda.set_device(self.device)
        size, rank = options.gpus, options.rank
        meeting = Meeting(options.folder / "meeting-point")
        groups = join_replicas(meeting, rank, size, self.device)
        self.mesh = Mesh(
            dp_size=size,
            dp_rank=rank,
            ep_size=size,
            ep_rank=rank,
            dp_group=groups.device,
            dp_host_group=groups.host,
        )
        self.is_fp8 = options.quantization == "fp8"
        sizes = TINY if options.model == "tiny" else MODELS[options.model]["text_config"]
        dtype = torch.bfloat16 if options.device == "cuda" else torch.float32
        self.whole = make_layer(sizes, Mesh.single(), fp8=self.is_fp8)
        fill_dummy(self.whole, self.device, dtype, seed=0)
        self.part = make_layer(sizes, self.mesh, fp8=self.is_fp8)
        take_share(self.part, self.whole)
        self.num_experts, self.width = sizes["n_routed_experts"], sizes["hidden_size"]

    def rows(self, count: int) -> Tensor | QuantizedRows:
        """Normed activations of this replica, quantised as the norm before leaves them."""
        generator = torch.Generator(self.device).manual_seed(100 * count + self.mesh.dp_rank)
        drawn = torch.randn(count, self.width, generator=generator, device=self.device)
        x_TD = drawn.to(self.whole.router.weight.dtype)
        return QuantizedRows(x_TD, *quantize_rows(x_TD)) if self.is_fp8 else x_TD

    def differs(self, count: int) -> float:
        """The largest difference of both ways from the layer with all experts, over its size."""
        x = self.rows(count)
        expected = self.whole(x).float()
        worst = 0.0
        for deals in (False, True):
            found = self.part(x, Exchange(count + 3, deals)).float()
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

        in_graph = None
        if self.device.type == "cuda":
            in_graph = self._time(_recorded(exchange(False))) / IN_GRAPH
        return {
            "rows": count,
            "gather_us": self._time(exchange(False)),
            "gather_in_graph_us": in_graph,
            "deal_us": self._time(exchange(True)),
            "layer_gather_us": self._time(lambda: self.part(x, Exchange(count, False))),
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


def _recorded(work: Callable[[], object]) -> Callable[[], object]:
    """A graph that does it several times."""
    work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        for _ in range(IN_GRAPH):
            work()
    replay: Callable[[], object] = graph.replay
    return replay


def threshold(lines: list[dict[str, float | None]]) -> int | None:
    """Rows from which dealing out stays ahead, by the whole layer; None if it never does."""
    found = None
    for line in reversed(lines):
        gather, deal = line["layer_gather_us"], line["layer_deal_us"]
        if gather is None or deal is None or deal >= gather:
            break
        found = line["rows"]
    return None if found is None else int(found)


@torch.inference_mode()
def run(options: argparse.Namespace) -> list[dict[str, float | None]]:
    """This rank's part."""
    rank = Rank(options)
    limit = 2e-2 if options.device == "cuda" else 1e-4
    for count in (0, 1, 5, max(options.rows) // 4 + 1):
        worst = rank.differs(count) if count else 0.0
        if not count:  # a replica without rows takes part
            for deals in (False, True):
                rank.part.take_part(Exchange(4, deals))
        if worst > limit:
            raise SystemExit(f"{count} rows: results differ by {worst:.1e}, more than {limit:.0e}")
    lines = []
    for count in options.rows:
        lines.append(rank.measure(count))
        if options.rank == 0:
            shown = [f"{name} {value:10.1f}" for name, value in lines[-1].items() if value]
            print("   ".join(shown), flush=True)
    return lines


def main() -> int:
    """Start the other ranks, be rank 0."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gpus", type=int, default=2)
    parser.add_argument("--model", choices=["106b", "tiny"], default="106b")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--quantization", choices=["fp8", "none"], default="fp8")
    default = [1, 8, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192]
    parser.add_argument("--rows", type=int, nargs="*", default=default, help="of each replica")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rank", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.folder is not None:
        run(options)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, *sys.argv, "--folder", folder]
        others = [
            subprocess.Popen([*command, "--rank", str(rank)]) for rank in range(1, options.gpus)
        ]
        options.folder = Path(folder)
        try:
            lines = run(options)
            status = max(other.wait() for other in others) if others else 0
        finally:
            for other in others:
                other.kill()
    where = torch.cuda.get_device_name() if options.device == "cuda" else "CPU"
    print(f"{options.gpus} x {where}, torch {torch.__version__}")
    found = threshold(lines)
    print(f"DEALS_FROM, for {options.gpus} replicas: {found or 'nothing'}")
    if options.json:
        options.json.write_text(json.dumps(lines, indent=1))
    return status


if __name__ == "__main__":
    sys.exit(main())
