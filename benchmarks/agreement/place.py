"""The machine: which cores do what, what there is, and what others took of it meanwhile."""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.run_all import machine


@dataclass(frozen=True)
class Halves:
    """Cores of the servers and of the clients; the same ones where there is but one."""

    serving: tuple[int, ...]
    asking: tuple[int, ...]

    @classmethod
    def of(cls, cores: Sequence[int]) -> "Halves":
        """The first half of them and the other."""
        cores = sorted(cores)
        half = len(cores) // 2
        return cls(tuple(cores[:half] or cores), tuple(cores[half:]))

    @staticmethod
    def before(cores: Sequence[int]) -> list[str]:
        """What to put before a command so that it runs on these cores, a thread on each."""
        if shutil.which("taskset") is None:
            return []
        return ["env", f"OMP_NUM_THREADS={len(cores)}", "taskset", "-c", ",".join(map(str, cores))]

    def __str__(self) -> str:
        return f"servers on {_plural(self.serving)}, clients on {_plural(self.asking)}"


class Stolen:
    """What the host of a virtual machine took of its cores since this was made."""

    def __init__(self) -> None:
        self._before = _ticks()

    def share(self) -> float:
        """Of all time of all cores; 0 where the kernel does not tell."""
        spent = [now - before for now, before in zip(_ticks(), self._before, strict=True)]
        return spent[_STEAL] / max(1, sum(spent))


def gpus() -> list[str]:
    """Names of NVIDIA's, one for each; empty where there are none, or none is to be seen."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        return []
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        return subprocess.check_output(command, text=True).splitlines()
    except (OSError, subprocess.CalledProcessError):
        return []


def circumstances(python: Path, halves: Halves) -> str:
    """vLLM's version, the machine, and how busy it was."""
    ask = "import importlib.metadata as m; print(m.version('vllm'))"
    version = subprocess.check_output([python, "-c", ask], text=True).strip()
    hardware = ", ".join([machine(), *gpus()])
    load = os.getloadavg()[0]
    return f"vLLM {version}; {hardware}; {halves}; load average before: {load:.1f}"


_STEAL = 7  # its column in /proc/stat: user, nice, system, idle, iowait, irq, softirq, steal


def _ticks() -> list[int]:
    if not sys.platform.startswith("linux"):
        return [0] * (_STEAL + 1)
    line = Path("/proc/stat").read_text().partition("\n")[0]
    return [int(each) for each in line.split()[1 : _STEAL + 2]]


def _plural(cores: Sequence[int]) -> str:
    return f"{len(cores)} core{'s' * (len(cores) != 1)}"
