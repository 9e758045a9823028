"""The vision tower: rows of pixels -> one row of the decoder's width for each merged patch.

    x = norm_in(patch_embed(pixels)) + position table, resampled to the grid
    x = x + proj(attention(norm_1(x)));  x = x + mlp(norm_2(x))       depth times
    y = merger(downsample(norm_out(x), merge × merge patches at once))

Attention is full inside one image or video step and never looks across. The mesh given here is that
of the tower: several ranks split its matrices, or one has all of it and the ranks of the decoder
each encode other images, or other patches of the same ones (`PatchShares`).

Letters: P patches of all images, S those of this rank, C numbers in a patch row, D tower width,
Y output width, B = P / merge² merge blocks, N heads, H head dim. Patch rows come in blocks of
merge × merge.
"""

from collections.abc import Generator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from glimt import kernels
from glimt.layers.linear import Linear, Mlp, parameter
from glimt.layers.norm import LayerNorm, RmsNorm
from glimt.layers.rope import Angles
from glimt.models.config import VisionConfig
from glimt.models.patch_shares import PatchShares
from glimt.parallel.mesh import Mesh

Grid = tuple[int, int]  # height and width in patches
Slices = Generator[None, None, list[Tensor]]
"""A pass that stops after each of its blocks, for other work to come between; gives [B, Y] of each
image at the end."""


