"""`Mesh`: this process's place in the grid of GPUs, and the collectives the networks use.

Axes: `tp` splits every matrix, `ep` spreads whole experts over the ranks of a tp group instead of
splitting them, `dp` counts replicas. A collective is written where a block's forward needs it;
over an axis of size 1 it gives its argument back and costs nothing.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from glimt.errors import BadSettings


@dataclass(frozen=True, slots=True)
class Mesh:
    """Sizes and own ranks of the axes; `tp_group` joins the ranks of the tp axis."""

    tp_size: int = 1
    tp_rank: int = 0
    dp_size: int = 1
    dp_rank: int = 0
    ep_size: int = 1
    ep_rank: int = 0
    tp_group: ProcessGroup | None = None

    @staticmethod
    def single() -> "Mesh":
        """One process, one device."""
        return Mesh()

    def __post_init__(self) -> None:
        if self.ep_size not in (1, self.tp_size):
            raise BadSettings(f"experts spread over {self.ep_size} of {self.tp_size} tp ranks")
        if self.tp_size > 1 and self.tp_group is None:
            raise BadSettings(f"{self.tp_size} tensor-parallel ranks and no group that joins them")

    def tp_share(self, size: int, what: str) -> int:
        """This rank's part of `size`. Raises BadSettings where it cannot be split evenly."""
        if size % self.tp_size:
            raise BadSettings(f"{what} ({size}) cannot be split over {self.tp_size} GPUs")
        return size // self.tp_size

    def tp_sum(self, partial: Tensor) -> Tensor:
        """The sum over the tp axis of every rank's `partial`; reuses its memory."""
        if self.tp_group is None:
            return partial
        partial = partial.contiguous()
        self.tp_group.allreduce([partial]).wait()
        return partial

    def tp_concat(self, part: Tensor) -> Tensor:
        """Every rank's `part`, joined along the last dim in the order of the ranks."""
        if self.tp_group is None:
            return part
        parts = [torch.empty_like(part) for _ in range(self.tp_size)]
        self.tp_group.allgather([parts], [part.contiguous()]).wait()
        return torch.cat(parts, dim=-1)
