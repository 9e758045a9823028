"""Weights of an exported model, as the trainer has them: `training.export` read backwards."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from glimt.errors import BadSettings
from glimt.models.config import ModelConfig
from glimt.models.names import Parameter, Source, parameters
from training.weights import State


def read_exported(folder: Path, config: ModelConfig) -> State:
    """Float32 parameters and router biases by name, from a folder in the hub's format.

    Raises BadSettings if tensors are missing or of other shapes than this network's.
    """
    stored: State = {}
    for file in sorted(folder.glob("*.safetensors")):
        stored.update(load_file(file))
    wanted = [source for parameter in parameters(config) for source in parameter.sources]
    wrong = [
        source.name
        for source in wanted
        if source.name not in stored or tuple(stored[source.name].shape) != source.shape
    ]
    if wrong:
        raise BadSettings(
            f"{folder} does not hold this network: {len(wrong)} tensors are missing or of another "
            f"shape ({', '.join(sorted(set(wrong))[:3])} …). Name a folder that training exported "
            "with the same --preset and --tokenizer"
        )
    return {parameter.name: _whole(parameter, stored) for parameter in parameters(config)}


def _whole(parameter: Parameter, stored: State) -> Tensor:
    whole = torch.empty(parameter.shape)
    for source in parameter.sources:
        part = whole if source.expert is None else whole[source.expert]
        rows = part[source.start : source.start + source.num_rows]
        rows.copy_(_as_held(stored[source.name].float(), source).reshape(rows.shape))
    return whole


def _as_held(tensor: Tensor, source: Source) -> Tensor:
    """A stored tensor in the layout of the parameter; see `Source.layout`."""
    return tensor.permute(0, 2, 3, 1) if source.layout == "block" else tensor
