"""The published models' configurations, so that a plan needs no network."""

from glimt.models.config import (
    MediaTokens,
    ModelConfig,
    MoeConfig,
    RopeConfig,
    TextConfig,
    VisionConfig,
)

OWNER = "zai-org/"


def published(model: str) -> ModelConfig | None:
    """The configuration of a published model, named with or without its owner."""
    return _MODELS.get(model.removeprefix(OWNER).lower())


def published_name(model: str) -> str | None:
    """The repository that `model` names, if it is one of these and no folder is meant."""
    name = model.removeprefix(OWNER).lower()
    return next((OWNER + known for known in _NAMES if known.lower() == name), None)


def _moe(max_positions: int, theta: float, *, fp8: bool) -> ModelConfig:
    """GLM-4.5V and GLM-4.6V: 106B, of which 12B work on a token."""
    return ModelConfig(
        architecture="glm4v_moe",
        text=TextConfig(
            hidden_size=4096,
            intermediate_size=10944,
            num_layers=46,
            num_heads=96,
            num_kv_heads=8,
            head_dim=128,
            attention_bias=True,
            rms_norm_eps=1e-5,
            vocab_size=151552,
            max_position_embeddings=max_positions,
            rope=RopeConfig(theta, 64, (8, 12, 12), interleaved=False),
            sandwich=False,
            moe=MoeConfig(
                first_layer=1,
                num_experts=128,
                num_experts_per_token=8,
                intermediate_size=1408,
                shared_intermediate_size=1408,
                num_groups=1,
                num_groups_per_token=1,
                norm_topk_prob=True,
                routed_scaling_factor=1.0,
            ),
        ),
        vision=_vision(merger=10944),
        tokens=_tokens(151363),
        eos_token_ids=(151329, 151336, 151338),
        pad_token_id=151329,
        dtype="bfloat16",
        quantized=fp8,
    )


def _dense(max_positions: int, theta: float, image_token: int) -> ModelConfig:
    """GLM-4.1V-9B and GLM-4.6V-Flash."""
    return ModelConfig(
        architecture="glm4v",
        text=TextConfig(
            hidden_size=4096,
            intermediate_size=13696,
            num_layers=40,
            num_heads=32,
            num_kv_heads=2,
            head_dim=128,
            attention_bias=True,
            rms_norm_eps=1e-5,
            vocab_size=151552,
            max_position_embeddings=max_positions,
            rope=RopeConfig(theta, 64, (8, 12, 12), interleaved=True),
            sandwich=True,
            moe=None,
        ),
        vision=_vision(merger=13696),
        tokens=_tokens(image_token),
        eos_token_ids=(151329, 151336, 151338),
        pad_token_id=151329,
        dtype="bfloat16",
        quantized=False,
    )


def _vision(merger: int) -> VisionConfig:
    return VisionConfig(
        depth=24,
        hidden_size=1536,
        num_heads=12,
        in_channels=3,
        patch_size=14,
        temporal_patch_size=2,
        merge_size=2,
        position_grid=24,
        block_intermediate_size=4096,
        merger_intermediate_size=merger,
        out_hidden_size=4096,
        rms_norm_eps=1e-5,
    )


def _tokens(image: int) -> MediaTokens:
    return MediaTokens(image, image + 1, 151339, 151340, 151341, 151342)


_NAMES = {
    "GLM-4.5V": _moe(65536, 10000.0, fp8=False),
    "GLM-4.5V-FP8": _moe(65536, 10000.0, fp8=True),
    "GLM-4.6V": _moe(131072, 500000.0, fp8=False),
    "GLM-4.6V-FP8": _moe(131072, 500000.0, fp8=True),
    "GLM-4.6V-Flash": _dense(131072, 500000.0, 151363),
    "GLM-4.1V-9B-Thinking": _dense(65536, 10000.0, 151343),
}
_MODELS = {name.lower(): config for name, config in _NAMES.items()}
