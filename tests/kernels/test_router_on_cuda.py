"""The router of few tokens on a GPU at the sizes of the 106B models: one launch is as good as two.

Who comes last chooses: each test repeats what a race would break only now and then.
"""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from glimt import kernels
from glimt.kernels.pending import LinearParts
from glimt.kernels.twins import triton_norm_route, triton_router, triton_rows
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
    monkeypatch.setattr(triton_norm_route, "AT_ONCE", 16)
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


def parts_of(router: Routers, num_tokens: int) -> LinearParts:
    """What an O product in four parts leaves to a norm."""
    parts = router.rows(4 * num_tokens).float().view(4, num_tokens, router.width)
    return LinearParts(
        parts, router.randn(num_tokens, 1).float(), router.randn(router.width).float()
    )


def normed_and_routed(
    router: Routers, x: Tensor, delta: LinearParts, g: Tensor
) -> tuple[Tensor, ...]:
    given = (x, delta, g, 1e-5, router.weight, router.bias, router.arrived)
    done = kernels.norm_and_route(*given, quantizes=True, **RULE)
    assert done is not None
    rows, total, routed = done
    return rows.x_TI, rows.q_TI.view(torch.uint8), rows.scale_T1, total, *routed


def one_by_one(router: Routers, x: Tensor, delta: LinearParts, g: Tensor) -> tuple[Tensor, ...]:
    rows, total = kernels.add_rms_norm_quantize(x, delta, g, 1e-5)
    return rows.x_TI, rows.q_TI.view(torch.uint8), rows.scale_T1, total, *router.in_two(rows.x_TI)


@pytest.mark.parametrize("reads_first", [False, True])
@pytest.mark.parametrize("groups", [4, 8, 16])
@pytest.mark.parametrize(("num_tokens", "num_experts", "width"), [(1, 128, 4096), (3, 160, 4080)])
def test_a_norm_and_its_router_give_the_same_bits_in_one_launch(
    num_tokens: int,
    num_experts: int,
    width: int,
    groups: int,
    reads_first: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(triton_norm_route, "GROUPS", groups)
    monkeypatch.setattr(triton_rows, "READS_FIRST", reads_first)
    router = Routers(num_experts, width)
    x, delta, g = router.rows(num_tokens), parts_of(router, num_tokens), router.randn(width)
    normed_and_routed(router, x, delta, g)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = normed_and_routed(router, x, delta, g)
    for _ in range(1000):
        x.copy_(router.rows(num_tokens))
        for tensor in out:
            tensor.fill_(0)
        graph.replay()
        for got, wanted in zip(out, one_by_one(router, x, delta, g), strict=True):
            assert torch.equal(got, wanted)
    assert not router.arrived.any()
