"""Images that several ranks encode together, and the choice between that and dealing them out."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from glimt.models.glm4v import Glm4v
from glimt.models.patch_shares import PatchShares
from glimt.parallel.mesh import Mesh
from glimt.runner.tower_costs import (
    SPREAD,
    TowerCosts,
    can_spread,
    deal,
    measure_costs,
    share_out,
)
from tests.support.ranks import on_ranks
from tests.support.tiny_model import CPU, tiny_model

Grids = list[tuple[int, int]]


def whole_tower(kind: str, mesh: Mesh) -> Glm4v:
    """One rank's model with all of the tower; its decoder has no weights."""
    with torch.device("meta"):
        model = Glm4v(tiny_model(kind).config, mesh)
    model.vision.load_state_dict(tiny_model(kind).vision.state_dict(), assign=True)
    return model


def images(grids: Grids, frames: list[int]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(len(grids))
    return [
        torch.randint(0, 256, (h * w, 3, f, 14, 14), dtype=torch.uint8, generator=generator)
        for (h, w), f in zip(grids, frames, strict=True)
    ]


@pytest.mark.parametrize("kind", ["glm4v", "glm4v_moe"])
@pytest.mark.parametrize(
    ("grids", "frames"),
    [
        ([(8, 6)], [1]),
        ([(2, 6)], [2]),  # three merge blocks: the second rank fills up
        ([(2, 2)], [1]),  # one: the second rank has none
        ([(4, 4), (2, 6), (6, 6)], [1, 2, 1]),
    ],
)
def test_ranks_together_give_the_embeddings_of_one(
    kind: str, grids: Grids, frames: list[int]
) -> None:
    patches = images(grids, frames)

    def encode(mesh: Mesh) -> list[Tensor]:
        with torch.inference_mode():
            return whole_tower(kind, mesh).encode_images(patches, grids, spread=True)

    with torch.inference_mode():
        expected = tiny_model(kind).encode_images(patches, grids)
    for together in on_ranks(2, encode):
        assert [len(image) for image in together] == [h * w // 4 for h, w in grids]
        for ours, theirs in zip(together, expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@given(
    lengths=st.lists(st.integers(1, 9).map(lambda blocks: 4 * blocks), min_size=1, max_size=5),
    num_ranks=st.sampled_from([1, 2, 4, 8]),
)
def test_every_patch_is_in_one_share(lengths: list[int], num_ranks: int) -> None:
    seen = []
    group: Any = object()
    for rank in range(num_ranks):
        mesh = Mesh(num_ranks, rank, tp_group=group)
        shares = PatchShares.over(mesh, sum(lengths), 4)
        assert shares.size % 4 == 0
        assert shares.size * num_ranks < sum(lengths) + 4 * num_ranks
        assert shares.own(torch.zeros(sum(lengths), 2)).shape == (shares.size, 2)
        for image, cut in shares.cuts(lengths):
            seen += [(image, patch) for patch in range(lengths[image])[cut]]
    assert seen == [(image, patch) for image, size in enumerate(lengths) for patch in range(size)]


COSTS = TowerCosts(alone=(1.0, 0.01), spread=(2.0, 0.006))


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([4000], [SPREAD]),
        ([200], [0]),  # spread it would take 3.2 instead of 3.0
        ([4000, 4000], [0, 1]),  # nobody idles
        ([4000, 400], [SPREAD, SPREAD]),
        ([1000, 6000, 1000], [0, SPREAD, 1]),
        ([], []),
    ],
)
def test_images_are_spread_where_ranks_would_idle(sizes: list[int], expected: list[int]) -> None:
    assert share_out(sizes, 2, COSTS) == expected


@given(sizes=st.lists(st.integers(4, 9000), max_size=6), num_ranks=st.sampled_from([2, 4]))
def test_the_way_that_is_chosen_is_never_dearer_than_dealing(
    sizes: list[int], num_ranks: int
) -> None:
    owners = share_out(sizes, num_ranks, COSTS)
    spread = [size for size, owner in zip(sizes, owners, strict=True) if owner == SPREAD]
    dealt = [size for size, owner in zip(sizes, owners, strict=True) if owner != SPREAD]
    chosen = COSTS.of_spread(spread) + COSTS.of_dealt(dealt, num_ranks)
    assert chosen <= COSTS.of_dealt(sizes, num_ranks)
    assert share_out(sizes, num_ranks, None) == deal(sizes, num_ranks)


def test_ranks_measure_both_ways_and_agree() -> None:
    def measure(mesh: Mesh) -> TowerCosts:
        model = whole_tower("glm4v", replace(mesh, host_group=mesh.tp_group))
        assert can_spread(model)
        return measure_costs(model, 64, CPU)

    first, second = on_ranks(2, measure)
    assert first == second
    assert first.of_dealt([64], 2) > 0
    assert first.of_spread([64]) > 0


def test_a_tower_that_is_split_is_not_spread() -> None:
    assert not can_spread(tiny_model("glm4v"))
