"""A tiny random model, requests for it, and the pixels they refer to, as an executor wants them."""

import hashlib
import math
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch

from glimt.arena import SharedArena
from glimt.engine.plan import NewRow
from glimt.models.config_json import read_config
from glimt.models.glm4v import Glm4v
from glimt.parallel.mesh import Mesh
from glimt.runner.build import ExecutorSizes, build_executor, kv_layout
from glimt.runner.executor import ModelExecutor
from glimt.wire import ImageSpan, PixelRef, SamplingParams, Submit
from tests.support.configs import tiny_config
from tests.support.token_prompts import IMAGE, Prompt, PromptWriter

CPU = torch.device("cpu")


@cache
def tiny_model(kind: str, device: torch.device = CPU) -> Glm4v:
    """A float32 model of one architecture whose greedy text varies."""
    with torch.device("meta"):
        model = Glm4v(read_config(tiny_config(kind)), Mesh.single())
    model = model.to_empty(device="cpu").float()
    generator = torch.Generator().manual_seed(3)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if name.endswith("bias"):
            noise *= 0.2
        elif noise.ndim == 1:
            noise = 1 + 0.2 * noise
        elif name == "embedding.weight":
            noise *= 0.3
        elif name != "vision.position_embedding":
            noise *= (3 if name == "lm_head.weight" else 1) / math.sqrt(noise.shape[-1])
        parameter.copy_(noise)
    model.lm_head.weight[IMAGE] = 0  # a placeholder is never drawn
    return model.to(device)  # each (kind, device) is a model of its own


class Album:
    """Pixels of made-up images in one shared arena."""

    def __init__(self, nbytes: int = 1 << 22) -> None:
        self.arena = SharedArena.create(nbytes, 0)
        self._end = 0

    def add(self, patches: torch.Tensor, grid: tuple[int, int], start: int) -> ImageSpan:
        """Store uint8 patches [P, 3, F, 14, 14]."""
        content = patches.numpy().tobytes()
        ref = PixelRef(0, self._end, len(content))
        self.arena.view(ref)[:] = content
        self._end += len(content)
        return ImageSpan(
            content_hash=hashlib.sha256(content + bytes(grid)).digest(),
            start=start,
            num_tokens=grid[0] * grid[1] // 4,
            grid_h=grid[0],
            grid_w=grid[1],
            num_frames=patches.shape[2],
            pixels=ref,
        )


@dataclass
class Ask:
    """A request before anybody schedules it."""

    token_ids: np.ndarray  # int32 [L]
    positions: np.ndarray | None  # int32 [3, L]
    rope_delta: int
    images: tuple[ImageSpan, ...]
    sampling: SamplingParams

    def submit(self, request_id: int) -> Submit:
        """As it comes from the server."""
        return Submit(
            request_id=request_id,
            server=0,
            token_ids=self.token_ids.tobytes(),
            positions=None if self.positions is None else self.positions.tobytes(),
            rope_delta=self.rope_delta,
            images=self.images,
            sampling=self.sampling,
        )


def make_prompt(layout: str, seed: int) -> Prompt:
    """A prompt by its `layout`: letters t (3 tokens of text), i (2 × 3 image), v (2-step video),
    b (4 × 3 image); `seed` decides the content."""
    writer = PromptWriter(seed)
    for letter in layout:
        if letter == "t":
            writer.text(3)
        elif letter == "i":
            writer.image(2, 3)
        elif letter == "b":
            writer.image(4, 3)
        else:
            writer.video(2, 2, 2)
    return writer.prompt


def make_ask(album: Album, layout: str, seed: int, **sampling: Any) -> Ask:
    """A request with that prompt; `sampling` over greedy defaults and 8 tokens."""
    prompt = make_prompt(layout, seed)
    token_ids = np.array(prompt.token_ids, np.int32)
    images, at = [], 0
    for patches, grid in zip(prompt.patches, prompt.grids, strict=True):
        at += int((token_ids[at:] == IMAGE).argmax())
        images.append(album.add(patches, grid, at))
        at += images[-1].num_tokens
    positions, delta = _positions(len(token_ids), images)
    fields = {"max_tokens": 8, "temperature": 0.0, "seed": seed, **sampling}
    return Ask(token_ids, positions, delta, tuple(images), SamplingParams(**fields))


def new_row(ask: Ask, row: int, page_ids: tuple[int, ...] = ()) -> NewRow:
    """The request takes a row, with nothing generated yet."""
    return NewRow(
        row=row,
        token_ids=ask.token_ids,
        num_prompt_tokens=len(ask.token_ids),
        positions=ask.positions,
        rope_delta=ask.rope_delta,
        images=ask.images,
        sampling=ask.sampling,
        page_ids=page_ids,
    )


def make_executor(
    model: Glm4v, album: Album, *, num_pages: int = 64, page_size: int = 4, **limits: Any
) -> ModelExecutor:
    """An executor on the device of its model."""
    sizes = ExecutorSizes(
        num_pages=num_pages,
        page_size=page_size,
        max_num_seqs=limits.get("max_num_seqs", 8),
        max_model_len=limits.get("max_model_len", 160),
        max_patches=limits.get("max_patches", 64),
    )
    dtype = model.embedding.weight.dtype
    layout = kv_layout(model, page_size, dtype, limits.get("kv_dtype", "auto"))
    device = model.embedding.weight.device
    record = limits.get("record")
    arenas = [album.arena]
    return build_executor(
        model,
        layout,
        sizes,
        arenas,
        device,
        record,
        prompt_graphs=record is not None,
        tower_costs=limits.get("tower_costs"),
    )


def _positions(length: int, images: list[ImageSpan]) -> tuple[np.ndarray | None, int]:
    """Text counts up on all axes; an image stands still in time and counts rows and columns."""
    if not images:
        return None, 0
    positions = np.zeros((3, length), np.int32)
    index = position = 0
    for image in images:
        text = image.start - index
        positions[:, index : image.start] = position + np.arange(text)
        position += text
        height, width = image.grid_h // 2, image.grid_w // 2
        place = np.arange(image.num_tokens)
        inside = slice(image.start, image.start + image.num_tokens)
        positions[:, inside] = position + np.stack([place * 0, place // width, place % width])
        position += max(height, width)
        index = inside.stop
    positions[:, index:] = position + np.arange(length - index)
    return positions, int(positions.max()) + 1 - length
