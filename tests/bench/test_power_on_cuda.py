"""Joules from a real card: what `glimt bench serve --gpu` says, beside NVIDIA's own library.

Needs one CUDA device and the driver's library; nvidia-ml-py is the second opinion. With `-s` the
figures are printed.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.serving import served
from tests.support.mock_server import MockServer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

# Keeps a card busy until it is told to stop.
LOAD = """
import sys, threading, torch
over = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), over.set()), daemon=True).start()
a = torch.randn(4096, 4096, device="cuda", dtype=torch.bfloat16)
torch.mm(a, a); torch.cuda.synchronize(); print("busy", flush=True)
while not over.is_set():
    for _ in range(50): torch.mm(a, a)
    torch.cuda.synchronize()
"""


@dataclass
class Meter:
    """One card, through NVIDIA's own Python package."""

    nvml: Any
    card: str  # index or UUID

    def __post_init__(self) -> None:
        self.nvml.nvmlInit()
        if self.card.isdecimal():
            self._handle = self.nvml.nvmlDeviceGetHandleByIndex(int(self.card))
        else:
            self._handle = self.nvml.nvmlDeviceGetHandleByUUID(self.card)

    def joules(self) -> float:
        """Since the driver was loaded."""
        return float(self.nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)) / 1e3


@pytest.fixture
def meter(monkeypatch: pytest.MonkeyPatch) -> Meter:
    """Of the first visible card, the only one that processes started after it see: others, which
    idle or work for somebody else, have no part in any figure.
    """
    card = os.environ.get("CUDA_VISIBLE_DEVICES", "").partition(",")[0].strip() or "0"
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")  # as the driver's library counts
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", card)
    return Meter(pytest.importorskip("pynvml"), card)


@pytest.fixture
def busy_card(meter: Meter) -> Iterator[None]:
    process = subprocess.Popen(
        [sys.executable, "-c", LOAD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stdout.readline() == "busy\n"
    yield
    process.stdin.close()
    process.wait(60)
    process.stdout.close()


def bench(folder: Path, url: str, model: str, *arguments: str) -> dict[str, Any]:
    """The result of `glimt bench serve --gpu`, which the table is printed of as well."""
    command = [sys.executable, "-m", "glimt", "bench", "serve", "--base-url", url, "--gpu"]
    command += ["--model", model, "--skip-tokenizer-init", "--disable-tqdm", "--temperature", "0"]
    command += ["--save-result", "--result-dir", str(folder), "--result-filename", "r.json"]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stderr[-3000:]
    print(done.stdout)
    return dict(json.loads((folder / "r.json").read_text()))


def test_a_busy_card_costs_the_joules_that_its_driver_counts(
    meter: Meter, busy_card: None, tmp_path: Path
) -> None:
    """The tokens are scripted, the watts are not: a card multiplies matrices meanwhile."""
    mock = MockServer("--ttft-ms", "100", "--gap-ms", "10")
    try:
        before, began_s = meter.joules(), time.monotonic()
        load = ("--num-prompts", "40", "--request-rate", "10", "--random-output-len", "64")
        result = bench(tmp_path, mock.url, "mock-model", *load)
        watts = (meter.joules() - before) / (time.monotonic() - began_s)
    finally:
        mock.stop()
    energy = result["glimt"]["energy"]
    print(f"the driver's own package: {watts:.1f} W over the whole command")
    assert result["total_output_tokens"] == 40 * 64
    assert energy["joules_per_token"] == pytest.approx(energy["joules"] / (40 * 64))
    assert energy["joules"] == pytest.approx(energy["mean_watts"] * result["duration"], rel=1e-6)
    assert energy["mean_watts"] == pytest.approx(watts, rel=0.25)
    assert energy["mean_utilisation"] is None or energy["mean_utilisation"] > 0.5


def test_tokens_of_the_built_in_model_on_a_card_cost_energy(meter: Meter, tmp_path: Path) -> None:
    pytest.importorskip("av")  # without which no server starts
    before = meter.joules()
    with served("builtin", "--device", "cuda", log=tmp_path / "log") as (url, name):
        load = ("--num-prompts", "60", "--max-concurrency", "16", "--random-input-len", "100")
        result = bench(tmp_path, url, name, *load, "--random-output-len", "128")
    energy = result["glimt"]["energy"]
    assert result["total_output_tokens"] == 60 * 128
    assert 0 < energy["joules"] < meter.joules() - before
    assert energy["joules_per_token"] == pytest.approx(energy["joules"] / (60 * 128))