class Vision(nn.Module):
    """The tower, or this rank's part of it."""

    def __init__(self, config: VisionConfig, mesh: Mesh) -> None:
        super().__init__()
        self.config = config
        width, eps = config.hidden_size, config.rms_norm_eps
        self.patch_embed = Linear(config.patch_dim, width, bias=True)
        self.norm_in = RmsNorm(width, eps)
        self.position_embedding = parameter(config.position_grid**2, width)
        self.blocks = nn.ModuleList(VisionBlock(config, mesh) for _ in range(config.depth))
        self.norm_out = RmsNorm(width, eps)
        self.downsample = Linear(width * config.merge_size**2, config.out_hidden_size, bias=True)
        self.merger = Merger(config.out_hidden_size, config.merger_intermediate_size, mesh)

    def forward(
        self, patches: Sequence[Tensor], grids: Sequence[Grid], ranks: Mesh
    ) -> list[Tensor]:
        """uint8 patches [P, 3, frames, side, side] and grid of each image -> [B, Y] of each.

        `ranks`: each computes a share of the patches.
        """
        return finish(self.slices(patches, grids, ranks))

    def slices(self, patches: Sequence[Tensor], grids: Sequence[Grid], ranks: Mesh) -> Slices:
        """`forward`, block by block. Patches are read before the first stop."""
        lengths = [height * width for height, width in grids]
        block_size = self.config.merge_size**2
        shares = PatchShares.over(ranks, sum(lengths), block_size)
        positions_SD = shares.own(self._positions(grids))
        x_SD = self.norm_in(self.patch_embed(self._pixels(patches, shares))) + positions_SD
        angles = self._angles(grids, shares)
        delta_SD: Tensor | None = None
        for block in self.blocks:
            x_SD, delta_SD = block(x_SD, delta_SD, angles, lengths, shares)
            yield
        x_SD, _ = self.norm_out.add(x_SD, delta_SD)
        y_BY = self.merger(self.downsample(x_SD.view(-1, self.downsample.weight.shape[1])))
        y_BY = shares.collect(y_BY, block_size)
        return list(torch.split(y_BY, [length // block_size for length in lengths]))

    def _pixels(self, patches: Sequence[Tensor], shares: PatchShares) -> Tensor:
        """[S, C], normalised in float32, in the tower's dtype."""
        config = self.config
        rows = [
            kernels.normalize_pixels(
                patches[image][cut], config.temporal_patch_size, config.image_mean, config.image_std
            )
            for image, cut in shares.cuts([len(image) for image in patches])
        ]
        weight = self.patch_embed.weight
        return shares.pixels(rows, config.patch_dim, weight.device).to(weight.dtype)

    def _positions(self, grids: Sequence[Grid]) -> Tensor:
        """[P, D]: the position table at every patch, once for each distinct grid."""
        sampled = {
            grid: kernels.resample_positions(self.position_embedding, *grid, self.config.merge_size)
            for grid in set(grids)
        }
        return torch.cat([sampled[grid] for grid in grids])

    def _angles(self, grids: Sequence[Grid], shares: PatchShares) -> Angles:
        """Row and column angles of every patch of this rank."""
        config, device = self.config, self.position_embedding.device
        parts = {
            grid: kernels.vision_angles(*grid, config.merge_size, config.head_dim, device)
            for grid in set(grids)
        }
        cos_PJ, sin_PJ = (torch.cat([parts[grid][i] for grid in grids]) for i in (0, 1))
        return Angles(shares.own(cos_PJ), shares.own(sin_PJ), interleaved=False)


def finish(slices: Slices) -> list[Tensor]:
    """All that is left of a pass, without a stop."""
    while True:
        try:
            next(slices)
        except StopIteration as end:
            images: list[Tensor] = end.value
            return images


class VisionBlock(nn.Module):
    """Attention and feed-forward, pre-norm, no biases.

    As in the decoder, the norm that follows a branch adds it.
    """

    def __init__(self, config: VisionConfig, mesh: Mesh) -> None:
        super().__init__()
        width, eps = config.hidden_size, config.rms_norm_eps
        self.mesh = mesh
        self.norm_1 = RmsNorm(width, eps)
        self.norm_2 = RmsNorm(width, eps)
        self.attention = VisionAttention(width, config.num_heads, mesh)
        self.mlp = Mlp(width, mesh.tp_share(config.block_intermediate_size, "vision width"))

    def forward(
        self,
        x_SD: Tensor,
        delta_SD: Tensor | None,
        angles: Angles,
        lengths: list[int],
        shares: PatchShares,
    ) -> tuple[Tensor, Tensor]:
        """(x, delta) -> (x, delta): what is summed so far, and the branch to add to it next.

        `lengths` are the patches of each image; of all of them, `shares` says which are here.
        """
        h_SD, x_SD = self.norm_1.add(x_SD, delta_SD)
        delta_SD = self.mesh.tp_sum(self.attention(h_SD, angles, lengths, shares))
        h_SD, x_SD = self.norm_2.add(x_SD, delta_SD)
        return x_SD, self.mesh.tp_sum(self.mlp(h_SD))


class VisionAttention(nn.Module):
    """proj(softmax(q k^T / sqrt H) v) inside each image; qkv rows are q, k, v.

    The result is this rank's part of the sum over the tower's tp axis.
    """

    def __init__(self, hidden_size: int, num_heads: int, mesh: Mesh) -> None:
        super().__init__()
        self.num_heads = mesh.tp_share(num_heads, "vision heads")
        width = self.num_heads * (hidden_size // num_heads)
        self.qkv = Linear(hidden_size, 3 * width)
        self.proj = Linear(width, hidden_size)

    def forward(
        self, x_SD: Tensor, angles: Angles, lengths: list[int], shares: PatchShares
    ) -> Tensor:
        """[S, D] -> [S, D]."""
        heads = self.qkv(x_SD).view(x_SD.shape[0], 3 * self.num_heads, -1)
        qk_SNH = angles.turn(heads[:, : 2 * self.num_heads])
        q_SNH, k_SNH = qk_SNH.chunk(2, dim=1)
        v_SNH = heads[:, 2 * self.num_heads :]
        q, k, v = shares.to_heads(q_SNH, k_SNH, v_SNH)
        out_SNH = shares.to_rows(kernels.segment_attention(q, k, v, lengths))
        y_SD: Tensor = self.proj(out_SNH.flatten(1))
        return y_SD


class Merger(nn.Module):
    """down(silu(gate u) · up u) with u = gelu(norm(proj y)); the one norm with a bias."""

    def __init__(self, hidden_size: int, intermediate_size: int, mesh: Mesh) -> None:
        super().__init__()
        width = mesh.tp_share(intermediate_size, "merger width")
        self.mesh = mesh
        self.proj = Linear(hidden_size, hidden_size)
        self.norm = LayerNorm(hidden_size, 1e-5)  # eps is no key of the config
        self.gate_up = Linear(hidden_size, 2 * width)
        self.down = Linear(width, hidden_size)

    def forward(self, y_BY: Tensor) -> Tensor:
        """[B, Y] -> [B, Y]."""
        u_BY = functional.gelu(self.norm(self.proj(y_BY)))
        return self.mesh.tp_sum(self.down(kernels.silu_mul(self.gate_up(u_BY))))
