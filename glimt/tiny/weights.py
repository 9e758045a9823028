"""Random tensors under the hub's names. Activations keep a size near one through all layers, and
greedy text varies, so that a wrong permutation anywhere changes the answer."""

import math
import zlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

Shape = tuple[int, ...]


def random_tensors(
    config: dict[str, Any], seed: int, words: range, unspoken: list[int]
) -> dict[str, Tensor]:
    """All tensors of a BF16 checkpoint: hub name -> BF16 (the router's bias float32).

    Args:
        config: the content of config.json.
        seed: the same seed and name give the same numbers, whatever else is in the model.
        words: token ids that greedy decoding mostly chooses from.
        unspoken: token ids that greedy decoding shall never choose (media placeholders, padding).
    """
    tensors = {}
    for name, shape in tensor_shapes(config):
        tensor = _random_tensor(name, shape, seed)
        if name == "lm_head.weight":
            tensor[: words.start] *= 0.5
            tensor[words.stop :] *= 0.5
            tensor[unspoken] = 0.0
        is_float32 = name.endswith("e_score_correction_bias")
        tensors[name] = tensor if is_float32 else tensor.bfloat16()
    return tensors


def quantize(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same checkpoint in the published FP8 form: every projection of the text layers as e4m3
    with one float32 scale per output row, s = max |w| / 448."""
    quantized = {}
    for name, tensor in tensors.items():
        if ".language_model.layers." not in name or not name.endswith("_proj.weight"):
            quantized[name] = tensor
            continue
        weight = tensor.float()
        scale = (weight.abs().amax(1, keepdim=True) / 448.0).clamp(min=1e-12)
        quantized[name] = (weight / scale).clamp(-448.0, 448.0).to(torch.float8_e4m3fn)
        quantized[f"{name}_scale"] = scale
    return quantized


def tensor_shapes(config: dict[str, Any]) -> Iterator[tuple[str, Shape]]:
    """(hub name, shape) of every tensor of a BF16 checkpoint with this config.json."""
    text = config["text_config"]
    hidden = text["hidden_size"]
    for n in range(text["num_hidden_layers"]):
        prefix = f"model.language_model.layers.{n}."
        for name, shape in [*_attention_shapes(text), *_mlp_shapes(text, n)]:
            yield prefix + name, shape
        norms = ["input_layernorm", "post_attention_layernorm"]
        if "n_routed_experts" not in text:
            norms += ["post_self_attn_layernorm", "post_mlp_layernorm"]
        for norm in norms:
            yield f"{prefix}{norm}.weight", (hidden,)
    for name, shape in _vision_shapes(config["vision_config"]):
        yield f"model.visual.{name}", shape
    yield "model.language_model.embed_tokens.weight", (text["vocab_size"], hidden)
    yield "model.language_model.norm.weight", (hidden,)
    yield "lm_head.weight", (text["vocab_size"], hidden)


def _attention_shapes(text: dict[str, Any]) -> Iterator[tuple[str, Shape]]:
    hidden, num_heads = text["hidden_size"], text["num_attention_heads"]
    head_dim = text.get("head_dim", hidden // num_heads)
    widths = {"q": num_heads * head_dim}
    widths["k"] = widths["v"] = text["num_key_value_heads"] * head_dim
    for x, width in widths.items():
        yield f"self_attn.{x}_proj.weight", (width, hidden)
        yield f"self_attn.{x}_proj.bias", (width,)
    yield "self_attn.o_proj.weight", (hidden, widths["q"])


def _mlp_shapes(text: dict[str, Any], layer: int) -> Iterator[tuple[str, Shape]]:
    hidden, width = text["hidden_size"], text["intermediate_size"]
    if "n_routed_experts" not in text:
        yield "mlp.gate_up_proj.weight", (2 * width, hidden)
        yield "mlp.down_proj.weight", (hidden, width)
        return
    modules = {"mlp": width}
    if layer >= text["first_k_dense_replace"]:
        num_experts, width = text["n_routed_experts"], text["moe_intermediate_size"]
        yield "mlp.gate.weight", (num_experts, hidden)
        yield "mlp.gate.e_score_correction_bias", (num_experts,)
        modules = {f"mlp.experts.{e}": width for e in range(num_experts)}
        modules["mlp.shared_experts"] = width * text["n_shared_experts"]
    for module, width in modules.items():
        yield f"{module}.gate_proj.weight", (width, hidden)
        yield f"{module}.up_proj.weight", (width, hidden)
        yield f"{module}.down_proj.weight", (hidden, width)


def _vision_shapes(vision: dict[str, Any]) -> Iterator[tuple[str, Shape]]:
    width, out, merger = (
        vision["hidden_size"],
        vision["out_hidden_size"],
        vision["intermediate_size"],
    )
    patch, merge = vision["patch_size"], vision["spatial_merge_size"]
    temporal = vision["temporal_patch_size"]
    for n in range(vision["depth"]):
        block = f"blocks.{n}."
        yield block + "norm1.weight", (width,)
        yield block + "norm2.weight", (width,)
        yield block + "attn.qkv.weight", (3 * width, width)
        yield block + "attn.proj.weight", (width, width)
        yield block + "mlp.gate_proj.weight", (out, width)
        yield block + "mlp.up_proj.weight", (out, width)
        yield block + "mlp.down_proj.weight", (width, out)
    yield "patch_embed.proj.weight", (width, vision["in_channels"], temporal, patch, patch)
    yield "patch_embed.proj.bias", (width,)
    yield "post_conv_layernorm.weight", (width,)
    yield "embeddings.position_embedding.weight", ((vision["image_size"] // patch) ** 2, width)
    yield "post_layernorm.weight", (width,)
    yield "downsample.weight", (out, width, merge, merge)
    yield "downsample.bias", (out,)
    yield "merger.proj.weight", (out, out)
    yield "merger.post_projection_norm.weight", (out,)
    yield "merger.post_projection_norm.bias", (out,)
    yield "merger.gate_proj.weight", (merger, out)
    yield "merger.up_proj.weight", (merger, out)
    yield "merger.down_proj.weight", (out, merger)


def _random_tensor(name: str, shape: Shape, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed((zlib.crc32(name.encode()) ^ seed) & 0x7FFF_FFFF)
    noise: Tensor = torch.randn(shape, generator=generator)
    if name.endswith("e_score_correction_bias"):
        return noise * 0.15
    if name.endswith("embed_tokens.weight"):
        return noise * 0.3  # small beside the layers' share, or each token would repeat itself
    if name.endswith("position_embedding.weight"):
        return noise * 0.5
    if name.endswith(".bias"):
        return noise * 0.2
    if len(shape) == 1:  # norms
        return 1.0 + 0.2 * noise
    gain = 3.0 if name == "lm_head.weight" else 1.0
    return noise * (gain / math.sqrt(noise[0].numel()))
