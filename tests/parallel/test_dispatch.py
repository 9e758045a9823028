"""Rows that go to experts of other replicas and come back: the numbers of one replica with all."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TypeVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.distributed import HashStore

from glimt import kernels
from glimt.kernels import Fp8Mlp, QuantizedRows
from glimt.layers.dispatch import shared_experts
from glimt.models.quantize import quantize_rows, row_scales
from glimt.parallel.exchange import DEALS_FROM, Exchange, exchange_of
from glimt.parallel.group import gloo
from glimt.parallel.mesh import Mesh

EXPERTS, PER_TOKEN, WIDTH, INNER = 12, 3, 32, 16
Result = TypeVar("Result")


@cache
def meshes(tp: int, dp: int) -> tuple[Mesh, ...]:
    """Of all ranks, replica by replica; made once."""
    stores = {name: HashStore() for name in (*(("tp", r) for r in range(dp)), *range(tp))}

    def join(place: int) -> Mesh:
        replica, column = divmod(place, tp)
        tp_group = gloo(stores["tp", replica], column, tp) if tp > 1 else None
        dp_group = gloo(stores[column], replica, dp)
        return Mesh(
            tp,
            column,
            dp_size=dp,
            dp_rank=replica,
            ep_size=tp * dp,
            ep_rank=place,
            tp_group=tp_group,
            host_group=tp_group,
            dp_group=dp_group,
            dp_host_group=dp_group,
        )

    with ThreadPoolExecutor(tp * dp) as pool:
        return tuple(pool.map(join, range(tp * dp)))


def on_all(tp: int, dp: int, work: Callable[[Mesh], Result]) -> list[Result]:
    with ThreadPoolExecutor(tp * dp) as pool:
        return list(pool.map(work, meshes(tp, dp)))


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def routed(num_rows: int, seed: int) -> tuple[Tensor, Tensor]:
    """Weights and distinct experts of rows; the lower experts are chosen more often."""
    generator = torch.Generator().manual_seed(seed)
    chance = torch.linspace(1, 0.02, EXPERTS).expand(max(1, num_rows), -1)
    experts_TK = torch.multinomial(chance, PER_TOKEN, generator=generator)[:num_rows]
    return torch.rand(num_rows, PER_TOKEN, generator=generator), experts_TK


GATE_UP, DOWN = random(EXPERTS, 2 * INNER, WIDTH, seed=1), random(EXPERTS, WIDTH, INNER, seed=2)


def fp8_experts(part: slice) -> Fp8Mlp:
    """Some of the experts, quantised."""
    scales = [row_scales(weight.flatten(0, 1)) for weight in (GATE_UP, DOWN)]
    values = [
        quantize_rows(weight.flatten(0, 1), scale).view(weight.shape)
        for weight, scale in zip((GATE_UP, DOWN), scales, strict=True)
    ]
    first, second = (s.view(EXPERTS, -1)[part] for s in scales)
    return Fp8Mlp(values[0][part], first, values[1][part], second)


def experts_of(mesh: Mesh, is_fp8: bool) -> Callable[..., Tensor]:
    each = EXPERTS // mesh.ep_size
    part = slice(mesh.ep_rank * each, (mesh.ep_rank + 1) * each)

    def compute(x: Tensor | QuantizedRows, weights: Tensor, places: Tensor) -> Tensor:
        places = places - part.start
        if is_fp8:
            return kernels.fp8_grouped_experts(x, weights, places, *fp8_experts(part))
        assert isinstance(x, Tensor)
        return kernels.grouped_experts(x, weights, places, GATE_UP[part], DOWN[part])

    return compute


@pytest.mark.parametrize("is_fp8", [False, True], ids=["plain", "fp8"])
@pytest.mark.parametrize(("tp", "dp"), [(1, 2), (2, 2), (1, 3)])
@settings(max_examples=12)
@given(st.data())
def test_every_way_gives_what_one_replica_with_all_experts_gives(
    tp: int, dp: int, is_fp8: bool, data: st.DataObject
) -> None:
    sizes = data.draw(st.lists(st.integers(0, 7), min_size=dp, max_size=dp))
    deals, more = data.draw(st.booleans()), data.draw(st.integers(0, 3))
    exchange = Exchange(max(sizes) + more, deals)

    def run(mesh: Mesh) -> Tensor:
        x_TD = random(sizes[mesh.dp_rank], WIDTH, seed=10 + mesh.dp_rank)
        weights, experts = routed(len(x_TD), mesh.dp_rank)
        part = shared_experts(
            mesh,
            EXPERTS // mesh.ep_size,
            experts_of(mesh, is_fp8),
            x_TD,
            weights,
            experts,
            exchange,
            is_fp8=is_fp8,
        )
        return mesh.tp_sum(part)

    results = on_all(tp, dp, run)
    for place, mesh in enumerate(meshes(tp, dp)):
        x_TD = random(sizes[mesh.dp_rank], WIDTH, seed=10 + mesh.dp_rank)
        weights, experts = routed(len(x_TD), mesh.dp_rank)
        expected = experts_of(Mesh.single(), is_fp8)(x_TD, weights, experts)
        torch.testing.assert_close(results[place], expected, atol=2e-5, rtol=1e-5)


def test_replicas_tell_each_other_numbers_and_the_least_holds_for_all() -> None:
    told = on_all(2, 2, lambda mesh: mesh.dp_tell([mesh.dp_rank, mesh.tp_rank]))
    assert told == [[[0, 0], [1, 0]], [[0, 1], [1, 1]]] * 2
    assert on_all(2, 2, lambda mesh: mesh.least(9 - mesh.ep_rank)) == [6] * 4


def test_the_way_is_chosen_by_what_was_measured_unless_it_is_given() -> None:
    assert exchange_of("alltoall", 2, 5, may_wait=True) == Exchange(5, deals=True)
    assert exchange_of("alltoall", 2, 5, may_wait=False) == Exchange(5, deals=False)
    assert exchange_of("allgather_reducescatter", 2, 5, may_wait=True) == Exchange(5, deals=False)
    for num_rows in (1, 100_000):
        expected = num_rows >= DEALS_FROM.get(2, 1 << 60)
        assert exchange_of("auto", 2, num_rows, may_wait=True).deals == expected
