"""Presets: the sizes of the networks that are trained, and the configs that say so."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from glimt.errors import BadSettings
from glimt.models.config import ModelConfig
from glimt.models.config_json import read_config
from glimt.tiny.config import Json, Sizes, Style, model_config
from glimt.tiny.tokenizer import control_token_ids

STYLE: Style = "4.5"  # the generation whose tokens, spellings and processors the model follows
MAX_POSITIONS = 8192
# Volumes frames × height × width, a still counting as two frames: 56 × 56 to 448 × 448 pixels.
IMAGE_LIMITS = (2 * 56 * 56, 2 * 448 * 448)
VIDEO_LIMITS = (2 * 56 * 56, 802_816)

PRESETS: dict[str, Sizes] = {
    "full": Sizes(
        text={
            "hidden_size": 256,
            "intermediate_size": 768,
            "num_hidden_layers": 6,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 128,
            "moe_intermediate_size": 128,
            "n_routed_experts": 8,
            "num_experts_per_tok": 2,
            "max_position_embeddings": MAX_POSITIONS,
        },
        vision={"depth": 8, "hidden_size": 256, "num_heads": 4},
    ),
    # The same architecture for tests: a CPU trains it on a toy in seconds.
    "small": Sizes(
        text={
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 128,
            "moe_intermediate_size": 32,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "max_position_embeddings": MAX_POSITIONS,
        },
        vision={"depth": 2, "hidden_size": 64, "num_heads": 2},
    ),
}


@dataclass(frozen=True, slots=True)
class Shape:
    """A network to be trained: its config.json, and what the networks read in it."""

    config_json: Json
    config: ModelConfig


def make_shape(preset: str, tokenizer: Tokenizer) -> Shape:
    """The shape of a preset with the vocabulary of this tokenizer, padded to a multiple of 64.

    Raises BadSettings for an unknown preset or a tokenizer without GLM's control tokens.
    """
    if preset not in PRESETS:
        raise BadSettings(f"unknown preset {preset!r}; there are {', '.join(PRESETS)}")
    try:
        ids = control_token_ids(tokenizer, STYLE)
    except KeyError as missing:
        raise BadSettings(f"the tokenizer has no token {missing}") from missing
    sizes = PRESETS[preset]
    text: dict[str, Any] = {**sizes.text, "vocab_size": -(-tokenizer.get_vocab_size() // 64) * 64}
    config_json = model_config("moe", STYLE, ids, sizes=Sizes(text, sizes.vision))
    return Shape(config_json, read_config(config_json))


def read_tokenizer(path: Path) -> Tokenizer:
    """A tokenizer.json. Raises BadSettings if there is none."""
    if not path.is_file():
        raise BadSettings(f"there is no tokenizer at {path}")
    return Tokenizer.from_file(str(path))
