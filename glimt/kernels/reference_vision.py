"""The definitions of the vision tower's own operations, in plain torch.

Letters: P patches, C numbers in a patch, S side of the position table, D width, J rotary pairs.
Patch rows come in blocks of merge × merge patches: block row, block column, row, column within.
"""

import functools

import torch
from torch import Tensor

from glimt.kernels.reference import inverse_frequencies

_KEYS_A = -0.75  # the cubic kernel's parameter
VISION_THETA = 10000.0


def normalize_pixels(
    patches: Tensor, num_frames: int, mean: tuple[float, ...], std: tuple[float, ...]
) -> Tensor:
    """uint8 [P, 3, F, side, side] -> float32 [P, C], C = channel, frame, row, column.

    (u8 - 255 mean) / (255 std). A still has F = 1; its frame is repeated `num_frames` times.
    """
    shift, scale = (255.0 * _channels(values, patches.device) for values in (mean, std))
    pixels = (patches.float() - shift) / scale
    if patches.shape[2] != num_frames:
        pixels = pixels.expand(-1, -1, num_frames, -1, -1)
    return pixels.flatten(1)


def _channels(values: tuple[float, ...], device: torch.device) -> Tensor:
    """One number for each channel, float32 [1, 3, 1, 1, 1]."""
    return _sent(torch.tensor(values, dtype=torch.float32).view(1, -1, 1, 1, 1), device)


def _sent(numbers: Tensor, device: torch.device) -> Tensor:
    """Small numbers of the host on `device`, without waiting for it.

    What follows from a grid alone is computed on the host: hundreds of operations on a few
    numbers take a GPU no time, but the host must launch each of them.
    """
    if device.type == "cuda":
        numbers = numbers.pin_memory()
    return numbers.to(device, non_blocking=True)


def patch_coordinates(
    grid_h: int, grid_w: int, merge: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """(row [P], column [P]) of every patch, in the order of the patch rows."""
    row = torch.arange(grid_h)[:, None].expand(grid_h, grid_w)
    column = torch.arange(grid_w)[None].expand(grid_h, grid_w)
    blocks = (grid_h // merge, merge, grid_w // merge, merge)
    places = [each.reshape(blocks).transpose(1, 2).flatten() for each in (row, column)]
    row_P, column_P = _sent(torch.stack(places), device)
    return row_P, column_P


def vision_angles(
    grid_h: int, grid_w: int, merge: int, head_dim: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """(cos, sin), float32 [P, head_dim / 2]: row angles, then column angles; theta is 10000."""
    inverse = inverse_frequencies(VISION_THETA, head_dim // 2, device)
    row_P, column_P = patch_coordinates(grid_h, grid_w, merge, device)
    angles_PJ = torch.cat(
        (row_P.float()[:, None] * inverse, column_P.float()[:, None] * inverse), dim=-1
    )
    return angles_PJ.cos(), angles_PJ.sin()


def resample_positions(table_SD: Tensor, grid_h: int, grid_w: int, merge: int) -> Tensor:
    """The position table [S · S, D] at the patches of another grid, in patch order [P, D].

    Bicubic with Keys' kernel (a = -0.75) at y = (i + 0.5) · S / h - 0.5, indices clamped to the
    table, in float32, cast to the table's dtype. For h = w = S it gives the table itself.
    """
    side = round(table_SD.shape[0] ** 0.5)
    table = table_SD.float().view(side, side, -1)
    rows_HS = cubic_weights(grid_h, side, table.device)
    columns_WS = cubic_weights(grid_w, side, table.device)
    narrow_HSD = (rows_HS @ table.flatten(1)).view(grid_h, side, -1)
    sampled_HWD = columns_WS @ narrow_HSD
    row_P, column_P = patch_coordinates(grid_h, grid_w, merge, table.device)
    return sampled_HWD[row_P, column_P].to(table_SD.dtype)


def cubic_weights(length: int, side: int, device: torch.device) -> Tensor:
    """[length, side]: how much of each table entry goes into each sample; rows add up to 1."""
    return _sent(_cubic_weights(length, side), device)


@functools.lru_cache(maxsize=1024)
@torch.inference_mode(False)  # trainings use them as well
def _cubic_weights(length: int, side: int) -> Tensor:
    """On the host; nobody changes them."""
    centre = (torch.arange(length, dtype=torch.float32) + 0.5) * side / length - 0.5
    base = centre.floor()
    weights = torch.zeros(length, side)
    for tap in range(-1, 3):
        distance = (centre - base - tap).abs()
        near = ((_KEYS_A + 2) * distance - (_KEYS_A + 3)) * distance.square() + 1
        far = _KEYS_A * (((distance - 5) * distance + 8) * distance - 4)
        index = (base + tap).clamp(0, side - 1).long()
        weights.scatter_add_(1, index[:, None], torch.where(distance <= 1, near, far)[:, None])
    return weights
