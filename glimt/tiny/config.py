"""The JSON files of a checkpoint: every key that the published ones have, at any sizes."""

from dataclasses import dataclass
from typing import Any, Literal

Json = dict[str, Any]
Variant = Literal["moe", "dense"]
Style = Literal["4.5", "4.6", "4.1"]

VOCAB_SIZE = 640  # padded past the last token, as the published vocabularies are
MAX_POSITIONS = 4096
TOKEN_PIXELS = 28 * 28  # pixels behind one image token
IMAGE_TOKENS, VIDEO_TOKENS = 64, 256  # upper bounds


@dataclass(frozen=True, slots=True)
class Sizes:
    """What differs between checkpoints of one architecture: keys of the two inner configs."""

    text: Json
    vision: Json


def model_config(
    variant: Variant,
    style: Style,
    ids: dict[str, int],
    *,
    fp8: bool = False,
    sizes: Sizes | None = None,
) -> Json:
    """config.json. `ids`: control token -> id; `sizes`: those of the tiny checkpoints if None."""
    sizes = sizes or tiny_sizes(variant)
    kind = "glm4v_moe" if variant == "moe" else "glm4v"
    text = _text_config(variant, style, ids, sizes.text)
    config: Json = {
        "architectures": [
            "Glm4vMoeForConditionalGeneration"
            if variant == "moe"
            else "Glm4vForConditionalGeneration"
        ],
        "model_type": kind,
        "image_start_token_id": ids["<|begin_of_image|>"],
        "image_end_token_id": ids["<|end_of_image|>"],
        "video_start_token_id": ids["<|begin_of_video|>"],
        "video_end_token_id": ids["<|end_of_video|>"],
        "image_token_id": ids["<|image|>"],
        "video_token_id": ids["<|video|>"],
        "tie_word_embeddings": False,
        "transformers_version": "5.0.0rc0" if style == "4.6" else "4.57.1",
        "text_config": text,
        "vision_config": {
            "model_type": f"{kind}_vision" if style == "4.6" else kind,
            "attention_bias": False,
            "attention_dropout": 0.0,
            "hidden_act": "silu",
            "image_size": 336,
            "in_channels": 3,
            "initializer_range": 0.02,
            "intermediate_size": text["intermediate_size"],
            "out_hidden_size": text["hidden_size"],
            "patch_size": 14,
            "rms_norm_eps": 1e-05,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            **sizes.vision,
        },
    }
    if fp8:
        config["quantization_config"] = _quantization_config(config)
    return config


def generation_config(style: Style, ids: dict[str, int]) -> Json:
    """generation_config.json: the published sampling defaults of that generation."""
    sampling = (
        {"temperature": 0.8, "top_p": 0.6, "top_k": 2}
        if style == "4.6"
        else {"temperature": 1.0, "top_p": 0.0001, "top_k": 1}
    )
    return {
        "do_sample": True,
        **sampling,
        "eos_token_id": _eos_ids(style, ids),
        "pad_token_id": ids["<|endoftext|>"],
    }


def preprocessor_config(
    kind: Literal["Image", "Video"], style: Style, limits: tuple[int, int] | None = None
) -> Json:
    """preprocessor_config.json or video_preprocessor_config.json.

    `limits`: the smallest and the largest volume frames × height × width, where a still counts as
    two frames; those of the tiny checkpoints if None.
    """
    family = "Glm46V" if style == "4.6" else "Glm4v"
    num_tokens = IMAGE_TOKENS if kind == "Image" else VIDEO_TOKENS
    shortest, longest = limits or (16 * TOKEN_PIXELS, 2 * num_tokens * TOKEN_PIXELS)
    return {
        "size": {"shortest_edge": shortest, "longest_edge": longest},
        "do_rescale": True,
        "patch_size": 14,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        f"{kind.lower()}_processor_type": f"{family}{kind}Processor",
        "processor_class": f"{family}Processor",
    }


