"""Which tensors of a checkpoint make up which parameters of ours: one table, written as functions.

D hidden · V vocabulary · I feed-forward width · E experts · Hv vision width
A `Source` is (a part of) one stored tensor and the rows of the parameter that it fills; a
fused parameter (q, k, v; gate, up; all experts) has several. Under tensor parallelism a rank
takes its heads, its columns of the feed-forward and its rows of the vocabulary; what cannot
be split is taken whole.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from glimt.experts.placement import Placement
from glimt.models.config import ModelConfig, MoeConfig, TextConfig, VisionConfig
from glimt.models.split import UNDIVIDED, Range, Split
from glimt.parallel.mesh import Mesh

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Source:
    """Rows (and columns) of a stored tensor, and where in the parameter they go."""

    name: str  # in the checkpoint
    shape: Shape  # whole, as stored
    rows: Range  # of the stored tensor
    columns: Range | None = None  # None = all
    start: int = 0  # first row of the parameter (of its expert) that it fills
    expert: int | None = None  # of this rank's
    # patch: [Hv, channel, frame, row, column] flattened to [Hv, patch]
    # block: [D, Hv, 2, 2] to [D, 2 · 2 · Hv], the four patches of a block one after the other
    layout: Literal["plain", "patch", "block"] = "plain"

    @property
    def num_rows(self) -> int:
        """Rows that are taken."""
        return self.rows[1] - self.rows[0]


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of this rank. `module`: the unit that is FP8 or not, None = never FP8."""

    name: str
    shape: Shape
    sources: tuple[Source, ...]
    module: str | None = None


@dataclass(frozen=True, slots=True)
class Share:
    """What one rank holds: its split of the decoder, of the vision tower, and of the experts
    (either each expert's columns with `text`, or whole experts with `experts`, in order or as
    `placement` says)."""

    text: Split = UNDIVIDED
    vision: Split = UNDIVIDED
    experts: Split = UNDIVIDED
    placement: Placement | None = None

    @staticmethod
    def of(mesh: Mesh) -> "Share":
        """The share of one rank of `mesh`."""
        return Share(
            text=Split(mesh.tp_rank, mesh.tp_size),
            vision=Split(mesh.tower.tp_rank, mesh.tower.tp_size),
            experts=Split(mesh.ep_rank, mesh.ep_size),
            placement=mesh.placement,
        )

    def experts_of(self, layer: int, num_experts: int) -> Sequence[int]:
        """The experts of one layer that the rank holds, in the order of their places."""
        if self.placement is not None:
            return self.placement.layers[layer][self.experts.rank]
        return range(*self.experts.part(num_experts, "experts"))


WHOLE = Share()


def parameters(config: ModelConfig, share: Share = WHOLE) -> Iterator[Parameter]:
    """All parameters of one rank. Raises BadSettings if the sizes cannot be divided."""
    text, tp = config.text, share.text
    yield _vocabulary("embedding.weight", "model.language_model.embed_tokens.weight", text, tp)
    for layer in range(text.num_layers):
        yield from _layer(text, layer, share)
    yield _whole("norm.weight", "model.language_model.norm.weight", (text.hidden_size,))
    yield _vocabulary("lm_head.weight", "lm_head.weight", text, tp)
    yield from _vision(config.vision, share.vision)


def fp8_modules(config: ModelConfig) -> frozenset[str]:
    """What the published FP8 checkpoints quantise: every projection of the text layers."""
    return frozenset(p.module for p in parameters(config) if p.module is not None)


def scale_name(parameter: str) -> str:
    """The parameter that holds an FP8 parameter's scales, one per row."""
    return f"{parameter}_scale"


# ------------------------------------------------------------------------------- building blocks


def _whole(
    name: str, source: str, shape: Shape, layout: Literal["plain", "patch", "block"] = "plain"
) -> Parameter:
    """A parameter that every rank holds whole."""
    flat = shape if layout == "plain" else (shape[0], _product(shape[1:]))
    return Parameter(name, flat, (Source(source, shape, (0, shape[0]), layout=layout),))


def _stacked(name: str, parts: Sequence[Source], module: str | None = None) -> Parameter:
    """Parts under each other, in order."""
    sources, num_rows = [], 0
    for part in parts:
        sources.append(replace(part, start=num_rows))
        num_rows += part.num_rows
    return Parameter(name, (num_rows, *parts[0].shape[1:]), tuple(sources), module)


