"""Power of GPUs through the driver's library, played by a small one made with the C compiler."""

import ctypes
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from glimt.bench.load import power
from glimt.errors import BadSettings

ROOT = Path(__file__).resolve().parents[2]

# The seven functions with their real signatures (NVML API reference): two GPUs, the second without
# an energy counter if COUNTERS is 0, and not telling its power or use if POWER or USE is 0.
LIBRARY = """
#include <string.h>
typedef struct { unsigned int gpu, memory; } Utilization;
static long handles[2] = {11, 22};
int nvmlInit_v2(void) { return INIT; }
int nvmlDeviceGetCount_v2(unsigned int *count) { *count = GPUS; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned int index, void **device) {
  if (index > 1) return 2;
  *device = &handles[index]; return 0; }
int nvmlDeviceGetHandleByUUID(const char *uuid, void **device) {
  if (strcmp(uuid, "GPU-second")) return 6;
  *device = &handles[1]; return 0; }
int nvmlDeviceGetPowerUsage(void *device, unsigned int *milliwatts) {
  if (!POWER && *(long *)device == 22) return 3;
  *milliwatts = *(long *)device == 11 ? 350000 : 120500; return 0; }
int nvmlDeviceGetUtilizationRates(void *device, Utilization *use) {
  if (!USE && *(long *)device == 22) return 3;
  use->gpu = *(long *)device == 11 ? 97 : 3; use->memory = 1; return 0; }
int nvmlDeviceGetTotalEnergyConsumption(void *device, unsigned long long *millijoules) {
  if (!COUNTERS && *(long *)device == 22) return 3;
  *millijoules = 9000000000000ULL + *(long *)device * 1000; return 0; }
"""


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler")

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def make(**given: int) -> Path:
        wanted = {"init": 0, "gpus": 2, "counters": 1, "power": 1, "use": 1} | given
        source, library = tmp_path / "nvml.c", tmp_path / "nvml.so"
        source.write_text(LIBRARY)
        defines = [f"-D{name.upper()}={value}" for name, value in wanted.items()]
        command = [compiler, "-shared", "-fPIC", *defines, str(source), "-o", str(library)]
        subprocess.run(command, check=True)
        monkeypatch.setattr(power, "_LIBRARY", str(library))
        return library

    return make


def test_watts_use_and_energy_of_every_gpu_are_read(driver: Any) -> None:
    driver()
    sample = power.Gpus().sample(7)
    assert sample is not None
    assert sample.at_ns == 7
    assert sample.watts == [350.0, 120.5]
    assert sample.utilisation == [0.97, 0.03]
    assert sample.joules == [9_000_000_011.0, 9_000_000_022.0]


def test_without_a_counter_on_each_gpu_there_is_no_energy(driver: Any) -> None:
    driver(counters=0, use=0)
    sample = power.Gpus().sample(0)
    assert sample is not None
    assert sample.joules is None
    assert sample.utilisation == []  # rather than 0 % for the one that does not tell
    assert sample.watts == [350.0, 120.5]


@pytest.mark.parametrize(
    ("visible", "watts"), [("1", [120.5]), ("GPU-second,0", [120.5, 350.0]), ("0", [350.0])]
)
def test_only_visible_gpus_count(
    driver: Any, monkeypatch: pytest.MonkeyPatch, visible: str, watts: list[float]
) -> None:
    driver()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    sample = power.Gpus().sample(0)
    assert sample is not None
    assert sample.watts == watts


@pytest.mark.parametrize(
    ("visible", "words"), [("", "hides all"), ("-1", "hides all"), ("7", "knows no GPU 7")]
)
def test_a_gpu_that_is_not_there_is_refused(
    driver: Any, monkeypatch: pytest.MonkeyPatch, visible: str, words: str
) -> None:
    driver()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with pytest.raises(BadSettings, match=words):
        power.Gpus()


def test_a_gpu_that_does_not_tell_its_power_is_no_gpu_without_power(driver: Any) -> None:
    driver(power=0)
    with pytest.raises(BadSettings, match="GPU 1 does not tell its power"):
        power.Gpus()


@pytest.mark.parametrize(("init", "gpus", "words"), [(9, 2, "does not answer"), (0, 0, "no GPU")])
def test_a_driver_that_gives_nothing_is_refused(
    driver: Any, init: int, gpus: int, words: str
) -> None:
    driver(init=init, gpus=gpus)
    with pytest.raises(BadSettings, match=words):
        power.Gpus()


def test_a_machine_without_the_driver_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(power, "_LIBRARY", "libno-such-thing.so.1")
    with pytest.raises(BadSettings, match="does not have"):
        power.Gpus()
    assert ctypes.sizeof(power._Utilisation) == 8


@pytest.mark.slow
def test_the_energy_of_tokens_of_a_model_is_told_by_requests_at_once(
    driver: Any, tmp_path: Path
) -> None:
    """`benchmarks/energy.py` on a CPU, with the small driver in the place of the real one."""
    driver().rename(tmp_path / "libnvidia-ml.so.1")
    small = ["--model", "tiny", "--device", "cpu", "--dtype", "float32", "--quantization", "none"]
    small += ["--max-model-len", "512", "--prompt", "20", "--tokens", "10", "--requests", "1", "3"]
    out = tmp_path / "energy.json"
    command = [sys.executable, "benchmarks/energy.py", *small, "--json", str(out)]
    environment = os.environ | {"LD_LIBRARY_PATH": str(tmp_path)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = json.loads(out.read_text())["rows"]
    assert [row["requests"] for row in rows] == [1, 3]
    assert all(row["step_ms"] > 0 for row in rows)
    assert "| 3 | " in done.stdout
