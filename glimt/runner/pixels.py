"""Pixels of images: where they lie, and how they are taken from there."""

import logging
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from glimt.wire import ImageSpan, PixelRef

log = logging.getLogger(__name__)


class PixelSource(Protocol):
    """Where pixels lie: `glimt.arena.SharedArena`."""

    def view(self, ref: PixelRef) -> memoryview:
        """The bytes of `ref`. Raises ValueError outside of the source."""
        ...


class PixelReader:
    """Copies pixels out of `arenas`, by number, whose owners may then use the memory again."""

    def __init__(
        self,
        arenas: Sequence[PixelSource],
        *,
        patch_size: int,
        merge_size: int,
        device: torch.device,
    ) -> None:
        self._arenas = arenas
        self._patch_size = patch_size
        self._merge_size = merge_size
        self._is_pinned = device.type == "cuda"

    def read(self, spans: Sequence[ImageSpan]) -> Tensor | None:
        """uint8 [P, 3, F, patch, patch] from any of the places where one image is said to lie; in
        pinned memory if a GPU is to have it. None, and a line in the log, if it lies in none.
        """
        for span in spans:
            try:
                return self._copy(span)
            except (ValueError, IndexError, RuntimeError):
                log.exception("cannot read the pixels of an image: %s", span.pixels)
        return None

    def _copy(self, span: ImageSpan) -> Tensor:
        """Raises ValueError if bytes do not fit."""
        merged_h, rest_h = divmod(span.grid_h, self._merge_size)
        merged_w, rest_w = divmod(span.grid_w, self._merge_size)
        if rest_h or rest_w or merged_h * merged_w != span.num_tokens:
            raise ValueError(f"{span.num_tokens} tokens for {span.grid_h} x {span.grid_w} patches")
        view = self._arenas[span.pixels.arena].view(span.pixels)
        shape = (span.grid_h * span.grid_w, 3, span.num_frames, self._patch_size, self._patch_size)
        pixels = torch.frombuffer(view, dtype=torch.uint8).view(shape)
        copy = torch.empty(shape, dtype=torch.uint8, pin_memory=self._is_pinned)
        # By numpy: torch's threads, which wait for each other, gain nothing on a few megabytes.
        copy.numpy()[...] = pixels.numpy()
        return copy
