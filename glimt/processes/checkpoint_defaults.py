"""What a checkpoint says of prompts and sampling, and the user above it."""

from pathlib import Path
from typing import Any

import msgspec

from glimt.checkpoint import Checkpoint
from glimt.config import ModelSettings, parse_object
from glimt.errors import BadCheckpoint, BadSettings
from glimt.models.config_json import read_config


def chat_template(models: ModelSettings, checkpoint: Checkpoint) -> str:
    """The user's template, or the checkpoint's, as text. Raises BadSettings, BadCheckpoint."""
    file = models.chat_template
    if file is None:
        if checkpoint.chat_template is None:
            raise BadCheckpoint("the checkpoint has no chat template; give one: --chat-template")
        return checkpoint.chat_template
    try:
        return Path(file).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadSettings(f"--chat-template {file}: {error}") from None


def generation_defaults(models: ModelSettings, checkpoint: Checkpoint) -> dict[str, Any]:
    """generation_config.json as the user wants it: the checkpoint's, none, or another folder's.

    The eos ids are not a matter of taste: all that the checkpoint's two files name end an answer.
    """
    defaults = dict(checkpoint.generation_config)
    config = read_config(checkpoint.config, checkpoint.preprocessor_config)
    eos = {*_ids(defaults.get("eos_token_id")), *config.eos_token_ids}
    if models.generation_config == "vllm":
        defaults = {}
    elif models.generation_config != "auto":
        file = Path(models.generation_config) / "generation_config.json"
        try:
            defaults = msgspec.json.decode(file.read_bytes(), type=dict[str, Any])
        except (OSError, msgspec.MsgspecError) as error:
            raise BadSettings(f"--generation-config: {file}: {error}") from None
    defaults["eos_token_id"] = sorted({*eos, *_ids(defaults.get("eos_token_id"))})
    return {**defaults, **parse_object(models.override_generation_config)}


def _ids(value: Any) -> list[int]:
    """An id or a list of ids, as configuration files write them."""
    ids = value if isinstance(value, list) else [value]
    return [token_id for token_id in ids if isinstance(token_id, int)]
