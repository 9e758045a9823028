"""Sizes of the published models: what their config.json says otherwise than a tiny checkpoint's."""

from typing import Any

from glimt.models.config import ModelConfig
from glimt.planning.published import published

Sizes = dict[str, dict[str, Any]]


def _sizes(config: ModelConfig) -> Sizes:
    """In the words of config.json."""
    text, vision, moe = config.text, config.vision, config.text.moe
    of_text = {
        "hidden_size": text.hidden_size,
        "num_hidden_layers": text.num_layers,
        "num_attention_heads": text.num_heads,
        "num_key_value_heads": text.num_kv_heads,
        "head_dim": text.head_dim,
        "intermediate_size": text.intermediate_size,
        "vocab_size": text.vocab_size,
        "max_position_embeddings": text.max_position_embeddings,
    }
    if moe is not None:
        of_text |= {
            "first_k_dense_replace": moe.first_layer,
            "moe_intermediate_size": moe.intermediate_size,
            "n_routed_experts": moe.num_experts,
            "num_experts_per_tok": moe.num_experts_per_token,
            "n_shared_experts": moe.shared_intermediate_size // moe.intermediate_size,
        }
    of_vision = {
        "depth": vision.depth,
        "hidden_size": vision.hidden_size,
        "num_heads": vision.num_heads,
        "out_hidden_size": vision.out_hidden_size,
        "intermediate_size": vision.merger_intermediate_size,
    }
    return {"text_config": of_text, "vision_config": of_vision}


_NAMES = {"106b": "GLM-4.5V", "9b": "GLM-4.1V-9B-Thinking"}

MODELS: dict[str, Sizes] = {
    **{short: _sizes(config) for short, name in _NAMES.items() if (config := published(name))},
    "tiny": {"text_config": {}, "vision_config": {}},
}
