"""Dummy weights: usable, repeatable, and as costly as real ones."""

from pathlib import Path

import pytest
import torch

from glimt.models.config import ModelConfig
from glimt.models.dummy import fill_dummy
from glimt.models.glm4v import Glm4v
from glimt.models.names import fp8_modules
from glimt.parallel.mesh import Mesh
from glimt.tiny.checkpoint import make_tiny_checkpoint
from tests.support.checkpoints import CPU, assert_same_parameters, config_of


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> ModelConfig:
    folder: Path = make_tiny_checkpoint(tmp_path_factory.mktemp("tiny"))
    for file in folder.glob("*.safetensors*"):
        file.unlink()
    return config_of(folder)


def dummy(config: ModelConfig, *, seed: int = 0, fp8: bool = True) -> Glm4v:
    with torch.device("meta"):
        model = Glm4v(config, Mesh.single(), fp8_modules(config) if fp8 else frozenset())
    fill_dummy(model, CPU, torch.bfloat16, seed)
    return model


def test_the_values_depend_on_the_seed_and_the_name_only(config: ModelConfig) -> None:
    one = dummy(config, seed=5)
    assert_same_parameters(one, dummy(config, seed=5))
    other = dict(dummy(config, seed=6).named_parameters())
    for name, parameter in one.named_parameters():
        if not name.endswith("router.bias"):
            assert not torch.equal(parameter.float(), other[name].float()), name


def test_values_are_finite_and_of_trained_size(config: ModelConfig) -> None:
    parameters = dict(dummy(config).named_parameters())
    for name, parameter in parameters.items():
        assert parameter.float().isfinite().all(), name
    scale = parameters["layers.0.attention.o.weight_scale"]
    weight = parameters["layers.0.attention.o.weight"].float() * scale[:, None]
    assert 0.015 < weight.std() < 0.025
    raw = parameters["layers.1.moe.experts.gate_up"].float().abs()
    assert raw.max() == 448
    assert raw.float().unique().numel() > 100  # all of e4m3's exponents, not a few values
    assert abs(parameters["norm.weight"].float().mean() - 1) < 0.05


def test_the_router_spreads_tokens_over_all_experts(config: ModelConfig) -> None:
    model = dummy(config)
    generator = torch.Generator().manual_seed(1)
    x_TD = torch.randn(4096, config.text.hidden_size, generator=generator)
    parameters = dict(model.named_parameters())
    for layer in (1, 2):
        weight = parameters[f"layers.{layer}.moe.router.weight"].float()
        bias = parameters[f"layers.{layer}.moe.router.bias"]
        chosen = (torch.sigmoid(x_TD @ weight.T) + bias).topk(2).indices
        counts = torch.bincount(chosen.flatten(), minlength=8).float()
        fair = 4096 * 2 / 8
        assert counts.min() > 0.7 * fair
        assert counts.max() < 1.4 * fair
