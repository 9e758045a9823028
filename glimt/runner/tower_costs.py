"""Who encodes which image, where every rank has the whole vision tower: by measured times.

Images can be dealt out, which needs no exchange but leaves ranks idle where there are few or unlike
ones, or spread over all ranks, patch by patch, which exchanges in every block. Which is faster
depends on sizes, links and the host, so both are measured once, at the start.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from glimt.models.glm4v import Glm4v

SPREAD = -1
"""In place of an image's owner: all ranks together."""

_SIDES = (12, 40)  # of the images measured, in merge blocks: 144 and 1600 tokens
_ROUNDS = 3


@dataclass(frozen=True, slots=True)
class TowerCosts:
    """Seconds of a pass of the tower, on one rank or spread, as lines over its patches."""

    alone: tuple[float, float]  # of any pass, of each patch
    spread: tuple[float, float]

    def of_dealt(self, sizes: Sequence[int], num_ranks: int) -> float:
        """Images of these sizes, dealt out: what the rank with the most needs."""
        if not sizes:
            return 0.0
        loads = [0] * num_ranks
        for size, owner in zip(sizes, deal(sizes, num_ranks), strict=True):
            loads[owner] += size
        return self.alone[0] + self.alone[1] * max(loads)

    def of_spread(self, sizes: Sequence[int]) -> float:
        """Images of these sizes, spread."""
        return self.spread[0] + self.spread[1] * sum(sizes) if sizes else 0.0


def share_out(sizes: Sequence[int], num_ranks: int, costs: TowerCosts | None) -> list[int]:
    """The rank of each image, or `SPREAD`, by their patches; without costs all are dealt out.

    The largest images are spread, as many as pays.
    """
    if costs is None:
        return deal(sizes, num_ranks)
    order = sorted(range(len(sizes)), key=lambda image: -sizes[image])
    by_size = [sizes[image] for image in order]
    totals = [
        costs.of_spread(by_size[:count]) + costs.of_dealt(by_size[count:], num_ranks)
        for count in range(len(sizes) + 1)
    ]
    count = totals.index(min(totals))
    owners = [SPREAD] * count + deal(by_size[count:], num_ranks)
    by_image = dict(zip(order, owners, strict=True))
    return [by_image[image] for image in range(len(sizes))]


def deal(sizes: Sequence[int], num_ranks: int) -> list[int]:
    """The rank of each image, by its patches: the largest first, each to who has the least."""
    loads = [0] * num_ranks
    owners = [0] * len(sizes)
    for image in sorted(range(len(sizes)), key=lambda image: -sizes[image]):
        owners[image] = loads.index(min(loads))
        loads[owners[image]] += sizes[image]
    return owners


def can_spread(model: Glm4v) -> bool:
    """Whether the ranks have the whole tower each, and heads to swap."""
    mesh, config = model.mesh, model.config.vision
    return mesh.tp_size > 1 and not mesh.splits_tower and config.num_heads % mesh.tp_size == 0


@torch.inference_mode()
def measure_costs(model: Glm4v, max_patches: int, device: torch.device) -> TowerCosts:
    """Both ways, with a small and a large image of at most `max_patches`; the same on all ranks.

    A collective operation, of a model that `can_spread`.
    """
    merge = model.config.vision.merge_size
    largest = max(merge, int(max_patches**0.5) // merge * merge)
    small, large = (min(merge * side, largest) for side in _SIDES)
    alone, spread = (
        [_seconds(model, side, device, spread=spread) for side in (small, large)]
        for spread in (False, True)
    )
    return TowerCosts(
        _line(small**2, large**2, *alone),
        _line(small**2, large**2, *spread),
    )


def _seconds(model: Glm4v, side: int, device: torch.device, *, spread: bool) -> float:
    """Of one image of side² patches, once what must be compiled is; the slowest rank's."""
    side_pixels = model.config.vision.patch_size
    shape = (side * side, 3, 1, side_pixels, side_pixels)
    pixels = torch.zeros(shape, dtype=torch.uint8, device=device)

    def encode() -> None:
        model.encode_images([pixels], [(side, side)], spread=spread)

    times = [_timed(encode, device, model) for _ in range(_ROUNDS)][1:]
    # All ranks must decide alike, so they take the same number.
    return -model.mesh.tp_least(-int(1e9 * statistics.median(times))) / 1e9


def _timed(work: Callable[[], None], device: torch.device, model: Glm4v) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    model.mesh.tp_least(0)  # together
    started = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def _line(small: int, large: int, at_small: float, at_large: float) -> tuple[float, float]:
    """(fixed, per patch) through two points; never falling."""
    if large <= small:
        return 0.0, at_large / large
    slope = max(0.0, (at_large - at_small) / (large - small))
    return max(0.0, at_small - slope * small), slope
