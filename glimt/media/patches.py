"""Cuts resized frames into the rows that the vision tower reads."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def patchify(frames_FCHW: Tensor, out: NDArray[np.uint8], patch: int, merge: int) -> None:
    """Write uint8 frames [F, 3, H, W] into `out`, F * 3 * H * W bytes, as [P, 3, F, patch, patch].

    Row order: blocks of merge x merge patches from left to right and top to bottom, within a
    block row by row. P = H * W / patch**2; H and W are multiples of patch * merge. A still keeps
    its one frame: the engine repeats it.
    """
    num_frames, channels, height, width = frames_FCHW.shape
    blocks_h, blocks_w = height // (patch * merge), width // (patch * merge)
    split = frames_FCHW.view(num_frames, channels, blocks_h, merge, patch, blocks_w, merge, patch)
    rows = split.permute(2, 5, 3, 6, 1, 0, 4, 7)
    shape = (blocks_h, blocks_w, merge, merge, channels, num_frames, patch, patch)
    torch.from_numpy(out).view(shape).copy_(rows)
