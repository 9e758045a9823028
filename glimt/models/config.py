"""`ModelConfig`: what the networks need to know of a checkpoint, typed. Imports no torch.

Two architectures:

    glm4v_moe   GLM-4.5V, GLM-4.6V (and their FP8 twins)      mixture of experts, pre-norm
    glm4v       GLM-4.1V-9B-Thinking, GLM-4.6V-Flash          dense, sandwich norms

`config_json.read_config` makes one from the checkpoint's files.
"""

from dataclasses import dataclass
from typing import Literal

Architecture = Literal["glm4v", "glm4v_moe"]

IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)  # CLIP's statistics, in every preprocessor file
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """Rotary embedding of the decoder: partial, with three position axes (M-RoPE).

    `sections` say how many consecutive rotary pairs follow the temporal, height and width axis;
    they add up to rotary_dim / 2. `interleaved`: pair j is (2j, 2j + 1), else (j, j + dim / 2).
    """

    theta: float
    rotary_dim: int
    sections: tuple[int, int, int]
    interleaved: bool


@dataclass(frozen=True, slots=True)
class MoeConfig:
    """Routed experts of the layers from `first_layer` on. `intermediate_size`: the width of each;
    `shared_intermediate_size`: of all shared ones together.
    """

    first_layer: int
    num_experts: int
    num_experts_per_token: int
    intermediate_size: int
    shared_intermediate_size: int
    num_groups: int
    num_groups_per_token: int
    norm_topk_prob: bool
    routed_scaling_factor: float


@dataclass(frozen=True, slots=True)
class TextConfig:
    """The decoder. `moe` is None for the dense architecture, `sandwich` True for it."""

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    attention_bias: bool
    rms_norm_eps: float
    vocab_size: int
    max_position_embeddings: int
    rope: RopeConfig
    sandwich: bool
    moe: MoeConfig | None

    def is_moe_layer(self, layer: int) -> bool:
        """Whether this layer's feed-forward is a mixture of experts."""
        return self.moe is not None and layer >= self.moe.first_layer


@dataclass(frozen=True, slots=True)
class VisionConfig:
    """The vision tower. Sizes in pixels and patches; `position_grid` is the table's side."""

    depth: int
    hidden_size: int
    num_heads: int
    in_channels: int
    patch_size: int
    temporal_patch_size: int
    merge_size: int
    position_grid: int
    block_intermediate_size: int  # config.json calls it out_hidden_size; it is both
    merger_intermediate_size: int
    out_hidden_size: int
    rms_norm_eps: float
    image_mean: tuple[float, float, float] = IMAGE_MEAN
    image_std: tuple[float, float, float] = IMAGE_STD

    @property
    def head_dim(self) -> int:
        """Width of an attention head; all of it is rotated."""
        return self.hidden_size // self.num_heads

    @property
    def patch_dim(self) -> int:
        """Numbers in a patch row: channels × frames × rows × columns."""
        return self.in_channels * self.temporal_patch_size * self.patch_size**2


@dataclass(frozen=True, slots=True)
class MediaTokens:
    """Ids of the tokens that frame and stand for media (they differ between generations)."""

    image: int
    video: int
    image_start: int
    image_end: int
    video_start: int
    video_end: int


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Everything the networks need to know. `dtype` is the checkpoint's, e.g. "bfloat16".

    `quantized`: config.json declares the family's FP8 scheme (per-channel weights, per-token
    activations). Which linears are FP8 is not read from here but from the tensors present.
    """

    architecture: Architecture
    text: TextConfig
    vision: VisionConfig
    tokens: MediaTokens
    eos_token_ids: tuple[int, ...]
    pad_token_id: int | None
    dtype: str
    quantized: bool
