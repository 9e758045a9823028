"""How many tokens an image will be, where the checkpoint's own numbers can be read."""

from collections.abc import Callable
from pathlib import Path

from glimt.builtin import model as builtin
from glimt.checkpoint import read_checkpoint
from glimt.errors import BadCheckpoint, BadMedia
from glimt.media.sizes import smart_resize

TokenCounter = Callable[[int, int], int | None]


def image_token_counter(model: str) -> TokenCounter:
    """From (width, height) to tokens, for a checkpoint on this machine; None = not known."""
    folder = builtin.FOLDER if model == builtin.NAME else Path(model).expanduser()
    if not folder.is_dir():
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
