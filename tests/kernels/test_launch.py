"""Launches remember what was compiled, and for what."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="Triton has packages for Linux only")

from glimt.kernels import triton_support
from glimt.kernels.triton_support import launch, power_of_two, tiles_of

pytestmark = pytest.mark.skipif(
    triton_support.INTERPRETED.value, reason="the interpreter compiles nothing"
)

GRID = (3, 1, 1)


class Runs:
    """Something with a grid in brackets, as kernels and what is compiled of them are."""

    def __init__(self, run: Callable[..., Any]) -> None:
        self.run = run

    def __getitem__(self, grid: tuple[int, int, int]) -> Callable[..., Any]:
        return lambda *arguments, **options: self.run(grid, arguments, options)


class Kernel(Runs):
    """A kernel of a pointer, a number and a constant that notes its compilations and launches."""

    def __init__(self) -> None:
        self.compiled: list[tuple[Any, ...]] = []
        self.launched: list[tuple[Any, ...]] = []
        self.__name__ = "kernel"
        self.params = [SimpleNamespace(is_constexpr=place == 2) for place in range(3)]
        super().__init__(self._compile)

    def _compile(self, grid: Any, arguments: Any, options: Any) -> Runs:
        self.compiled.append((grid, arguments, options))
        return Runs(lambda grid, arguments, options: self.launched.append((grid, arguments)))


def test_another_launch_of_the_same_kind_runs_what_was_compiled() -> None:
    kernel, x, y = Kernel(), torch.zeros(4), torch.ones(8)
    launch(kernel, GRID, x, 7, 64, warps=8)
    launch(kernel, (9, 2, 1), y, 1, 64, warps=8)
    assert len(kernel.compiled) == 1
    assert kernel.compiled[0][2]["num_warps"] == 8
    ((grid, arguments),) = kernel.launched
    assert grid == (9, 2, 1)
    assert arguments[0] is y
    assert arguments[1:] == (1, 64)


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        ((torch.zeros(4), 7, 128), {}),
        ((torch.zeros(4).bfloat16(), 7, 64), {}),
        ((torch.zeros(4, device="meta"), 7, 64), {}),
        ((torch.zeros(4), None, 64), {"warps": 8}),
        ((torch.zeros(4), 7, 64), {"stages": 4}),
    ],
)
def test_other_constants_types_devices_and_options_are_compiled_anew(
    arguments: tuple[Any, ...], options: dict[str, int]
) -> None:
    kernel = Kernel()
    launch(kernel, GRID, torch.zeros(4), 7, 64)
    launch(kernel, GRID, *arguments, **options)
    assert len(kernel.compiled) == 2
    assert not kernel.launched


def test_sizes_of_grids_and_blocks() -> None:
    assert [tiles_of(size, 4) for size in (1, 4, 5, 8)] == [1, 1, 2, 2]
    assert [power_of_two(size) for size in (1, 2, 3, 4, 5, 4096, 4097)] == [
        1,
        2,
        4,
        4,
        8,
        4096,
        8192,
    ]


def refuse(*_: Any) -> None:
    raise RuntimeError("Failed to find C compiler")


@pytest.mark.parametrize(
    ("capability", "run", "works"),
    [((9, 0), lambda *_: None, True), ((8, 0), lambda *_: None, False), ((9, 0), refuse, False)],
)
def test_devices_that_cannot_run_kernels_go_on_without(
    capability: tuple[int, int],
    run: Callable[..., None],
    works: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(triton_support, "_touch_kernel", Runs(lambda *_: run()))
    assert triton_support.works_on.__wrapped__(torch.device("cpu")) is works
    assert ("C compiler" in caplog.text) is (run is refuse)


def test_only_dense_tensors_at_aligned_addresses_fit() -> None:
    x = torch.zeros(8, 16)
    assert triton_support.fits(x, None, x[2:])
    assert not triton_support.fits(x, x[:, 4:])
    assert not triton_support.fits(x.view(-1)[1:])
