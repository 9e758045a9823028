"""How many tokens an image will be, where the checkpoint's own numbers can be read."""

from collections.abc import Callable
from pathlib import Path

from glimt.checkpoint import read_checkpoint
from glimt.errors import BadCheckpoint, BadMedia
from glimt.media.sizes import smart_resize

TokenCounter = Callable[[int, int], int | None]


def image_token_counter(model: str | None) -> TokenCounter:
    """From (width, height) to tokens, for the checkpoint folder `model`; None = not known."""
    folder = Path(model or "").expanduser()
    if not model or not folder.is_dir():
        return lambda width, height: None
    try:
        settings = read_checkpoint(folder).image
    except BadCheckpoint:
        return lambda width, height: None
    side = settings.patch_size * settings.merge_size

    def count(width: int, height: int) -> int | None:
        try:
            high, wide = smart_resize(settings.temporal_patch_size, height, width, settings)
        except BadMedia:
            return None
        return (high // side) * (wide // side)

    return count
