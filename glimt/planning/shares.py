"""What one GPU holds of a model under a layout, in parameters and bytes, part by part.

The same division as the loader's (`models/names.py`), as arithmetic and without torch; a test
holds the two against each other tensor by tensor.
"""

from dataclasses import dataclass

from glimt.models.config import ModelConfig, MoeConfig, TextConfig, VisionConfig
from glimt.planning.layout import Layout

SCALE_BYTES = 4  # one float32 for each row of an FP8 weight


@dataclass(frozen=True, slots=True)
class Linear:
    """Elements of linears that an FP8 checkpoint quantises, and their rows (one scale each)."""

    elements: int = 0
    rows: int = 0

    def __add__(self, other: "Linear") -> "Linear":
        return Linear(self.elements + other.elements, self.rows + other.rows)

    def __mul__(self, count: int) -> "Linear":
        return Linear(self.elements * count, self.rows * count)

    def num_bytes(self, fp8: bool) -> int:
        """Bytes as FP8 with scales, or in 16 bits."""
        return self.elements + SCALE_BYTES * self.rows if fp8 else 2 * self.elements


@dataclass(frozen=True, slots=True)
class GpuShare:
    """One GPU's weights. `attention` and the like are over all layers; `expert` is this GPU's part
    of one routed expert of one layer, `num_experts` how many of a layer it holds (a part of)."""

    fp8: bool
    attention: Linear
    dense: Linear  # feed-forward of the layers without experts
    shared: Linear  # shared experts
    expert: Linear
    num_experts: int
    num_moe_layers: int
    router_bytes: int
    head_bytes: int
    embedding_bytes: int
    small_bytes: int  # norms and biases
    vision_bytes: int

    @property
    def weight_bytes(self) -> int:
        """All that lies in memory."""
        experts = self.expert * (self.num_experts * self.num_moe_layers)
        linears = self.attention + self.dense + self.shared + experts
        return (
            linears.num_bytes(self.fp8)
            + self.router_bytes
            + self.head_bytes
            + self.embedding_bytes
            + self.small_bytes
            + self.vision_bytes
        )

    def read_bytes(self, experts_touched: float) -> float:
        """What a step reads of them when, in each layer, it touches so many of the experts held
        here. The embedding is gathered and the tower idle: neither counts."""
        always = self.attention + self.dense + self.shared
        touched = experts_touched * self.num_moe_layers * self.expert.num_bytes(self.fp8)
        return always.num_bytes(self.fp8) + self.router_bytes + self.head_bytes + touched


def gpu_share(config: ModelConfig, layout: Layout, *, fp8: bool) -> GpuShare:
    """What the fullest GPU of `layout` holds."""
    text, tp = config.text, layout.tp
    moe = text.moe
    num_moe = 0 if moe is None else text.num_layers - moe.first_layer
    num_dense = text.num_layers - num_moe
    hidden = text.hidden_size
    return GpuShare(
        fp8=fp8,
        attention=_attention(text, tp) * text.num_layers,
        dense=_mlp(hidden, text.intermediate_size // tp) * num_dense,
        shared=Linear() if moe is None else _mlp(hidden, _shared(moe) // tp) * num_moe,
        expert=Linear() if moe is None else _mlp(hidden, moe.intermediate_size // layout.expert_tp),
        num_experts=0 if moe is None else -(-moe.num_experts // layout.ep),
        num_moe_layers=num_moe,
        router_bytes=0 if moe is None else num_moe * moe.num_experts * (2 * hidden + 4),
        head_bytes=2 * text.vocab_size * hidden // tp,
        embedding_bytes=2 * text.vocab_size * hidden // tp,
        small_bytes=2 * _norms_and_biases(text, tp),
        vision_bytes=2 * vision_elements(config.vision, layout.vision_split),
    )


def kv_heads(text: TextConfig, tp: int) -> int:
    """Key-value heads of one GPU; neighbours hold the same one when there are too few."""
    return max(1, text.num_kv_heads // tp)


def kv_token_bytes(text: TextConfig, tp: int, *, fp8: bool) -> int:
    """Bytes of one token's keys and values on one GPU; FP8 has a scale for each vector."""
    vector = text.head_dim + SCALE_BYTES if fp8 else 2 * text.head_dim
    return text.num_layers * 2 * kv_heads(text, tp) * vector


def _shared(moe: MoeConfig) -> int:
    return moe.shared_intermediate_size


def _mlp(hidden: int, width: int) -> Linear:
    """Gate, up and down."""
    return Linear(3 * hidden * width, 2 * width + hidden)


def _attention(text: TextConfig, tp: int) -> Linear:
    query = text.num_heads // tp * text.head_dim
    qkv_rows = query + 2 * kv_heads(text, tp) * text.head_dim
    hidden = text.hidden_size
    return Linear(qkv_rows * hidden + hidden * query, qkv_rows + hidden)


def _norms_and_biases(text: TextConfig, tp: int) -> int:
    norms = (4 if text.sandwich else 2) * text.num_layers + 1
    rows = (text.num_heads // tp + 2 * kv_heads(text, tp)) * text.head_dim
    return norms * text.hidden_size + (text.num_layers * rows if text.attention_bias else 0)


def vision_elements(vision: VisionConfig, split: int) -> int:
    """Parameters of the tower on one GPU when its heads and widths are split `split` ways."""
    width, out = vision.hidden_size, vision.out_hidden_size
    block = 2 * width + (4 * width * width + 3 * width * vision.block_intermediate_size) // split
    whole = (
        vision.patch_dim * width + width  # patch embedding
        + vision.position_grid**2 * width
        + 2 * width  # norms before and after
        + vision.merge_size**2 * width * out + out  # downsample
        + out * out + 2 * out  # projection and its norm
    )  # fmt: skip
    merger = 3 * out * vision.merger_intermediate_size // split
    return vision.depth * block + whole + merger
