"""An exported model can be trained further."""

from pathlib import Path

import pytest
import torch

from glimt.errors import BadSettings
from glimt.tiny.checkpoint import make_tiny_checkpoint
from tests.support.checkpoints import config_of
from training.export import TOKENIZER
from training.restore import read_exported
from training.shape import make_shape, read_tokenizer
from training.train import main

SMALL = ["--preset", "small", "--device", "cpu", "--workers", "0", "--eval-samples", "0"]
TOY = ["--source", "tests.training.toy:make_source", "--tokens", "512", "--patches", "1024"]


def test_training_goes_on_from_exported_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    assert main([*SMALL, *TOY, "--steps", "3", "--out", str(first)]) == 0
    more = ["--init", str(first / "model"), "--begin", "0.5", "--steps", "1"]
    rate = ["--learning-rate", "1e-12"]  # so that nothing changes but by rounding to BF16
    assert main([*SMALL, *TOY, *more, *rate, "--out", str(second)]) == 0
    assert "at 50 % of the schedule" in capsys.readouterr().out
    config = make_shape("small", read_tokenizer(TOKENIZER)).config
    before = read_exported(first / "model", config)
    after = read_exported(second / "model", config)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before if "bias" not in name)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    config = make_shape("small", read_tokenizer(TOKENIZER)).config
    with pytest.raises(BadSettings, match="does not hold this network"):
        read_exported(tmp_path, config)


def test_weights_that_were_rounded_to_fp8_are_refused(tmp_path: Path) -> None:
    folder = make_tiny_checkpoint(tmp_path / "fp8", fp8=True)
    with pytest.raises(BadSettings, match="FP8"):
        read_exported(folder, config_of(folder))