def tokenizer_config(max_positions: int = MAX_POSITIONS) -> Json:
    """tokenizer_config.json, as far as anybody reads it."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "clean_up_tokenization_spaces": False,
        "padding_side": "left",
        "model_max_length": max_positions,
    }


def _eos_ids(style: Style, ids: dict[str, int]) -> list[int]:
    names = ["<|endoftext|>", "<|user|>", "<|observation|>"]
    return [ids[name] for name in (*names, "</answer>")[: 4 if style == "4.1" else 3]]


def tiny_sizes(variant: Variant) -> Sizes:
    """Those of the tiny checkpoints."""
    text = _MOE_SIZES if variant == "moe" else _DENSE_SIZES
    vision = {"depth": 2, "hidden_size": 256, "num_heads": 2}
    return Sizes({**_TINY_TEXT, **text}, vision)


def _text_config(variant: Variant, style: Style, ids: dict[str, int], sizes: Json) -> Json:
    kind = "glm4v_moe_text" if variant == "moe" else "glm4v_text"
    text: Json = {
        "model_type": kind,
        "attention_bias": True,
        "attention_dropout": 0.0,
        "dtype": "bfloat16",
        "eos_token_id": _eos_ids(style, ids),
        "pad_token_id": ids["<|endoftext|>"],
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "rms_norm_eps": 1e-05,
        "use_cache": True,
    }
    if variant == "moe":
        text |= _MOE_ROUTING
    text |= sizes
    mrope = {"rope_type": "default", "mrope_section": [8, 12, 12]}
    if style == "4.6":
        text["rope_parameters"] = {**mrope, "rope_theta": 500000, "partial_rotary_factor": 0.5}
        if variant == "moe":
            text |= {"partial_rotary_factor": 0.5, "num_nextn_predict_layers": 0}
    else:
        text |= {"rope_theta": 10000.0, "rope_scaling": mrope, "partial_rotary_factor": 0.5}
    return text


# What all published mixtures have in common.
_MOE_ROUTING: Json = {
    "first_k_dense_replace": 1,
    "n_group": 1,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "routed_scaling_factor": 1.0,
    "topk_group": 1,
    "use_qk_norm": False,
}
# Head dim 128 and multiples of 64 everywhere: the GPU kernels run on these sizes too.
_TINY_TEXT: Json = {
    "intermediate_size": 192,
    "max_position_embeddings": MAX_POSITIONS,
    "num_hidden_layers": 3,
    "vocab_size": VOCAB_SIZE,
}
_MOE_SIZES: Json = {
    "hidden_size": 128,
    "head_dim": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "moe_intermediate_size": 64,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
}
_DENSE_SIZES: Json = {
    "hidden_size": 256,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}


def _quantization_config(config: Json) -> Json:
    """What the published FP8 repos say, with their habit of naming a serving engine's modules
    ("visual.blocks.0.attn.qkv_proj") in `ignore`, which no tensor of the files is called."""
    text, vision = config["text_config"], config["vision_config"]
    ignore = ["lm_head", "model.embed_tokens", "model.norm"]
    for n in range(text["num_hidden_layers"]):
        layer = f"model.layers.{n}"
        ignore += [f"{layer}.input_layernorm", f"{layer}.post_attention_layernorm"]
        ignore += [f"{layer}.self_attn.{x}_proj.bias" for x in "qkv"]
        if n >= text.get("first_k_dense_replace", text["num_hidden_layers"]):
            ignore += [f"{layer}.mlp.gate", f"{layer}.mlp.gate.e_score_correction_bias"]
    block = ("norm1", "norm2", "attn.qkv_proj", "attn.proj", "mlp.gate_up_proj", "mlp.down_proj")
    ignore += [f"visual.blocks.{n}.{x}" for n in range(vision["depth"]) for x in block]
    ignore += [f"visual.merger.{x}" for x in ("proj", "gate_up_proj", "down_proj")]
    ignore += [f"visual.{x}" for x in ("patch_embed.proj", "downsample")]
    common = {"num_bits": 8, "type": "float", "symmetric": True, "group_size": None}
    return {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "quantization_status": "compressed",
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": {**common, "strategy": "channel", "dynamic": False},
                "input_activations": {**common, "strategy": "token", "dynamic": True},
                "output_activations": None,
            }
        },
        "ignore": ignore,
    }
