"""Ranks that are threads of this process, over real gloo groups."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from typing import TypeVar

from torch.distributed import HashStore, ProcessGroupGloo

from glimt.experts.placement import Placement
from glimt.parallel.mesh import Mesh

Result = TypeVar("Result")


def on_ranks(
    size: int,
    work: Callable[[Mesh], Result],
    *,
    experts: bool = False,
    placement: Placement | None = None,
) -> list[Result]:
    """work(mesh) on `size` ranks at once."""
    store = HashStore()
    # Kept until all are done: a group that goes closes connections that others may still make.
    groups: list[ProcessGroupGloo] = []

    def run(rank: int) -> Result:
        group = ProcessGroupGloo(store, rank, size, timedelta(seconds=30))
        groups.append(group)
        ep_size, ep_rank = (size, rank) if experts else (1, 0)
        mesh = Mesh(size, rank, ep_size=ep_size, ep_rank=ep_rank, tp_group=group)
        return work(replace(mesh, placement=placement))

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(run, range(size)))
