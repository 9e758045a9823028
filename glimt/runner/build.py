"""`build_executor`: puts the parts of an executor together for a model and its sizes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from glimt.models.glm4v import Glm4v
from glimt.runner import streams
from glimt.runner.chunk_graphs import ChunkGraphs
from glimt.runner.encoder import ImageEncoder
from glimt.runner.executor import ModelExecutor
from glimt.runner.graphs import DecodeGraphs, Record
from glimt.runner.kv_cache import KvLayout
from glimt.runner.pixels import PixelReader, PixelSource
from glimt.runner.rows import RowTable
from glimt.runner.tower_costs import TowerCosts

KvDtype = Literal["auto", "fp8"]

# Graphs of steps with prompts give the right tokens (`pytest -m gpu tests/runner/test_cuda.py`) and
# save 2 ms of a prompt on a host that keeps up: not worth seconds of the start.
PROMPT_GRAPHS = False


@dataclass(frozen=True, slots=True)
class ExecutorSizes:
    """All limits of an executor.

    `max_patches`: of one pass of the vision tower, unless a single image has more, which has
    `max_image_patches` at most.
    `image_cache_tokens`: what plans let the image cache hold.
    """

    num_pages: int
    page_size: int
    max_num_seqs: int
    max_model_len: int
    max_patches: int
    max_image_patches: int = 0
    image_cache_tokens: int = 0


def kv_layout(model: Glm4v, page_size: int, dtype: torch.dtype, kv_dtype: KvDtype) -> KvLayout:
    """The KV cache's shape; `dtype` is the model's compute type, which "auto" takes over."""
    text = model.config.text
    return KvLayout(
        num_layers=text.num_layers,
        num_kv_heads=max(1, text.num_kv_heads // model.mesh.tp_size),
        head_dim=text.head_dim,
        page_size=page_size,
        dtype=torch.float8_e4m3fn if kv_dtype == "fp8" else dtype,
    )


def build_executor(
    model: Glm4v,
    layout: KvLayout,
    sizes: ExecutorSizes,
    arenas: Sequence[PixelSource],
    device: torch.device,
    record: Record | None = None,
    *,
    prompt_graphs: bool | None = None,
    tower_costs: TowerCosts | None = None,
) -> ModelExecutor:
    """An executor with its rows, KV cache and image cache, all allocated on `device`.

    `model` has its weights on `device`; `arenas` are the pixel sources by number. `record` makes
    graphs of steps, for which the KV cache gets a spare page; None makes none.
    `prompt_graphs`: also of the layers of steps with prompts; None: as `PROMPT_GRAPHS` says.
    `tower_costs`: where ranks have the whole tower, by what they share images out.
    """
    config = model.config
    rows = RowTable(
        max_rows=sizes.max_num_seqs,
        max_model_len=sizes.max_model_len,
        page_size=sizes.page_size,
        vocab_size=config.text.vocab_size,
        device=device,
    )
    has_two = streams.OWN_STREAM and device.type == "cuda" and model.mesh.tp_size == 1
    order = streams.two_streams(device) if has_two else streams.Streams(device)
    encoder = ImageEncoder(
        model,
        pixel_reader(model, arenas, device),
        max_patches=sizes.max_patches,
        device=device,
        mesh=model.mesh,
        costs=tower_costs,
        streams=order,
    )
    kv = layout.allocate(sizes.num_pages + (record is not None), device)
    order.follow_current()
    if record is None:
        return ModelExecutor(model, rows, kv, encoder, device, streams=order)
    given = (model, rows, kv, sizes.num_pages * sizes.page_size, record)
    prompt_graphs = PROMPT_GRAPHS if prompt_graphs is None else prompt_graphs
    # Steps with prompts differ between replicas that exchange rows, and a graph exchanges its own.
    alone = model.mesh.dp_size == 1
    chunk_graphs = ChunkGraphs(*given) if prompt_graphs and alone else None
    graphs = DecodeGraphs(*given)
    return ModelExecutor(model, rows, kv, encoder, device, graphs, chunk_graphs, order)


def pixel_reader(model: Glm4v, arenas: Sequence[PixelSource], device: torch.device) -> PixelReader:
    """Reads what this model's tower takes."""
    vision = model.config.vision
    return PixelReader(
        arenas, patch_size=vision.patch_size, merge_size=vision.merge_size, device=device
    )
