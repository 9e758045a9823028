"""FP8 weights as the published checkpoints have them: e4m3 with one float32 scale per row."""

import torch
from torch import Tensor

FP8_MAX = 448.0  # largest finite e4m3 (the finite-only variant)
_MIN_SCALE = 1e-12  # for rows of zeros


def row_scales(weight: Tensor) -> Tensor:
    """max |w| / 448 of each row: [..., out, in] -> float32 [..., out]."""
    return (weight.abs().amax(-1).float() / FP8_MAX).clamp(min=_MIN_SCALE)


def quantize_rows(weight: Tensor, scale: Tensor) -> Tensor:
    """round(w / scale) to e4m3, nearest even: [..., out, in], [..., out] -> e4m3 [..., out, in].

    `w ≈ e4m3 * scale`; formula of compressed-tensors, strategy "channel".
    """
    scaled = weight.to(torch.float32, copy=True).div_(scale.unsqueeze(-1))
    return scaled.clamp_(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn)
