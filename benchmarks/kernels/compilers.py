"""Compiles what will be timed, in other processes and without the GPU, job by job.

Triton keeps on disk what it compiled, so whoever launches the same later does not wait. Tensors are
without memory ("meta"): their types and alignment are all that the compiler asks for.
"""

import subprocess
import sys
import threading
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
        self._compiled: list[set[str]] = [set() for _ in self._processes]
        self._open = set(range(count))
        self._news = threading.Condition()
        self._listeners = [
            threading.Thread(target=self._listen, args=(part,)) for part in range(count)
        ]
        for listener in self._listeners:
            listener.start()

    def wait_for(self, job: str, seconds: float) -> bool:
        """Until all tiles of a job, by its name, are compiled (or whoever should has ended).

        False if that takes longer than `seconds`.
        """
        with self._news:
            return self._news.wait_for(
                lambda: all(job in self._compiled[part] for part in self._open),
                timeout=min(seconds, threading.TIMEOUT_MAX),
            )

    def _listen(self, part: int) -> None:
        told = self._processes[part].stdout
        assert told is not None  # it is a pipe
        with told:
            for line in told:
                if line.startswith("job "):
                    with self._news:
                        self._compiled[part].add(line.removeprefix("job ").strip())
                        self._news.notify_all()
        with self._news:
            self._open.discard(part)
            self._news.notify_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        for process in self._processes:
            process.terminate()
        for process, listener in zip(self._processes, self._listeners, strict=True):
            process.wait()
            listener.join()
