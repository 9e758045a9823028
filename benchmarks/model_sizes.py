"""Sizes of the published models: what their config.json says otherwise than a tiny checkpoint's."""

from typing import Any

Sizes = dict[str, dict[str, Any]]

GLM_45V: Sizes = {
    "text_config": {
        "hidden_size": 4096,
        "num_hidden_layers": 46,
        "num_attention_heads": 96,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "intermediate_size": 10944,
        "first_k_dense_replace": 1,
        "moe_intermediate_size": 1408,
        "n_routed_experts": 128,
        "num_experts_per_tok": 8,
        "n_shared_experts": 1,
        "vocab_size": 151552,
        "max_position_embeddings": 65536,
    },
    "vision_config": {
        "depth": 24,
        "hidden_size": 1536,
        "num_heads": 12,
        "out_hidden_size": 4096,
        "intermediate_size": 10944,
    },
}
GLM_46V_FLASH: Sizes = {
    "text_config": {
        "hidden_size": 4096,
        "num_hidden_layers": 40,
        "num_attention_heads": 32,
        "num_key_value_heads": 2,
        "head_dim": 128,
        "intermediate_size": 13696,
        "vocab_size": 151552,
        "max_position_embeddings": 65536,
    },
    "vision_config": {
        "depth": 24,
        "hidden_size": 1536,
        "num_heads": 12,
        "out_hidden_size": 4096,
        "intermediate_size": 13696,
    },
}
TINY: Sizes = {"text_config": {}, "vision_config": {}}

MODELS: dict[str, Sizes] = {"106b": GLM_45V, "9b": GLM_46V_FLASH, "tiny": TINY}