def _row_parallel(name: str, source: str, shape: Shape, columns: Range, module: str) -> Parameter:
    """[out, in] of which a rank holds some inputs; its product is a partial sum."""
    whole = columns == (0, shape[1])
    part = Source(source, shape, (0, shape[0]), None if whole else columns)
    return Parameter(name, (shape[0], columns[1] - columns[0]), (part,), module)


def _vocabulary(name: str, source: str, text: TextConfig, tp: Split) -> Parameter:
    rows = tp.part(text.vocab_size, "vocabulary")
    return _stacked(name, [Source(source, (text.vocab_size, text.hidden_size), rows)])


def _product(shape: Shape) -> int:
    product = 1
    for size in shape:
        product *= size
    return product


# -------------------------------------------------------------------------------------- decoder


def _layer(text: TextConfig, layer: int, share: Share) -> Iterator[Parameter]:
    tp = share.text
    ours, theirs = f"layers.{layer}", f"model.language_model.layers.{layer}"
    norms = {"norm_1": "input_layernorm", "norm_2": "post_attention_layernorm"}
    if text.sandwich:
        norms |= {"norm_1_post": "post_self_attn_layernorm", "norm_2_post": "post_mlp_layernorm"}
    for norm, source in norms.items():
        yield _whole(f"{ours}.{norm}.weight", f"{theirs}.{source}.weight", (text.hidden_size,))
    yield from _attention(text, f"{ours}.attention", f"{theirs}.self_attn", tp)
    if text.moe is not None and text.is_moe_layer(layer):
        held = share.experts_of(layer, text.moe.num_experts)
        yield from _moe(text, text.moe, f"{ours}.moe", f"{theirs}.mlp", share, held)
    else:
        width, fused = text.intermediate_size, text.sandwich
        yield from _mlp(f"{ours}.mlp", f"{theirs}.mlp", text.hidden_size, width, tp, fused=fused)


def _attention(text: TextConfig, ours: str, theirs: str, tp: Split) -> Iterator[Parameter]:
    hidden, head = text.hidden_size, text.head_dim
    query = tp.part(text.num_heads, "attention heads")
    kv = tp.kv_heads(text.num_kv_heads)
    weights, biases = [], []
    for letter, heads, num_heads in (
        ("q", query, text.num_heads),
        ("k", kv, text.num_kv_heads),
        ("v", kv, text.num_kv_heads),
    ):
        rows = heads[0] * head, heads[1] * head
        out = num_heads * head
        weights.append(Source(f"{theirs}.{letter}_proj.weight", (out, hidden), rows))
        biases.append(Source(f"{theirs}.{letter}_proj.bias", (out,), rows))
    yield _stacked(f"{ours}.qkv.weight", weights, f"{ours}.qkv")
    if text.attention_bias:
        yield _stacked(f"{ours}.qkv.bias", biases)
    columns = query[0] * head, query[1] * head
    shape = hidden, text.num_heads * head
    yield _row_parallel(f"{ours}.o.weight", f"{theirs}.o_proj.weight", shape, columns, f"{ours}.o")


def _gate_up(theirs: str, hidden: int, width: int, part: Range, *, fused: bool) -> list[Source]:
    """Gate rows, then up rows: two stored tensors, or one that already holds both."""
    start, stop = part
    if not fused:
        shape = width, hidden
        return [Source(f"{theirs}.{x}_proj.weight", shape, part) for x in ("gate", "up")]
    name, shape = f"{theirs}.gate_up_proj.weight", (2 * width, hidden)
    if part == (0, width):
        return [Source(name, shape, (0, 2 * width))]
    return [Source(name, shape, part), Source(name, shape, (width + start, width + stop))]


def _mlp(
    ours: str, theirs: str, hidden: int, width: int, tp: Split, *, fused: bool = False
) -> Iterator[Parameter]:
    part = tp.part(width, "feed-forward width")
    gate_up = _gate_up(theirs, hidden, width, part, fused=fused)
    yield _stacked(f"{ours}.gate_up.weight", gate_up, f"{ours}.gate_up")
    down = f"{theirs}.down_proj.weight"
    yield _row_parallel(f"{ours}.down.weight", down, (hidden, width), part, f"{ours}.down")


