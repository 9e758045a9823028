"""`PatchShares`: the patches of a pass of the vision tower, over ranks that each have all of it.

A rank computes its share of the rows; only attention looks across rows. Around it ranks swap: each
gives its rows of other ranks' heads for other ranks' rows of its own heads, and back (Jacobs et
al., "DeepSpeed Ulysses", 2023). So one large image keeps all ranks busy, and what each of them
sends shrinks with their number.

Letters: P patches, S patches of a share, B merge blocks, W ranks, N heads, M = N / W heads of a
rank, H head dim, Y output width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from glimt.parallel.mesh import Mesh


@dataclass(frozen=True, slots=True)
class PatchShares:
    """P patches in W shares of S, which are whole merge blocks; the last ones may lack some."""

    mesh: Mesh
    num_patches: int
    size: int

    @staticmethod
    def over(mesh: Mesh, num_patches: int, block: int) -> "PatchShares":
        """Shares of patches that come in merge blocks of `block`. Over one rank: all of them."""
        num_blocks = -(-num_patches // (block * mesh.tp_size))
        return PatchShares(mesh, num_patches, num_blocks * block)

    @property
    def first(self) -> int:
        """This rank's first patch."""
        return min(self.size * self.mesh.tp_rank, self.num_patches)

    @property
    def end(self) -> int:
        """The patch after its last."""
        return min(self.first + self.size, self.num_patches)

    def cuts(self, lengths: Sequence[int]) -> list[tuple[int, slice]]:
        """What of which image is in this share."""
        cuts, start = [], 0
        for image, length in enumerate(lengths):
            low, high = max(self.first - start, 0), min(self.end - start, length)
            if low < high:
                cuts.append((image, slice(low, high)))
            start += length
        return cuts

    def own(self, x_P: Tensor) -> Tensor:
        """This rank's rows of [P, …], filled up to S."""
        return self.fill(x_P[self.first : self.end], self.size)

    @staticmethod
    def fill(x: Tensor, num_rows: int) -> Tensor:
        """x with rows of zeros added until there are so many."""
        missing = num_rows - x.shape[0]
        return functional.pad(x, (0, 0) * (x.dim() - 1) + (0, missing)) if missing else x

    def to_heads(
        self, q_SNH: Tensor, k_SNH: Tensor, v_SNH: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """All rows of this rank's heads, [P, M, H] each. A collective operation."""
        if self.mesh.tp_size == 1:
            return q_SNH, k_SNH, v_SNH
        num_rows, num_heads, width = q_SNH.shape
        num_ranks = self.mesh.tp_size
        sent = q_SNH.new_empty(num_ranks, num_rows, 3, num_heads // num_ranks, width)
        for place, x_SNH in enumerate((q_SNH, k_SNH, v_SNH)):
            sent[:, :, place] = x_SNH.reshape(num_rows, num_ranks, -1, width).transpose(0, 1)
        rows = self.mesh.tp_exchange(sent).flatten(0, 1)[: self.num_patches]
        return rows[:, 0], rows[:, 1], rows[:, 2]

    def to_rows(self, x_PMH: Tensor) -> Tensor:
        """This rank's rows of all heads, [S, N, H]. A collective operation."""
        if self.mesh.tp_size == 1:
            return x_PMH
        filled = self.fill(x_PMH, self.size * self.mesh.tp_size)
        heads = self.mesh.tp_exchange(filled.view(self.mesh.tp_size, self.size, *x_PMH.shape[1:]))
        return heads.transpose(0, 1).flatten(1, 2)

    def collect(self, y_BY: Tensor, block: int) -> Tensor:
        """The merge blocks of all ranks, [B, Y]. A collective operation."""
        if self.mesh.tp_size == 1:
            return y_BY
        return self.mesh.tp_stack(y_BY).flatten(0, 1)[: self.num_patches // block]

    def pixels(self, rows: Sequence[Tensor], patch_dim: int, device: torch.device) -> Tensor:
        """[S, C] of the rows of this share, image by image."""
        nothing = torch.zeros(0, patch_dim, device=device)
        return self.fill(torch.cat([nothing, *rows]), self.size)
