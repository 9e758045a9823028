"""Runs the vision tower and keeps embeddings by image, as long as plans say."""

import logging
from collections.abc import Iterable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from glimt.errors import StepFailed
from glimt.parallel.mesh import Mesh
from glimt.runner.staging import pin
from glimt.runner.tower_costs import SPREAD, TowerCosts, share_out
from glimt.wire import ErrorInfo, ImageSpan, PixelRef

logger = logging.getLogger(__name__)

_UNREADABLE = ErrorInfo(StepFailed.code, "The pixels of an image could not be read.")


class PixelSource(Protocol):
    """Where pixels lie: `glimt.arena.SharedArena`."""

    def view(self, ref: PixelRef) -> memoryview:
        """The bytes of `ref`. Raises ValueError outside of the source."""
        ...


class VisionTower(Protocol):
    """The half of a model that this file needs: `glimt.models.glm4v.Glm4v`."""

    def encode_images(
        self, patches: list[Tensor], grids: list[tuple[int, int]], *, spread: bool = False
    ) -> list[Tensor]:
        """uint8 patches [P, 3, F, 14, 14] and grids (h, w) to embeddings [num_tokens, D];
        `spread` over all ranks.
        """
        ...

    def empty_embeddings(self, num_tokens: int) -> Tensor:
        """Memory for one image's embeddings."""
        ...


class ImageEncoder:
    """Embeddings by `ImageSpan.content_hash`.

    `arenas` by number. Images are packed into passes of at most `max_patches` patches (one image
    alone may have more), which bounds the tower's activation memory. Where every rank of `mesh` has
    the whole tower, the images of a step are dealt out to the ranks, and spread over all of them
    where that is faster by `costs`.
    """

    def __init__(
        self,
        tower: VisionTower,
        arenas: Sequence[PixelSource],
        *,
        patch_size: int,
        merge_size: int,
        max_patches: int,
        device: torch.device,
        mesh: Mesh | None = None,
        costs: TowerCosts | None = None,
    ) -> None:
        self._tower = tower
        self._costs = costs
        self._mesh = mesh or Mesh.single()
        self._arenas = arenas
        self._patch_size = patch_size
        self._merge_size = merge_size
        self._max_patches = max_patches
        self._device = device
        self._embeddings: dict[bytes, Tensor] = {}
        self._unplanned: set[bytes] = set()

    def drop(self, keys: Iterable[bytes]) -> None:
        """Give embeddings up. Kernels already launched still read theirs: same stream."""
        for key in (*keys, *self._unplanned):
            self._embeddings.pop(key, None)
        self._unplanned.clear()

    def encode(
        self, planned: Iterable[ImageSpan], used: Iterable[ImageSpan]
    ) -> dict[bytes, ErrorInfo]:
        """Make sure that images have embeddings; gives the errors of those that could not be read.

        `planned` stay until they are dropped. `used` by the step but not there (an earlier step
        that failed did not leave them, say) are made as well, so one failure does not follow an
        image around; they stay until the next `drop`, as no plan accounts for them.
        """
        wanted: dict[bytes, list[ImageSpan]] = {span.content_hash: [span] for span in planned}
        for span in used:
            if span.content_hash not in wanted and span.content_hash not in self._embeddings:
                self._unplanned.add(span.content_hash)
            wanted.setdefault(span.content_hash, []).append(span)
        ready: list[tuple[ImageSpan, Tensor]] = []
        errors: dict[bytes, ErrorInfo] = {}
        for key, spans in wanted.items():
            if key in self._embeddings:
                continue
            patches = self._first_readable(spans)
            if patches is None:
                errors[key] = _UNREADABLE
            else:
                ready.append((spans[0], patches))
        self._run_all(ready)
        return errors

    def part(self, key: bytes, low: int, high: int) -> Tensor:
        """Rows [low, high) of an image's embeddings [num_tokens, D]."""
        return self._embeddings[key][low:high]

    def _first_readable(self, spans: list[ImageSpan]) -> Tensor | None:
        """Patches from any of the places where an image is said to lie."""
        for span in spans:
            try:
                return self._patches(span)
            except (ValueError, IndexError, RuntimeError):
                logger.exception("cannot read the pixels of an image: %s", span.pixels)
        return None

    def _patches(self, span: ImageSpan) -> Tensor:
        """uint8 [P, 3, F, patch, patch] on the host. Raises ValueError if bytes do not fit."""
        merged_h, rest_h = divmod(span.grid_h, self._merge_size)
        merged_w, rest_w = divmod(span.grid_w, self._merge_size)
        if rest_h or rest_w or merged_h * merged_w != span.num_tokens:
            raise ValueError(f"{span.num_tokens} tokens for {span.grid_h} x {span.grid_w} patches")
        view = self._arenas[span.pixels.arena].view(span.pixels)
        shape = (span.grid_h * span.grid_w, 3, span.num_frames, self._patch_size, self._patch_size)
        return torch.frombuffer(view, dtype=torch.uint8).view(shape)

    def _run_all(self, images: list[tuple[ImageSpan, Tensor]]) -> None:
        mesh = self._mesh
        if mesh.tp_size == 1 or mesh.splits_tower:
            for group in self._passes(images):
                self._run(group)
            return
        owners = share_out([len(patches) for _, patches in images], mesh.tp_size, self._costs)
        of_all = [image for image, owner in zip(images, owners, strict=True) if owner == SPREAD]
        for group in self._passes(of_all):
            self._run(group, spread=True)
        mine = [image for image, owner in zip(images, owners, strict=True) if owner == mesh.tp_rank]
        for group in self._passes(mine):
            self._run(group)
        for (span, _), owner in zip(images, owners, strict=True):
            if owner == SPREAD:
                continue
            own_TD = self._embeddings.get(span.content_hash)
            if own_TD is None:
                own_TD = self._tower.empty_embeddings(span.num_tokens)
            self._embeddings[span.content_hash] = mesh.tp_broadcast(own_TD, owner)

    def _passes(
        self, images: list[tuple[ImageSpan, Tensor]]
    ) -> Iterable[list[tuple[ImageSpan, Tensor]]]:
        group: list[tuple[ImageSpan, Tensor]] = []
        num_patches = 0
        for span, patches in images:
            if group and num_patches + len(patches) > self._max_patches:
                yield group
                group, num_patches = [], 0
            group.append((span, patches))
            num_patches += len(patches)
        if group:
            yield group

    def _run(self, group: list[tuple[ImageSpan, Tensor]], *, spread: bool = False) -> None:
        embeddings = self._tower.encode_images(
            [pin(patches, self._device) for _, patches in group],
            [(span.grid_h, span.grid_w) for span, _ in group],
            spread=spread,
        )
        for (span, _), embedding_TD in zip(group, embeddings, strict=True):
            self._embeddings[span.content_hash] = embedding_TD