def _moe(
    text: TextConfig, moe: MoeConfig, ours: str, theirs: str, share: Share, held: Sequence[int]
) -> Iterator[Parameter]:
    hidden, width, gate = text.hidden_size, moe.intermediate_size, f"{theirs}.gate"
    yield _whole(f"{ours}.router.weight", f"{gate}.weight", (moe.num_experts, hidden))
    yield _whole(f"{ours}.router.bias", f"{gate}.e_score_correction_bias", (moe.num_experts,))
    split = share.text if share.experts.size == 1 else UNDIVIDED
    start, stop = split.part(width, "expert width")
    gate_up: list[Source] = []
    down: list[Source] = []
    for place, expert in enumerate(held):
        one = _mlp("", f"{theirs}.experts.{expert}", hidden, width, split)
        for stack, parameter in zip((gate_up, down), one, strict=True):
            stack += [replace(source, expert=place) for source in parameter.sources]
    module, count, local = f"{ours}.experts", len(held), stop - start
    yield Parameter(f"{module}.gate_up", (count, 2 * local, hidden), tuple(gate_up), module)
    yield Parameter(f"{module}.down", (count, hidden, local), tuple(down), module)
    shared = moe.shared_intermediate_size
    yield from _mlp(f"{ours}.shared", f"{theirs}.shared_experts", hidden, shared, share.text)


# ---------------------------------------------------------------------------------------- vision


def _vision(vision: VisionConfig, split: Split) -> Iterator[Parameter]:
    width, out, frames = vision.hidden_size, vision.out_hidden_size, vision.temporal_patch_size
    side, merge = vision.patch_size, vision.merge_size
    ours, theirs = "vision", "model.visual"
    patch = (width, vision.in_channels, frames, side, side)
    block = (out, width, merge, merge)
    proj, down = f"{theirs}.patch_embed.proj", f"{theirs}.downsample"
    yield _whole(f"{ours}.patch_embed.weight", f"{proj}.weight", patch, "patch")
    yield _whole(f"{ours}.patch_embed.bias", f"{proj}.bias", (width,))
    yield _whole(f"{ours}.norm_in.weight", f"{theirs}.post_conv_layernorm.weight", (width,))
    table = f"{theirs}.embeddings.position_embedding.weight"
    yield _whole(f"{ours}.position_embedding", table, (vision.position_grid**2, width))
    for n in range(vision.depth):
        yield from _vision_block(vision, f"{ours}.blocks.{n}", f"{theirs}.blocks.{n}", split)
    yield _whole(f"{ours}.norm_out.weight", f"{theirs}.post_layernorm.weight", (width,))
    yield _whole(f"{ours}.downsample.weight", f"{down}.weight", block, "block")
    yield _whole(f"{ours}.downsample.bias", f"{down}.bias", (out,))
    ours, theirs = f"{ours}.merger", f"{theirs}.merger"
    yield _whole(f"{ours}.proj.weight", f"{theirs}.proj.weight", (out, out))
    for kind in ("weight", "bias"):
        norm = f"{theirs}.post_projection_norm.{kind}"
        yield _whole(f"{ours}.norm.{kind}", norm, (out,))
    yield from _never_fp8(_mlp(ours, theirs, out, vision.merger_intermediate_size, split))


def _vision_block(
    vision: VisionConfig, ours: str, theirs: str, split: Split
) -> Iterator[Parameter]:
    width, head = vision.hidden_size, vision.head_dim
    heads = split.part(vision.num_heads, "vision heads")
    part = heads[0] * head, heads[1] * head
    for n in (1, 2):
        yield _whole(f"{ours}.norm_{n}.weight", f"{theirs}.norm{n}.weight", (width,))
    name, shape = f"{theirs}.attn.qkv.weight", (3 * width, width)
    thirds = [Source(name, shape, (i * width + part[0], i * width + part[1])) for i in range(3)]
    if part == (0, width):
        thirds = [Source(name, shape, (0, 3 * width))]
    yield _stacked(f"{ours}.attention.qkv.weight", thirds)
    proj = f"{ours}.attention.proj.weight", f"{theirs}.attn.proj.weight"
    yield from _never_fp8([_row_parallel(*proj, (width, width), part, "")])
    mlp = _mlp(f"{ours}.mlp", f"{theirs}.mlp", width, vision.block_intermediate_size, split)
    yield from _never_fp8(mlp)


def _never_fp8(family: Iterator[Parameter] | list[Parameter]) -> Iterator[Parameter]:
    for parameter in family:
        yield replace(parameter, module=None)
