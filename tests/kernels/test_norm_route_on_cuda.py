"""The norm and router of one token in one launch, on a GPU at the sizes of the 106B models.

Who comes last chooses: each test repeats what a race would break only now and then.
"""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from glimt import kernels
from glimt.kernels.pending import LinearParts
from tests.support.poison import poisoned_allocations

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

RULE = {
    "num_experts_per_token": 8,
    "num_groups": 1,
    "num_groups_per_token": 1,
    "norm_topk_prob": True,
    "scale": 1.5,
}
Row = tuple[Tensor, LinearParts]
Routed = tuple[Tensor, ...]


@pytest.fixture(autouse=True)
def poison() -> Iterator[None]:
    with poisoned_allocations():
        yield


class Layer:
    """A norm and a router's matrix and bias, and its memory for arrivals."""

    def __init__(self, num_experts: int, width: int, seed: int = 0) -> None:
        self.generator = torch.Generator("cuda").manual_seed(seed)
        self.width = width
        self.norm = self.randn(width)
        self.router = self.randn(num_experts, width) / 64
        self.bias = self.randn(num_experts).float() / 10
        self.arrived = torch.zeros(1, dtype=torch.int32, device="cuda")

    def randn(self, *shape: int) -> Tensor:
        drawn = torch.randn(shape, generator=self.generator, device="cuda")
        return drawn.bfloat16()

    def row(self) -> Row:
        """A token's row, and what an O product in four parts leaves to a norm."""
        parts = self.randn(4, 1, self.width).float()
        scales = (self.randn(1, 1).float(), self.randn(self.width).float())
        return self.randn(1, self.width), LinearParts(parts, *scales)

    def at_once(self, x: Tensor, delta: LinearParts) -> Routed:
        given = (x, delta, self.norm, 1e-5, self.router, self.bias, self.arrived)
        done = kernels.norm_and_route(*given, quantizes=True, **RULE)
        assert done is not None
        rows, total, chosen = done
        return rows.x_TI, rows.q_TI.view(torch.uint8), rows.scale_T1, total, *chosen

    def one_by_one(self, x: Tensor, delta: LinearParts) -> Routed:
        rows, total = kernels.add_rms_norm_quantize(x, delta, self.norm, 1e-5)
        chosen = kernels.route(rows.x_TI, self.router, self.bias, **RULE)
        return rows.x_TI, rows.q_TI.view(torch.uint8), rows.scale_T1, total, *chosen


def same(got: Routed, wanted: Routed) -> None:
    for one, other in zip(got, wanted, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(("num_experts", "width"), [(128, 4096), (160, 4080)])
def test_replays_and_launches_give_the_bits_of_three_launches(num_experts: int, width: int) -> None:
    layer = Layer(num_experts, width)
    x, delta = layer.row()
    layer.at_once(x, delta)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outs = [layer.at_once(x, delta) for _ in range(2)]
    for number in range(1000):
        x.copy_(layer.randn(1, width))
        for tensor in [tensor for out in outs for tensor in out]:
            tensor.fill_(0)
        graph.replay()
        wanted = layer.one_by_one(x, delta)
        for out in outs:
            same(out, wanted)
        if number % 7 == 0:
            same(layer.at_once(x, delta), wanted)
    assert not layer.arrived.any()


def test_routers_on_two_streams_do_not_disturb_each_other() -> None:
    layers = [Layer(128, 4096, seed) for seed in range(2)]
    rows = [[layer.row() for _ in range(200)] for layer in layers]
    wanted = [[a.one_by_one(*row) for row in own] for a, own in zip(layers, rows, strict=True)]
    streams = [torch.cuda.Stream() for _ in layers]
    torch.cuda.synchronize()
    got: list[list[Routed]] = [[], []]
    for number in range(200):
        for which, stream in enumerate(streams):
            with torch.cuda.stream(stream):
                got[which].append(layers[which].at_once(*rows[which][number]))
    torch.cuda.synchronize()
    for ours, theirs in zip(got, wanted, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            same(one, other)
