"""The trainer on a GPU: the fast attention is used, and steps are those of the CPU within BF16."""

import math

import pytest
import torch

from tests.training.test_train import toy_batches
from training.attention import choose_attention, padded_attention, varlen_attention
from training.network import Batch
from training.shape import Shape
from training.trainer import Recipe, Trainer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("head_dim", [32, 64, 128])
def test_flash_attention_is_found_to_be_right(head_dim: int) -> None:
    attend, line = choose_attention(torch.device("cuda"), torch.bfloat16, (head_dim,))
    assert attend is varlen_attention, line


def test_a_wrong_attention_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.attention._CAUSAL", {})  # looks ahead
    attend, line = choose_attention(torch.device("cuda"), torch.bfloat16, (64,))
    assert attend is padded_attention
    assert "differ" in line


def test_training_on_cuda_follows_training_on_the_cpu(small_shape: Shape) -> None:
    batches = toy_batches(4)
    curves = []
    for device in (torch.device("cpu"), torch.device("cuda")):
        trainer = Trainer(small_shape.config, device, Recipe(learning_rate=3e-3))
        moved = [Batch(b.counts, b.words.to(device), b.pixels.to(device)) for b in batches]
        steps = [trainer.train(moved[i % 4 : i % 4 + 1], i / 24) for i in range(24)]
        curves.append([report.loss for report in steps])
    assert all(math.isfinite(loss) for loss in curves[1])
    for cpu, cuda in zip(*curves, strict=True):
        assert cuda == pytest.approx(cpu, rel=0.1, abs=0.15)
