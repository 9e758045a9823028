"""Images of one pass over ranks that each have the whole vision tower: dealt out, or spread."""

from collections.abc import Iterator, Sequence
from typing import Protocol

from torch import Tensor

from glimt.models.vision import Grid, Slices
from glimt.parallel.mesh import Mesh
from glimt.runner.tower_costs import SPREAD, TowerCosts, share_out


class VisionTower(Protocol):
    """The half of a model that encodes: `glimt.models.glm4v.Glm4v`."""

    def encode_images(
        self, patches: Sequence[Tensor], grids: Sequence[Grid], *, spread: bool = False
    ) -> list[Tensor]:
        """uint8 patches [P, 3, F, 14, 14] and grids (h, w) to embeddings [num_tokens, D];
        `spread` over all ranks.
        """
        ...

    def encode_in_slices(self, patches: Sequence[Tensor], grids: Sequence[Grid]) -> Slices:
        """The same, with a stop after each block."""
        ...

    def empty_embeddings(self, num_tokens: int) -> Tensor:
        """Memory for one image's embeddings."""
        ...


def encode_dealt(
    tower: VisionTower,
    patches: Sequence[Tensor],
    grids: Sequence[Grid],
    num_tokens: Sequence[int],
    *,
    mesh: Mesh,
    costs: TowerCosts | None,
    max_patches: int,
) -> Slices:
    """Embeddings [num_tokens, D] of each image, on every rank, without a stop. A collective
    operation.

    Each rank runs passes of at most `max_patches` over its own images.
    """
    yield from ()  # ranks encode different images, whose blocks are no common places to stop
    sizes = [len(image) for image in patches]
    owners = share_out(sizes, mesh.tp_size, costs)
    embeddings: dict[int, Tensor] = {}
    for owner in (SPREAD, mesh.tp_rank):
        own = [image for image, its in enumerate(owners) if its == owner]
        for group in _groups(own, sizes, max_patches):
            encoded = tower.encode_images(
                [patches[image] for image in group],
                [grids[image] for image in group],
                spread=owner == SPREAD,
            )
            embeddings.update(zip(group, encoded, strict=True))
    for image, owner in enumerate(owners):
        if owner == SPREAD:
            continue
        own_TD = embeddings.get(image)
        if own_TD is None:
            own_TD = tower.empty_embeddings(num_tokens[image])
        embeddings[image] = mesh.tp_broadcast(own_TD, owner)
    return [embeddings[image] for image in range(len(patches))]


def _groups(images: Sequence[int], sizes: Sequence[int], max_patches: int) -> Iterator[list[int]]:
    group: list[int] = []
    for image in images:
        if group and sum(sizes[other] for other in group) + sizes[image] > max_patches:
            yield group
            group = []
        group.append(image)
    if group:
        yield group
