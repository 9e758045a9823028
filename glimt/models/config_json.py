"""`read_config`: config.json -> `ModelConfig`, or one error that lists everything wrong with it.

Nothing is filled in from memory except what the family's files are known to leave out (each such
default is named below). The file comes in three spellings: rope_theta + rope_scaling inside
text_config, rope_parameters inside text_config, and a flat file without text_config.
"""

from collections.abc import Mapping
from typing import Any

from glimt.errors import BadCheckpoint
from glimt.models.config import (
    IMAGE_MEAN,
    IMAGE_STD,
    Architecture,
    MediaTokens,
    ModelConfig,
    MoeConfig,
    RopeConfig,
    TextConfig,
    VisionConfig,
)
from glimt.models.config_fields import Fields

_CLASSES: dict[str, Architecture] = {
    "Glm4vForConditionalGeneration": "glm4v",
    "Glm4vMoeForConditionalGeneration": "glm4v_moe",
}
_DEFAULT_PARTIAL_ROTARY = 0.5  # what the family uses; some files do not say it
_DEFAULT_IN_CHANNELS = 3  # GLM-4.1V's file does not say it


def read_config(
    config: Mapping[str, Any], preprocessor: Mapping[str, Any] | None = None
) -> ModelConfig:
    """Read config.json (and preprocessor_config.json for the pixel statistics).

    Raises BadCheckpoint with every problem found.
    """
    problems: list[str] = []
    top = Fields(config, "", problems)
    architecture = _architecture(top)
    # GLM-4.1V's first file is flat: the text keys lie beside vision_config.
    text = top.section("text_config") if "text_config" in config else top
    vision = top.section("vision_config")
    model = ModelConfig(
        architecture=architecture,
        text=_text(text, architecture),
        vision=_vision(vision, Fields(preprocessor or {}, "preprocessor_config", problems)),
        tokens=_media_tokens(top),
        eos_token_ids=(text if "eos_token_id" in text else top).token_ids("eos_token_id"),
        pad_token_id=text.integer("pad_token_id") if "pad_token_id" in text else None,
        dtype=_dtype(top, text),
        quantized=_quantized(top),
    )
    _check_together(model, top)
    if problems:
        raise BadCheckpoint("config.json does not describe a model Glimt can run", problems)
    return model


