"""Reads the one file that a plan needs of a model that is not known by heart: config.json."""

from glimt.checkpoint import checkpoint_file, read_json
from glimt.hub import locate
from glimt.models.config import ModelConfig
from glimt.models.config_json import read_config


def read_model_config(model: str, revision: str | None) -> ModelConfig:
    """Of a folder, a hub repository (only this file is fetched), or the built-in model.

    Raises BadCheckpoint, and StartupError if the built-in model is not installed.
    """
    folder = locate(model, revision=revision, weights=False, only="config.json")
    return read_config(read_json(checkpoint_file(folder, "config.json")))
