"""Weights of an exported model, as the trainer has them: read as the server reads them."""

from pathlib import Path

import torch

from glimt.errors import BadCheckpoint, BadSettings
from glimt.models.config import ModelConfig
from glimt.models.glm4v import Glm4v
from glimt.models.weight_plan import inspect
from glimt.models.weights import load
from glimt.parallel.mesh import Mesh
from training.weights import State

_CURE = "Name a folder that training exported with the same --preset and --tokenizer"


def read_exported(folder: Path, config: ModelConfig) -> State:
    """Float32 parameters and router biases by name, from a folder in the hub's format.

    Raises BadSettings if tensors are missing, of other shapes than this network's, or FP8.
    """
    try:
        plan = inspect(folder, config)
    except BadCheckpoint as error:
        raise BadSettings(f"{folder} does not hold this network: {error}. {_CURE}") from error
    if plan.fp8:
        raise BadSettings(f"{folder} has FP8 weights, which have lost too much. {_CURE}")
    with torch.device("meta"):
        model = Glm4v(config, Mesh.single())
    load(model, plan, torch.device("cpu"), torch.float32, progress=False)
    return {name: parameter.detach() for name, parameter in model.named_parameters()}
