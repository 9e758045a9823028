"""config.json dicts of tiny models, in the three spellings of the family's files."""

from typing import Any

VOCAB_SIZE = 320
EOS = [256, 263, 265]
MEDIA_TOKENS = {
    "image_start_token_id": 266,
    "image_end_token_id": 267,
    "video_start_token_id": 268,
    "video_end_token_id": 269,
    "image_token_id": 290,
    "video_token_id": 291,
}
SPELLINGS = ("rope_scaling", "rope_parameters", "flat")

TEXT_MOE: dict[str, Any] = {
    "hidden_size": 64,
    "head_dim": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 3,
    "first_k_dense_replace": 1,
    "intermediate_size": 96,
    "moe_intermediate_size": 32,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "norm_topk_prob": True,
    "routed_scaling_factor": 1.0,
    "use_qk_norm": False,
}
TEXT_DENSE: dict[str, Any] = {
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "intermediate_size": 96,
}
VISION: dict[str, Any] = {
    "depth": 2,
    "hidden_size": 64,
    "num_heads": 2,
    "image_size": 336,
    "in_channels": 3,
    "patch_size": 14,
    "temporal_patch_size": 2,
    "spatial_merge_size": 2,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "attention_bias": False,
}


def full_size(num_layers: int) -> dict[str, Any]:
    """A config.json of `num_layers` of GLM-4.5V's text decoder, under a tiny vision tower."""
    text = {
        "hidden_size": 4096,
        "head_dim": 128,
        "num_attention_heads": 96,
        "num_key_value_heads": 8,
        "num_hidden_layers": num_layers,
        "intermediate_size": 10944,
        "moe_intermediate_size": 1408,
        "n_routed_experts": 128,
        "num_experts_per_tok": 8,
        "vocab_size": 151552,
    }
    return tiny_config("glm4v_moe", text=text, vision={"intermediate_size": 96})


def tiny_config(
    kind: str,
    *,
    spelling: str = "rope_parameters",
    theta: float = 10000.0,
    partial_rotary_factor: float | None = 0.5,
    text: dict[str, Any] | None = None,
    vision: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """A config.json as the hub would spell it. `kind` is "glm4v_moe" or "glm4v"."""
    body: dict[str, Any] = {
        "attention_bias": True,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "vocab_size": VOCAB_SIZE,
        "max_position_embeddings": 4096,
        "eos_token_id": EOS,
        "pad_token_id": EOS[0],
        **(TEXT_MOE if kind == "glm4v_moe" else TEXT_DENSE),
        **(text or {}),
    }
    head_dim = body.get("head_dim", body["hidden_size"] // body["num_attention_heads"])
    pairs = int(head_dim * (partial_rotary_factor or 0.5)) // 2
    sections = [pairs // 4, (pairs - pairs // 4) // 2, 0]
    sections[2] = pairs - sum(sections)
    if spelling == "rope_parameters":
        rope: dict[str, Any] = {"rope_type": "default", "rope_theta": theta}
        if partial_rotary_factor is not None:
            rope["partial_rotary_factor"] = partial_rotary_factor
        body["rope_parameters"] = {**rope, "mrope_section": sections}
    else:
        key = "type" if spelling == "flat" else "rope_type"
        body["rope_theta"] = theta
        body["rope_scaling"] = {key: "default", "mrope_section": sections}
        if partial_rotary_factor is not None:
            body["partial_rotary_factor"] = partial_rotary_factor
    tower = {
        **VISION,
        "out_hidden_size": body["hidden_size"],
        "intermediate_size": body["intermediate_size"],
        **(vision or {}),
    }
    class_name = "Glm4vMoe" if kind == "glm4v_moe" else "Glm4v"
    config: dict[str, Any] = {
        "architectures": [f"{class_name}ForConditionalGeneration"],
        "model_type": kind,
        "tie_word_embeddings": False,
        "vision_config": tower,
        **MEDIA_TOKENS,
    }
    if spelling == "flat":
        return {**config, **body, "torch_dtype": "bfloat16"}
    return {**config, "text_config": {"model_type": f"{kind}_text", "dtype": "bfloat16", **body}}
