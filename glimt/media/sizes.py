"""To which size pixels are brought, as transformers' processors do it."""

import math

from glimt.errors import BadMedia
from glimt.wire import ImageSettings

MAX_ASPECT_RATIO = 200


def smart_resize(
    num_frames: int, height: int, width: int, settings: ImageSettings
) -> tuple[int, int]:
    """(height, width) that the vision tower takes: multiples of patch * merge (28).

    Sides below 28 are scaled up first; then num_frames * H * W is brought between
    `settings.min_pixels` and `max_pixels`, which are volumes. A still counts as
    `temporal_patch_size` frames. The formula, its truncations and its rounding of halves to even
    included, is `smart_resize` of transformers' Glm4v and Glm46V processors.

    Raises BadMedia if one side is more than 200 times the other.
    """
    factor = settings.patch_size * settings.merge_size
    if height < factor or width < factor:
        scale = max(factor / height, factor / width)
        height, width = int(height * scale), int(width * scale)
    if max(height, width) / min(height, width) > MAX_ASPECT_RATIO:
        raise BadMedia(
            f"one side is more than {MAX_ASPECT_RATIO} times as long as the other; "
            "crop it or cut it into pieces"
        )
    new_height = round(height / factor) * factor
    new_width = round(width / factor) * factor
    depth = round(num_frames / settings.temporal_patch_size) * settings.temporal_patch_size
    volume = depth * new_height * new_width
    if volume > settings.max_pixels:
        shrink = math.sqrt(num_frames * height * width / settings.max_pixels)
        new_height = max(factor, math.floor(height / shrink / factor) * factor)
        new_width = max(factor, math.floor(width / shrink / factor) * factor)
    elif volume < settings.min_pixels:
        grow = math.sqrt(settings.min_pixels / (num_frames * height * width))
        new_height = math.ceil(height * grow / factor) * factor
        new_width = math.ceil(width * grow / factor) * factor
    return new_height, new_width
