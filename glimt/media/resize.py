"""Brings pixels to another size: bit-equal to transformers' torchvision processors."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate


def resize(frames: NDArray[np.uint8], height: int, width: int) -> Tensor:
    """Frames [F, H, W, 3] -> uint8 [F, 3, height, width], bicubic with antialias.

    torch's uint8 path on the CPU is the reference (it is what torchvision calls): two passes,
    width first, each clipped to uint8. A float path or Pillow's differs by up to 24 grey levels.
    """
    frames_FCHW = torch.from_numpy(frames).permute(0, 3, 1, 2)
    if frames_FCHW.shape[2:] == (height, width):
        return frames_FCHW
    return interpolate(frames_FCHW, size=(height, width), mode="bicubic", antialias=True)
