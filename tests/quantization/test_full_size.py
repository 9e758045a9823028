"""Layers of the published sizes, a few GB of them: bounded memory, a kill, the same numbers."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from glimt.models.quantize import quantize_rows, row_scales
from glimt.tiny.config import Variant
from tests.support.large_checkpoint import make_large_checkpoint

# What it held at most beyond what Python and torch take before the first byte is read.
MEASURED = """
import sys
from pathlib import Path
from glimt.quantization.command import Wishes, quantize

def peak():
    # Of this program; getrusage would tell the largest of it and the process that started it.
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(dict(line.split(":") for line in lines)["VmHWM"].split()[0]) * 1024

before = peak()
wishes = Wishes(source=sys.argv[1], target=sys.argv[2], verify=sys.argv[3] == "verify")
status = quantize(wishes, lambda line: print(line, file=sys.stderr))
print(before, peak())
sys.exit(status)
"""
MIB = 1 << 20

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(params=["moe", "dense"])
def variant(request: pytest.FixtureRequest) -> Variant:
    kind: Variant = request.param
    return kind


@pytest.fixture
def source(variant: Variant, tmp_path: Path) -> Iterator[Path]:
    if shutil.disk_usage(tmp_path).free < 12e9:
        pytest.skip("needs 12 GB of disk")
    try:
        assert make_large_checkpoint(tmp_path / "bf16", variant) > 2e9
        yield tmp_path / "bf16"
    finally:
        for folder in tmp_path.iterdir():  # pytest would keep it for three more sessions
            shutil.rmtree(folder)


def start(source: Path, target: Path, mode: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", MEASURED, source, target, mode],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_killed_run_is_finished_within_a_slice_of_memory(source: Path, tmp_path: Path) -> None:
    target, partial = tmp_path / "fp8", tmp_path / "fp8.partial"
    first = start(source, target, "")
    while first.poll() is None and len(list(partial.glob("*.safetensors"))) < 2:
        time.sleep(0.01)
    first.kill()
    first.communicate()
    assert first.returncode == -signal.SIGKILL
    assert not target.exists()

    second = start(source, target, "verify")
    out, err = second.communicate()
    assert second.returncode == 0, err[-3000:]
    print(err)
    assert "files are finished by an earlier run" in err
    before, peak = (int(number) for number in out.split())
    print(f"peak {peak / MIB:.0f} MiB, {(peak - before) / MIB:.0f} beyond the start")
    largest = max(path.stat().st_size for path in source.glob("*.safetensors"))
    assert peak < 2 * largest
    assert peak - before < 200 * MIB + 30 * MIB * (os.cpu_count() or 1)
    check(source, target)


def check(source: Path, target: Path) -> None:
    """Names, and the numbers of every 20th projection, made anew in one piece."""
    names = json.loads((target / "model.safetensors.index.json").read_text())["weight_map"]
    scales = [name for name in names if name.endswith("_scale")]
    assert all(name.split(".")[-2].endswith("_proj") for name in scales)
    assert len(scales) >= 16
    for name in [name.removesuffix("_scale") for name in scales][::20]:
        with (
            safe_open(source / names[name], "pt") as was,
            safe_open(target / names[name], "pt") as is_,
        ):
            weight = was.get_tensor(name)
            scale = row_scales(weight)
            assert torch.equal(is_.get_tensor(f"{name}_scale")[:, 0], scale)
            made = is_.get_tensor(name).view(torch.uint8)
            assert torch.equal(quantize_rows(weight, scale).view(torch.uint8), made)
