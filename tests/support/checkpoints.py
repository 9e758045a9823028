"""Tiny checkpoints, taken apart, put together otherwise, or damaged; and models made of them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from glimt.checkpoint import read_checkpoint
from glimt.models.config import ModelConfig
from glimt.models.config_json import read_config
from glimt.models.glm4v import Glm4v
from glimt.models.weights import WeightPlan, inspect, load
from glimt.parallel.mesh import Mesh

CPU = torch.device("cpu")


def config_of(folder: Path) -> ModelConfig:
    return read_config(read_checkpoint(folder).config)


def stored_tensors(folder: Path) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors.update(load_file(file))
    return tensors


def store(folder: Path, tensors: Mapping[str, Tensor], files: Mapping[str, str]) -> None:
    """Replace a folder's weights: `files` says in which file each tensor lies."""
    for stale in folder.glob("*.safetensors*"):
        stale.unlink()
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        parts.setdefault(files[name], {})[name] = tensor.contiguous()
    for file, part in parts.items():
        save_file(part, folder / file)
    write_index(folder, files)


def write_index(folder: Path, files: Mapping[str, str]) -> None:
    index = {"metadata": {}, "weight_map": dict(files)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def one_file(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    return dict.fromkeys(tensors, "model-00001-of-00001.safetensors")


def loaded(
    folder: Path, dtype: torch.dtype = torch.float32, **options: Any
) -> tuple[Glm4v, WeightPlan]:
    """The model in a folder, through the public path."""
    config = config_of(folder)
    plan = inspect(folder, config, **options)
    with torch.device("meta"):
        model = Glm4v(config, Mesh.single(), plan.fp8)
    load(model, plan, CPU, dtype, progress=False)
    return model, plan


def assert_same_parameters(one: torch.nn.Module, other: torch.nn.Module) -> None:
    ours, theirs = dict(one.named_parameters()), dict(other.named_parameters())
    assert ours.keys() == theirs.keys()
    for name, parameter in ours.items():
        assert parameter.dtype == theirs[name].dtype, name
        assert torch.equal(parameter.float(), theirs[name].float()), name
