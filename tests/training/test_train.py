"""The training command on a toy: it learns, it resumes exactly, it survives bad numbers."""

import json
import math
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from tests.training.toy import make_source
from training import checkpoints
from training.network import Batch
from training.packing import Budget, Packer, pack
from training.schedule import FINAL_FACTOR, rate_factor
from training.shape import Shape
from training.supply import to_device
from training.train import main
from training.trainer import MAX_SKIPPED, Recipe, Trainer

CPU = torch.device("cpu")
SOURCE = "tests.training.toy:make_source"


def train(out: Path, tokenizer: Path, *arguments: str) -> None:
    """Run the command in this process; every run with the same arguments is the same."""
    common = [
        *("--preset", "small", "--source", SOURCE, "--tokenizer", str(tokenizer)),
        *("--device", "cpu", "--workers", "0", "--max-reuse", "1", "--micro-batches", "1"),
        *("--tokens", "512", "--patches", "512", "--log-every-s", "0"),
        *("--learning-rate", "3e-3", "--out", str(out)),
    ]
    assert main([*common, *arguments]) == 0


def records(out: Path, kind: str) -> list[dict[str, Any]]:
    lines = (out / "log.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["kind"] == kind]


def test_it_learns_a_toy_from_nothing_and_leaves_a_model(
    tmp_path: Path, tokenizer_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tmp_path, tokenizer_file, "--steps", "32", "--eval-samples", "64")
    steps, accuracy = records(tmp_path, "steps"), records(tmp_path, "accuracy")[-1]
    assert [record["step"] for record in steps] == list(range(1, 33))
    assert steps[-1]["loss"] < 0.4 * steps[0]["loss"]
    assert accuracy["skills"].keys() == {"one", "last of two"}
    right, spans = (sum(column) for column in zip(*accuracy["skills"].values(), strict=True))
    assert spans == 64
    assert right > 0.9 * spans
    assert (tmp_path / "model" / "model.safetensors.index.json").exists()
    assert "last of two" in capsys.readouterr().out


def test_a_resumed_run_ends_with_the_same_weights(tmp_path: Path, tokenizer_file: Path) -> None:
    """Six steps, against three, a new process's worth of objects, and three more."""
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    rest = ("--eval-samples", "0", "--steps")
    train(whole, tokenizer_file, *rest, "6", "--checkpoint-every-s", "1e9")
    train_steps(halves, tokenizer_file, 3, rest)
    assert checkpoints.load(halves / checkpoints.FILE)["step"] == 3
    train(halves, tokenizer_file, *rest, "6", "--resume")
    one, other = (checkpoints.load(folder / checkpoints.FILE) for folder in (whole, halves))
    assert one["step"] == other["step"] == 6
    assert one["seeds"] == other["seeds"]
    for part in ("weights", "average"):
        for name, tensor in one[part].items():
            assert torch.equal(tensor, other[part][name]), name
    assert torch.equal(one["bias"], other["bias"])


def train_steps(out: Path, tokenizer: Path, count: int, rest: tuple[str, ...]) -> None:
    """Train towards six steps and be stopped after `count`."""
    original = Trainer.train

    def stopping(self: Trainer, *arguments: Any) -> Any:
        report = original(self, *arguments)
        if self.step == count:
            signal_self()
        return report

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "train", stopping)
        train(out, tokenizer, *rest, "6")


def signal_self() -> None:
    """As Ctrl-C does."""
    os.kill(os.getpid(), signal.SIGINT)