def merge_overrides(config: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """`--hf-overrides`: a copy of `config` with `overrides` laid over it, objects key by key."""
    merged = dict(config)
    for key, value in overrides.items():
        below = merged.get(key)
        if isinstance(below, Mapping) and isinstance(value, Mapping):
            merged[key] = merge_overrides(below, value)
        else:
            merged[key] = value
    return merged


def _architecture(top: Fields) -> Architecture:
    """`architectures` decides where it is present; `model_type` must agree with it."""
    names = top.values.get("architectures") or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        top.problem(f"architectures must be a list of names, not {names!r}")
        names = []
    model_type = top.values.get("model_type")
    known = [_CLASSES[name] for name in names if name in _CLASSES]
    if names and not known:
        top.problem(f"architecture {names[0]!r} is unknown; known are {', '.join(_CLASSES)}")
    elif not names and model_type not in _CLASSES.values():
        top.problem(f"model_type {model_type!r} is unknown; known are glm4v, glm4v_moe")
    elif known and model_type is not None and model_type != known[0]:
        top.problem(f"model_type {model_type!r} contradicts architecture {names[0]!r}")
    if known:
        return known[0]
    return "glm4v_moe" if model_type == "glm4v_moe" else "glm4v"


def _text(fields: Fields, architecture: Architecture) -> TextConfig:
    hidden_size = fields.integer("hidden_size")
    num_heads = fields.integer("num_attention_heads")
    num_kv_heads = fields.integer("num_key_value_heads")
    if num_heads % num_kv_heads:
        fields.problem("num_attention_heads is not a multiple of num_key_value_heads")
    if "head_dim" in fields:
        head_dim = fields.integer("head_dim")
    else:
        head_dim = max(1, hidden_size // num_heads)
    fields.require("hidden_act", "silu", default="silu")
    fields.require("use_qk_norm", False, default=False)
    fields.require("qk_layernorm", False, default=False)
    moe = architecture == "glm4v_moe"
    return TextConfig(
        hidden_size=hidden_size,
        intermediate_size=fields.integer("intermediate_size"),
        num_layers=fields.integer("num_hidden_layers"),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        attention_bias=fields.boolean("attention_bias"),
        rms_norm_eps=fields.number("rms_norm_eps"),
        vocab_size=fields.integer("vocab_size"),
        max_position_embeddings=fields.integer("max_position_embeddings"),
        rope=_rope(fields, head_dim, interleaved=not moe),
        sandwich=not moe,
        moe=_moe(fields) if moe else None,
    )


def _rope(fields: Fields, head_dim: int, *, interleaved: bool) -> RopeConfig:
    """Three spellings: rope_parameters; rope_theta + rope_scaling; the same with key `type`."""
    inner = fields.section("rope_parameters" if "rope_parameters" in fields else "rope_scaling")
    kind = inner.values.get("rope_type", inner.values.get("type", "default"))
    if kind != "default":
        inner.problem(f"rope type {kind!r} is not computed here, only 'default'")
    theta = inner if "rope_theta" in inner else fields
    partial = inner if "partial_rotary_factor" in inner else fields
    factor = _DEFAULT_PARTIAL_ROTARY
    if "partial_rotary_factor" in partial:
        factor = partial.number("partial_rotary_factor")
    rotary_dim = int(head_dim * factor)
    sections = inner.integers("mrope_section", 3)
    if rotary_dim % 2 or rotary_dim > head_dim:
        fields.problem(
            f"partial_rotary_factor {factor} of head_dim {head_dim} is not a rotary width"
        )
    elif sum(sections) != rotary_dim // 2:
        inner.problem(f"mrope_section {list(sections)} does not add up to {rotary_dim // 2} pairs")
    return RopeConfig(
        theta=theta.number("rope_theta"),
        rotary_dim=rotary_dim,
        sections=(sections[0], sections[1], sections[2]),
        interleaved=interleaved,
    )


def _moe(fields: Fields) -> MoeConfig:
    num_experts = fields.integer("n_routed_experts")
    per_token = fields.integer("num_experts_per_tok")
    num_groups = fields.integer("n_group")
    groups_per_token = fields.integer("topk_group")
    width = fields.integer("moe_intermediate_size")
    if num_experts % num_groups:
        fields.problem(f"n_routed_experts {num_experts} is not a multiple of n_group {num_groups}")
    elif groups_per_token > num_groups:
        fields.problem(f"topk_group {groups_per_token} is more than n_group {num_groups}")
    elif per_token > num_experts // num_groups * groups_per_token:
        fields.problem(f"num_experts_per_tok {per_token} is more than topk_group leaves to choose")
    return MoeConfig(
        first_layer=fields.integer("first_k_dense_replace", minimum=0),
        num_experts=num_experts,
        num_experts_per_token=per_token,
        intermediate_size=width,
        shared_intermediate_size=width * fields.integer("n_shared_experts"),
        num_groups=num_groups,
        num_groups_per_token=groups_per_token,
        norm_topk_prob=fields.boolean("norm_topk_prob"),
        routed_scaling_factor=fields.number("routed_scaling_factor"),
    )


def _vision(fields: Fields, preprocessor: Fields) -> VisionConfig:
    hidden_size = fields.integer("hidden_size")
    num_heads = fields.integer("num_heads")
    image_size = fields.integer("image_size")
    patch_size = fields.integer("patch_size")
    channels = fields.integer("in_channels") if "in_channels" in fields else _DEFAULT_IN_CHANNELS
    if channels != 3:
        fields.problem(f"in_channels is {channels}; pixels are RGB")
    if hidden_size % num_heads or hidden_size // num_heads % 4:
        fields.problem("hidden_size / num_heads is not a multiple of 4 (rows and columns rotate)")
    if image_size % patch_size:
        fields.problem("image_size is not a multiple of patch_size")
    fields.require("attention_bias", False, default=False)
    fields.require("hidden_act", "silu", default="silu")
    mean, std = IMAGE_MEAN, IMAGE_STD
    if "image_mean" in preprocessor:
        mean = preprocessor.rgb("image_mean")
    if "image_std" in preprocessor:
        std = preprocessor.rgb("image_std")
    return VisionConfig(
        depth=fields.integer("depth"),
        hidden_size=hidden_size,
        num_heads=num_heads,
        in_channels=channels,
        patch_size=patch_size,
        temporal_patch_size=fields.integer("temporal_patch_size"),
        merge_size=fields.integer("spatial_merge_size"),
        position_grid=image_size // patch_size,
        block_intermediate_size=fields.integer("out_hidden_size"),
        merger_intermediate_size=fields.integer("intermediate_size"),
        out_hidden_size=fields.integer("out_hidden_size"),
        rms_norm_eps=fields.number("rms_norm_eps"),
        image_mean=mean,
        image_std=std,
    )


def _media_tokens(top: Fields) -> MediaTokens:
    return MediaTokens(
        image=top.integer("image_token_id", minimum=0),
        video=top.integer("video_token_id", minimum=0),
        image_start=top.integer("image_start_token_id", minimum=0),
        image_end=top.integer("image_end_token_id", minimum=0),
        video_start=top.integer("video_start_token_id", minimum=0),
        video_end=top.integer("video_end_token_id", minimum=0),
    )


def _dtype(top: Fields, text: Fields) -> str:
    """`dtype`, formerly `torch_dtype`; bfloat16 where the file does not say."""
    for fields in (text, top):
        for key in ("dtype", "torch_dtype"):
            if key in fields:
                return fields.choice(key, ("bfloat16", "float16", "float32"))
    return "bfloat16"


def _quantized(top: Fields) -> bool:
    """True for the one FP8 scheme of the family; any other scheme is a problem."""
    if "quantization_config" not in top:
        return False
    scheme = top.section("quantization_config")
    scheme.require("quant_method", "compressed-tensors")
    scheme.require("format", "float-quantized")
    for name in scheme.values.get("config_groups") or {}:
        group = scheme.section("config_groups").section(name)
        weights, activations = group.section("weights"), group.section("input_activations")
        for part in (weights, activations):
            part.require("num_bits", 8)
            part.require("type", "float")
            part.require("symmetric", True)
        weights.require("strategy", "channel")
        activations.require("strategy", "token")
        activations.require("dynamic", True)
    return True


def _check_together(model: ModelConfig, top: Fields) -> None:
    """What can only be judged with both towers in sight."""
    top.require("tie_word_embeddings", False, default=False)
    text, vision = model.text, model.vision
    if text.hidden_size != vision.out_hidden_size:
        top.problem(
            f"vision out_hidden_size {vision.out_hidden_size} differs from the decoder's "
            f"hidden_size {text.hidden_size}"
        )
    ids = {*model.eos_token_ids, *(getattr(model.tokens, name) for name in MediaTokens.__slots__)}
    if beyond := sorted(token for token in ids if token >= text.vocab_size):
        top.problem(f"token ids {beyond} lie beyond vocab_size {text.vocab_size}")
