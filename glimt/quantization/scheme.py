"""The `quantization_config` of config.json, as the published FP8 repositories hold it.

Its ignore list names what stays unquantised. The published list follows a serving engine's modules
("visual.blocks.0.attn.qkv_proj"), which no tensor is called; it is kept as it is, since engines
match against it. No dense checkpoint was published in FP8: its list has the same patterns and also
the tensors' own names, by which transformers finds the vision tower's linears to leave alone.
"""

from collections.abc import Iterator
from typing import Any

from glimt.models.config import ModelConfig, TextConfig, VisionConfig

Json = dict[str, Any]

_MERGER = ("proj", "gate_up_proj", "down_proj", "post_projection_norm", "post_projection_norm.bias")
_TOWER = (
    "patch_embed.proj",
    "patch_embed.proj.bias",
    "post_conv_layernorm",
    "embeddings.position_embedding",
    "post_layernorm",
    "downsample",
    "downsample.bias",
)
_BLOCK = (
    "norm1",
    "norm2",
    "attn.qkv_proj",
    "attn.proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.gate_up_proj",
    "mlp.down_proj",
)
_STORED_BLOCK = ("attn.qkv", "attn.proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
_STORED_MERGER = ("proj", "gate_proj", "up_proj", "down_proj")


def quantization_config(config: ModelConfig) -> Json:
    """compressed-tensors: e4m3 weights with a scale per row, activations with one per token."""
    common: Json = {
        "actorder": None,
        "block_structure": None,
        "group_size": None,
        "num_bits": 8,
        "observer_kwargs": {},
        "symmetric": True,
        "type": "float",
    }
    weights = {**common, "dynamic": False, "observer": "minmax", "strategy": "channel"}
    activations = {**common, "dynamic": True, "observer": None, "strategy": "token"}
    return {
        "config_groups": {
            "group_0": {
                "input_activations": activations,
                "output_activations": None,
                "targets": ["Linear"],
                "weights": weights,
            }
        },
        "format": "float-quantized",
        "ignore": list(ignored(config)),
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
    }


def ignored(config: ModelConfig) -> Iterator[str]:
    """The ignore list: 527 names for the published mixture-of-experts models."""
    yield from ("lm_head", "model.embed_tokens", "model.norm")
    for layer in range(config.text.num_layers):
        yield from _layer(config.text, layer)
    yield from _vision(config.vision)
    if config.text.moe is None:
        yield from _stored_vision(config.vision)


def _layer(text: TextConfig, layer: int) -> Iterator[str]:
    name = f"model.layers.{layer}"
    yield from (f"{name}.input_layernorm", f"{name}.post_attention_layernorm")
    if text.sandwich:
        yield from (f"{name}.post_self_attn_layernorm", f"{name}.post_mlp_layernorm")
    yield from (f"{name}.self_attn.{letter}_proj.bias" for letter in "qkv")
    if text.is_moe_layer(layer):
        yield from (f"{name}.mlp.gate", f"{name}.mlp.gate.e_score_correction_bias")


def _vision(vision: VisionConfig) -> Iterator[str]:
    for block in range(vision.depth):
        yield from (f"visual.blocks.{block}.{part}" for part in _BLOCK)
    yield from (f"visual.{part}" for part in _TOWER)
    yield from (f"visual.merger.{part}" for part in _MERGER)


def _stored_vision(vision: VisionConfig) -> Iterator[str]:
    for block in range(vision.depth):
        yield from (f"model.visual.blocks.{block}.{part}" for part in _STORED_BLOCK)
    yield from (f"model.visual.merger.{part}" for part in _STORED_MERGER)
