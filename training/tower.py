"""The trainable vision tower: `glimt.models.vision` with gradients, all images in one pass.

Letters: P patches of all images, D tower width, B = P / 4 merge blocks, Y output width.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from glimt.kernels.reference import inverse_frequencies
from glimt.kernels.reference_vision import VISION_THETA, cubic_weights, normalize_pixels
from glimt.models.config import VisionConfig
from training.attention import Attend, Segments
from training.modules import Angles, Mlp, RmsNorm, silu_mul

MAX_GRID = 512  # patches along one side; 28 × 5600 pixels need 400


class Tower(nn.Module):
    """Patches of stills and of video steps -> one row for each merge block."""

    position_weights: Tensor
    position_offsets: Tensor

    def __init__(self, config: VisionConfig, attend: Attend) -> None:
        super().__init__()
        self.config = config
        width, eps = config.hidden_size, config.rms_norm_eps
        self.patch_embed = nn.Linear(config.patch_dim, width)
        self.norm_in = RmsNorm(width, eps)
        self.position_embedding = nn.Parameter(torch.empty(config.position_grid**2, width))
        self.blocks = nn.ModuleList(TowerBlock(config, attend) for _ in range(config.depth))
        self.norm_out = RmsNorm(width, eps)
        self.downsample = nn.Linear(width * config.merge_size**2, config.out_hidden_size)
        self.merger = Merger(config.out_hidden_size, config.merger_intermediate_size)
        weights, offsets = _position_weights(config.position_grid)
        self.register_buffer("position_weights", weights, persistent=False)
        self.register_buffer("position_offsets", offsets, persistent=False)

    def forward(
        self, stills: Tensor, steps: Tensor, places_P4: Tensor, segments: Segments
    ) -> Tensor:
        """[B, Y] of all images.

        `stills` uint8 [P₁, 3, 1, 14, 14] come before `steps` [P₂, 3, 2, 14, 14] in `places_P4`
        (row, column, height and width of the grid, of each patch) and in `segments`.
        """
        x_PD = self.norm_in(self.patch_embed(self._pixels(stills, steps)))
        x_PD = x_PD + self._positions(places_P4)
        angles = self._angles(places_P4)
        for block in self.blocks:
            x_PD = block(x_PD, angles, segments)
        blocks_B4D = self.norm_out(x_PD).view(-1, self.downsample.in_features)
        y_BY: Tensor = self.merger(self.downsample(blocks_B4D))
        return y_BY

    def _pixels(self, stills: Tensor, steps: Tensor) -> Tensor:
        config = self.config
        rows = [
            normalize_pixels(part, config.temporal_patch_size, config.image_mean, config.image_std)
            for part in (stills, steps)
            if len(part)
        ]
        return torch.cat(rows).to(self.patch_embed.weight.dtype)

    def _positions(self, places_P4: Tensor) -> Tensor:
        """The table, resampled to each patch's grid: one product with the bicubic weights."""
        rows_PS, columns_PS = (
            self.position_weights[
                self.position_offsets[places_P4[:, 2 + axis]] + places_P4[:, axis]
            ]
            for axis in (0, 1)
        )
        weights = (rows_PS[:, :, None] * columns_PS[:, None, :]).flatten(1)
        return (weights @ self.position_embedding.float()).to(self.position_embedding.dtype)

    def _angles(self, places_P4: Tensor) -> Angles:
        inverse = inverse_frequencies(VISION_THETA, self.config.head_dim // 2, places_P4.device)
        return Angles((places_P4[:, :2, None] * inverse).flatten(1))


class TowerBlock(nn.Module):
    """Attention and feed-forward, pre-norm, no biases."""

    def __init__(self, config: VisionConfig, attend: Attend) -> None:
        super().__init__()
        width, eps = config.hidden_size, config.rms_norm_eps
        self.norm_1 = RmsNorm(width, eps)
        self.norm_2 = RmsNorm(width, eps)
        self.attention = TowerAttention(width, config.num_heads, attend)
        self.mlp = Mlp(width, config.block_intermediate_size)

    def forward(self, x_PD: Tensor, angles: Angles, segments: Segments) -> Tensor:
        """[P, D] -> [P, D]."""
        x_PD = x_PD + self.attention(self.norm_1(x_PD), angles, segments)
        mlp_PD: Tensor = self.mlp(self.norm_2(x_PD))
        return x_PD + mlp_PD


class TowerAttention(nn.Module):
    """proj(softmax(q k^T / sqrt H) v) inside each image; qkv rows are q, k, v."""

    def __init__(self, hidden_size: int, num_heads: int, attend: Attend) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attend = attend
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size, bias=False)
        self.proj = nn.Linear(hidden_size, hidden_size, bias=False)

    def forward(self, x_PD: Tensor, angles: Angles, segments: Segments) -> Tensor:
        """[P, D] -> [P, D]."""
        heads = self.qkv(x_PD).unflatten(-1, (3 * self.num_heads, -1))
        q_PNH, k_PNH = angles.turn(heads[:, : 2 * self.num_heads]).chunk(2, dim=1)
        v_PNH = heads[:, 2 * self.num_heads :]
        y_PD: Tensor = self.proj(self.attend(q_PNH, k_PNH, v_PNH, segments, False).flatten(1))
        return y_PD


class Merger(nn.Module):
    """down(silu(gate u) · up u) with u = gelu(norm(proj y)); the one norm with a bias."""

    def __init__(self, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.norm = nn.LayerNorm(hidden_size, 1e-5)
        self.gate_up = nn.Linear(hidden_size, 2 * intermediate_size, bias=False)
        self.down = nn.Linear(intermediate_size, hidden_size, bias=False)

    def forward(self, y_BY: Tensor) -> Tensor:
        """[B, Y] -> [B, Y]."""
        u_BY = functional.gelu(self.norm(self.proj(y_BY)))
        out_BY: Tensor = self.down(silu_mul(self.gate_up(u_BY)))
        return out_BY


def _position_weights(side: int) -> tuple[Tensor, Tensor]:
    """(bicubic weights of all grid lengths 1 … MAX_GRID under each other [·, side], where those
    of each length begin)."""
    cpu = torch.device("cpu")
    parts = [cubic_weights(length, side, cpu) for length in range(1, MAX_GRID + 1)]
    lengths = torch.arange(MAX_GRID + 1)
    return torch.cat(parts), lengths * (lengths - 1) // 2
