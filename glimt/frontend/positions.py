"""Positions on three axes (time, height, width) for prompts with images: M-RoPE.

A counter c walks through the prompt. A text token gets (c, c, c) and moves c by one. The token in
row r and column q of an image's merged grid of h x w gets (c, c + r, c + q); the image as a whole
moves c by max(h, w). A temporal step of a video is an image like any other, and the timestamps
between the steps are text. (As transformers' `Glm4vModel.get_rope_index`.)
"""

from collections.abc import Sequence

import numpy as np

from glimt.frontend.prompt import IntArray
from glimt.wire import ImageSpan


def mrope_positions(
    num_tokens: int, images: Sequence[ImageSpan], merge_size: int
) -> tuple[IntArray | None, int]:
    """Positions int32 [3, num_tokens] and rope_delta = highest position + 1 - num_tokens.

    Images ascend by start and do not overlap. Without images: (None, 0), which stands for
    0 … num_tokens - 1 on every axis.
    """
    if not images:
        return None, 0
    positions_3T = np.empty((3, num_tokens), np.int32)
    done = counter = 0  # tokens placed; position of the next
    for image in images:
        num_text = image.start - done
        positions_3T[:, done : image.start] = np.arange(counter, counter + num_text, dtype=np.int32)
        counter += num_text
        height, width = image.grid_h // merge_size, image.grid_w // merge_size
        done = image.start + image.num_tokens
        grid_3HW = positions_3T[:, image.start : done].reshape(3, height, width)
        grid_3HW[0] = counter
        grid_3HW[1] = (counter + np.arange(height, dtype=np.int32))[:, None]
        grid_3HW[2] = counter + np.arange(width, dtype=np.int32)
        positions_3T[:, image.start : done] = grid_3HW.reshape(3, -1)
        counter += max(height, width)
    end = counter + num_tokens - done
    positions_3T[:, done:] = np.arange(counter, end, dtype=np.int32)
    return positions_3T, end - num_tokens
