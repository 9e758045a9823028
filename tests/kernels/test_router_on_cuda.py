"""The router of few tokens on a GPU at the sizes of the 106B models: one launch is as good as two.

Who comes last chooses: each test repeats what a race would break only now and then.
"""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from glimt import kernels
from glimt.kernels.twins import triton_router
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
Routed = tuple[Tensor, Tensor]


@pytest.fixture(autouse=True)
def poison(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(triton_router, "AT_ONCE", 16)
    with poisoned_allocations():
        yield


class Routers:
    """The matrix and bias of one layer's router, and its memory for arrivals."""

    def __init__(self, num_experts: int, width: int, seed: int = 0) -> None:
        self.generator = torch.Generator("cuda").manual_seed(seed)
        self.width = width
        self.weight = self.randn(num_experts, width) / 64
        self.bias = self.randn(num_experts).float() / 10
        self.arrived = torch.zeros(16, dtype=torch.int32, device="cuda")

    def randn(self, *shape: int) -> Tensor:
        drawn = torch.randn(shape, generator=self.generator, device="cuda")
        return drawn.bfloat16()

    def rows(self, num_tokens: int) -> Tensor:
        return self.randn(num_tokens, self.width)

    def at_once(self, x: Tensor) -> Routed:
        return kernels.route(x, self.weight, self.bias, self.arrived, **RULE)

    def in_two(self, x: Tensor) -> Routed:
        return kernels.route(x, self.weight, self.bias, **RULE)


def same(got: Routed, wanted: Routed) -> None:
    assert torch.equal(got[0], wanted[0])
    assert torch.equal(got[1], wanted[1])


@pytest.mark.parametrize("num_tokens", [1, 2, 3, 8, 16])
@pytest.mark.parametrize(("num_experts", "width"), [(128, 4096), (160, 5120), (9, 2064)])
def test_one_launch_gives_the_bits_of_two(num_tokens: int, num_experts: int, width: int) -> None:
    router = Routers(num_experts, width)
    for _ in range(300):
        x = router.rows(num_tokens)
        same(router.at_once(x), router.in_two(x))
    assert not router.arrived.any()


@pytest.mark.parametrize("num_tokens", [1, 8])
def test_replays_and_launches_mix(num_tokens: int) -> None:
    router = Routers(128, 4096)
    x = router.rows(num_tokens)
    router.at_once(x)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outs = [router.at_once(x) for _ in range(3)]
    for number in range(1000):
        x.copy_(router.rows(num_tokens))
        for out in outs:
            out[0].fill_(torch.nan)
            out[1].fill_(-1)
        graph.replay()
        wanted = router.in_two(x)
        for out in outs:
            same(out, wanted)
        if number % 7 == 0:
            same(router.at_once(x), wanted)


def test_routers_on_two_streams_do_not_disturb_each_other() -> None:
    routers = [Routers(128, 4096, seed) for seed in range(2)]
    rows = [[router.rows(1 + n % 8) for n in range(200)] for router in routers]
    wanted = [[r.in_two(x) for x in xs] for r, xs in zip(routers, rows, strict=True)]
    streams = [torch.cuda.Stream() for _ in routers]
    torch.cuda.synchronize()
    got: list[list[Routed]] = [[], []]
    for number in range(200):
        for which, stream in enumerate(streams):
            with torch.cuda.stream(stream):
                got[which].append(routers[which].at_once(rows[which][number]))
    torch.cuda.synchronize()
    for ours, theirs in zip(got, wanted, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            same(one, other)
