"""Checks one case against its definition and times it."""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from benchmarks.kernels.cases import Case

ROTATED_BYTES = 200 << 20  # of input sets used in turn: several times a Hopper's 50 MB of L2
MAX_SETS = 24
MAX_SET_BYTES = 8 << 30


@contextmanager
def poisoned_allocations() -> Iterator[None]:
    """Within, memory that nobody wrote is NaN: what a kernel forgets to write shows."""
    kept = (torch.empty, torch.empty_like, Tensor.new_empty)

    def poisoned(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def wrapped(*args: Any, **named: Any) -> Tensor:
            tensor = make(*args, **named)
            if tensor.numel() and tensor.is_contiguous():
                tensor.view(torch.uint8).fill_(255)
            return tensor

        return wrapped

    torch.empty, torch.empty_like, Tensor.new_empty = map(poisoned, kept)  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.empty, torch.empty_like, Tensor.new_empty = kept  # type: ignore[assignment]


def error_of(case: Case) -> float:
    """How far the outputs are from the definition's, relative to their size; inf for NaN."""
    given = case.make(0)
    expected = numbers(case.define(*given))
    with poisoned_allocations():
        got = numbers((case.check or case.run)(*given))
    errors = [0.0]
    for ours, theirs in zip(got, expected, strict=True):
        norm = theirs.norm().item()
        error = (ours - theirs).norm().item() / norm if norm else float((ours != 0).any())
        errors.append(error if ours.isfinite().all() else float("inf"))
    return max(errors)


def numbers(outputs: Any) -> list[Tensor]:
    """Outputs as float32; FP8 rows with their scales as the numbers that they stand for."""
    if isinstance(outputs, Tensor):
        return [outputs.float()]
    found: list[Tensor] = []
    parts = [part for part in outputs if part is not None]
    while parts:
        part = parts.pop(0)
        if isinstance(part, tuple):
            found += numbers(part)
        elif part.dtype == torch.float8_e4m3fn and parts and parts[0].shape[-1] == 1:
            found.append(part.float() * parts.pop(0))
        else:
            found.append(part.float())
    return found


def input_sets(case: Case, is_quick: bool) -> list[tuple[Any, ...]]:
    """Enough sets of inputs that none is still in the cache when its turn comes again."""
    own = max(1, case.own_bytes)
    wanted = 2 if is_quick else -(-ROTATED_BYTES // own)
    return [case.make(n) for n in range(max(1, min(wanted, MAX_SETS, MAX_SET_BYTES // own)))]


def microseconds(
    run: Callable[..., Any], sets: list[tuple[Any, ...]], device: torch.device, rounds: int
) -> float:
    """The median of `rounds` passes over all sets, for one call."""
    for given in sets[:2]:
        run(*given)
    if device.type == "cpu":
        return statistics.median(_on_cpu(run, sets) for _ in range(rounds))
    repeat = max(1, 20 // len(sets))
    calls = [given for _ in range(repeat) for given in sets]
    replay = _recorded(run, calls)
    times = []
    for _ in range(rounds + 1):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        replay()
        end.record()
        end.synchronize()
        times.append(1000 * begin.elapsed_time(end) / len(calls))
    return statistics.median(times[1:])


def _on_cpu(run: Callable[..., Any], sets: list[tuple[Any, ...]]) -> float:
    began = time.perf_counter()
    for given in sets:
        run(*given)
    return 1e6 * (time.perf_counter() - began) / len(sets)


def _recorded(run: Callable[..., Any], calls: list[tuple[Any, ...]]) -> Callable[[], None]:
    """The calls as a graph, so that launches from the host are not measured; as they are if they
    cannot be one."""

    def all_calls() -> None:
        for given in calls:
            run(*given)

    all_calls()
    torch.cuda.synchronize()
    try:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            all_calls()
    except RuntimeError:
        torch.cuda.synchronize()
        return all_calls
    return graph.replay