def test_a_run_that_is_not_there_cannot_be_resumed(
    tmp_path: Path, tokenizer_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--resume", "--out", str(tmp_path), "--tokenizer", str(tokenizer_file)]
    assert main([*arguments, "--device", "cpu"]) == 1
    assert "there is no checkpoint" in capsys.readouterr().err


@pytest.mark.slow
def test_with_workers_it_stops_in_time_resumes_and_leaves_no_process(
    tmp_path: Path, tokenizer_file: Path
) -> None:
    command = [
        *(sys.executable, "-m", "training.train", "--preset", "small", "--source", SOURCE),
        *("--tokenizer", str(tokenizer_file), "--device", "cpu", "--workers", "2"),
        *("--tokens", "512", "--patches", "512", "--eval-samples", "48", "--log-every-s", "1"),
        *("--learning-rate", "3e-3", "--steps", "60", "--out", str(tmp_path)),
    ]
    first = run([*command, "--stop-after-s", "6"])
    assert "go on with --resume" in first
    assert not (tmp_path / "model").exists()
    second = run([*command, "--resume"])
    assert "resuming after" in second
    assert (tmp_path / "model" / "config.json").exists()
    assert records(tmp_path, "steps")[-1]["step"] == 60
    assert records(tmp_path, "steps")[-1]["fresh_share"] <= 1
    right, spans = (
        sum(c) for c in zip(*records(tmp_path, "accuracy")[-1]["skills"].values(), strict=True)
    )
    assert right > 0.9 * spans
    alive = [p for p in psutil.process_iter(["cmdline"]) if str(tmp_path) in str(p.info["cmdline"])]
    assert not alive


def run(command: list[str]) -> str:
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        command, cwd=root, capture_output=True, text=True, check=False, timeout=110
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# ------------------------------------------------------------------------------------ single steps


def toy_batches(count: int) -> list[Batch]:
    packer = Packer(make_source(), 0, Budget(256, 256), held_out=False)
    return [to_device(packer.next(0.0), CPU) for _ in range(count)]


def test_a_step_over_two_micro_batches_is_a_step_over_all_their_spans(small_shape: Shape) -> None:
    """Micro-batches of different sizes, each span counted alike."""
    source = make_source()
    samples = [source.sample(seed, 0.0, False) for seed in range(9)]
    parts = [pack_all(samples[:7]), pack_all(samples[7:])]
    norms = []
    for batches in ([pack_all(samples)], parts):
        report = Trainer(small_shape.config, CPU, Recipe()).train(batches, 0.5)
        norms.append((report.loss, report.norm))
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)


def pack_all(samples: list[Any]) -> Batch:
    return to_device(pack(samples), CPU)


def test_a_rehearsal_teaches_nothing(small_shape: Shape) -> None:
    trainer, twin = (Trainer(small_shape.config, CPU, Recipe()) for _ in range(2))
    batch = to_device(Packer(make_source(), 0, Budget(512, 512), held_out=False).next(0.5), CPU)
    trainer.rehearse(batch)
    assert trainer.train([batch], 0.5) == twin.train([batch], 0.5)
    for name, tensor in trainer.weights.masters().items():
        assert torch.equal(tensor, twin.weights.masters()[name]), name


def test_a_step_that_is_not_finite_changes_nothing(small_shape: Shape) -> None:
    trainer = Trainer(small_shape.config, CPU, Recipe())
    batch = toy_batches(1)[0]
    trainer.train([batch], 0.5)
    with torch.no_grad():
        trainer.network.norm.weight[0] = math.nan  # in the working copy only
    before = {name: tensor.clone() for name, tensor in trainer.weights.masters().items()}
    report = trainer.train([batch], 0.5)
    assert report.skipped
    for name, tensor in trainer.weights.masters().items():
        assert torch.equal(tensor, before[name]), name
    for _ in range(MAX_SKIPPED - 2):
        assert trainer.train([batch], 0.5).skipped
    with pytest.raises(RuntimeError, match="not finite"):
        trainer.train([batch], 0.5)


@pytest.mark.slow
def test_balancing_makes_experts_equally_busy(small_shape: Shape) -> None:
    """From a router that sends every token to the same two experts of four."""
    batches = toy_batches(2)
    recipe = replace(Recipe(), learning_rate=1e-4, balance_rate=0.02)
    trainer = Trainer(small_shape.config, CPU, recipe)
    trainer.balance.bias[:, :2] = 0.3
    loads = []
    for step in range(16):
        trainer.train(batches[step % 2 : step % 2 + 1], 0.03)
        loads.append(float(trainer.balance.imbalance()))
    assert loads[0] > 1.9
    assert min(loads[-4:]) < 1.4


def test_the_learning_rate_rises_then_falls_to_its_end() -> None:
    rates = [rate_factor(share / 100) for share in range(101)]
    peak = rates.index(max(rates))
    assert peak == 3
    assert rates[:peak] == sorted(rates[:peak])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert rates[-1] == pytest.approx(FINAL_FACTOR)
