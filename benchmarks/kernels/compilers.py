"""Compiles what will be timed, in other processes and without the GPU, job by job.

Triton keeps on disk what it compiled, so whoever launches the same later does not wait. Tensors are
without memory ("meta"): their types and alignment are all that the compiler asks for.
"""

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self
from unittest import mock

import torch
from torch import Tensor

from benchmarks.kernels.cases import Inputs

try:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.runtime.jit import JITFunction

    from glimt.kernels import triton_support
except ImportError:  # no Triton for this system: `jobs` says so
    triton = JITFunction = triton_support = None  # type: ignore[assignment]


class NoInputs(Inputs):
    """Tensors without memory."""

    def __init__(self) -> None:
        super().__init__(torch.device("meta"), torch.bfloat16)

    def randn(self, seed: int, *size: int, std: float = 1.0) -> Tensor:
        return torch.empty(size, dtype=self.dtype, device=self.device)

    def fp8(self, seed: int, *size: int) -> tuple[Tensor, Tensor]:
        scale = torch.empty(size[:-1], dtype=torch.float32, device=self.device)
        return torch.empty(size, dtype=torch.float8_e4m3fn, device=self.device), scale

    def ints(self, seed: int, high: int, *size: int) -> Tensor:
        return torch.empty(size, dtype=torch.int64, device=self.device)


class _Hopper:
    """As much of a driver as Triton asks for before it launches."""

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> Any:
        return GPUTarget("cuda", 90, 32)


@contextmanager
def only_compiled() -> Iterator[None]:
    """Within, kernels are compiled and not launched; for Hopper where there is no GPU."""
    run = JITFunction.run

    def compile_only(kernel: Any, *args: Any, grid: Any, warmup: bool, **named: Any) -> Any:
        compiled = run(kernel, *args, grid=grid, warmup=True, **named)
        triton_support._COMPILED.clear()  # or the second launch of it would be one
        return _Launched(compiled)

    if not torch.cuda.is_available():
        triton.runtime.driver.set_active(_Hopper())
    with mock.patch.object(JITFunction, "run", compile_only):
        yield


class _Launched:
    """What a launch gives; to launch it again does nothing."""

    def __init__(self, compiled: Any) -> None:
        self.compiled = compiled

    def __getitem__(self, grid: Any) -> Any:
        return lambda *given: None


class Compilers:
    """Processes that compile the jobs of a command in their order, each some of the tiles."""

    def __init__(self, arguments: Sequence[str], count: int) -> None:
        command = [sys.executable, "-m", "benchmarks.kernels", *arguments]
        self._processes = [
            subprocess.Popen(
                [*command, "--compile-part", str(part)], stdout=subprocess.PIPE, text=True
            )
            for part in range(count)
        ]
        self._done = [set[str]() for _ in range(count)]

    def wait_for(self, job: str) -> None:
        """Until all tiles of a job, by its name, are compiled (or whoever did it has ended)."""
        for done, process in zip(self._done, self._processes, strict=True):
            while job not in done and process.stdout is not None:
                line = process.stdout.readline()
                if not line:
                    break
                if line.startswith("job "):
                    done.add(line.removeprefix("job ").strip())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.wait()
