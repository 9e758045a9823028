"""Random prompts of text, images and videos, for our model and for transformers alike."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tests.support.configs import MEDIA_TOKENS

IMAGE = MEDIA_TOKENS["image_token_id"]
MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073])
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711])
TEXT_IDS = 256  # ordinary tokens of the tiny vocabulary


@dataclass
class Prompt:
    """Token ids, the kind of each (0 text, 1 image, 2 video), and pixels of each span."""

    token_ids: list[int] = field(default_factory=list)
    types: list[int] = field(default_factory=list)
    patches: list[Tensor] = field(default_factory=list)  # uint8 [P, 3, F, side, side]
    grids: list[tuple[int, int]] = field(default_factory=list)
    image_grids: list[list[int]] = field(default_factory=list)  # t, h, w as transformers wants
    video_grids: list[list[int]] = field(default_factory=list)
    pixels: dict[int, list[Tensor]] = field(default_factory=lambda: {1: [], 2: []})

    @property
    def length(self) -> int:
        """Tokens."""
        return len(self.token_ids)

    def transformers_inputs(self) -> dict[str, Any]:
        """Keyword arguments of transformers' forward."""
        inputs: dict[str, Any] = {"input_ids": torch.tensor([self.token_ids])}
        if self.grids:
            inputs["mm_token_type_ids"] = torch.tensor([self.types])
        if self.image_grids:
            inputs["pixel_values"] = torch.cat(self.pixels[1])
            inputs["image_grid_thw"] = torch.tensor(self.image_grids)
        if self.video_grids:
            inputs["pixel_values_videos"] = torch.cat(self.pixels[2])
            inputs["video_grid_thw"] = torch.tensor(self.video_grids)
        return inputs


class PromptWriter:
    """Appends text, images and videos of random content to one prompt."""

    def __init__(self, seed: int = 0, *, side: int = 14, merge: int = 2, frames: int = 2) -> None:
        self.prompt = Prompt()
        self._generator = torch.Generator().manual_seed(seed)
        self._side, self._merge, self._frames = side, merge, frames

    def text(self, length: int) -> "PromptWriter":
        """`length` ordinary tokens."""
        ids = torch.randint(0, TEXT_IDS, (length,), generator=self._generator)
        return self._add(ids.tolist(), 0)

    def image(self, blocks_h: int, blocks_w: int) -> "PromptWriter":
        """A still of blocks_h × blocks_w merge blocks, between its markers."""
        grid = (blocks_h * self._merge, blocks_w * self._merge)
        self._add([MEDIA_TOKENS["image_start_token_id"]], 0)
        self._span(grid, num_frames=1, kind=1)
        self.prompt.image_grids.append([1, *grid])
        return self._add([MEDIA_TOKENS["image_end_token_id"]], 0)

    def video(self, steps: int, blocks_h: int, blocks_w: int) -> "PromptWriter":
        """A video of `steps` temporal steps with a timestamp after each."""
        grid = (blocks_h * self._merge, blocks_w * self._merge)
        self._add([MEDIA_TOKENS["video_start_token_id"]], 0)
        for _ in range(steps):
            self._add([MEDIA_TOKENS["image_start_token_id"]], 0)
            self._span(grid, num_frames=self._frames, kind=2)
            self._add([MEDIA_TOKENS["image_end_token_id"]], 0).text(2)
        self.prompt.video_grids.append([steps, *grid])
        return self._add([MEDIA_TOKENS["video_end_token_id"]], 0)

    def _add(self, ids: list[int], kind: int) -> "PromptWriter":
        self.prompt.token_ids += ids
        self.prompt.types += [kind] * len(ids)
        return self

    def _span(self, grid: tuple[int, int], *, num_frames: int, kind: int) -> None:
        shape = (grid[0] * grid[1], 3, num_frames, self._side, self._side)
        patches = torch.randint(0, 256, shape, dtype=torch.uint8, generator=self._generator)
        self.prompt.patches.append(patches)
        self.prompt.grids.append(grid)
        # The processor's order of arithmetic: rescale, then normalise.
        values = (patches / 255.0 - MEAN.view(1, 3, 1, 1, 1)) / STD.view(1, 3, 1, 1, 1)
        self.prompt.pixels[kind].append(values.expand(-1, -1, self._frames, -1, -1).flatten(1))
        self._add([IMAGE] * (grid[0] * grid[1] // self._merge**2), kind)
