"""From weight files to parameters: `inspect` decides everything by the headers, `load` reads.

    plan = inspect(folder, config)              headers only; every problem in one error
    model = Glm4v(config, mesh, fp8=plan.fp8)   under torch.device("meta")
    load(model, plan, device, dtype)            each byte of this rank's share once

Host memory stays small: the files are memory-mapped, a tensor is copied (and, for FP8 made here,
quantised on the device) slice by slice, and each file is let go before the next one of its thread.
"""

import os
import sys
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from tqdm import tqdm

from glimt.models.names import Source, scale_name
from glimt.models.quantize import quantize_rows, row_scales
from glimt.models.weight_plan import Task, WeightPlan, inspect

__all__ = ["WeightPlan", "allocate", "inspect", "load"]


def load(
    model: nn.Module,
    plan: WeightPlan,
    device: torch.device,
    dtype: torch.dtype,
    *,
    progress: bool = True,
    max_threads: int = 8,
) -> None:
    """Give every parameter of `model` (on the meta device) its memory and its value.

    Args:
        plan: of `inspect`, for the same configuration and share; the model was built with its fp8.
        dtype: of the parameters that are not FP8. Scales and router biases are float32.
        progress: a bar in bytes on stderr.
        max_threads: how many files may be open at once; never more than cores.
    """
    _check_model(model, plan)
    tensors = allocate(model, device, dtype)
    bar = tqdm(
        total=plan.num_bytes,
        desc="weights",
        unit="B",
        unit_scale=True,
        file=sys.stderr,
        mininterval=0.2 if sys.stderr.isatty() else 10.0,  # a log gets a line now and then
        delay=1.0,  # small models need no bar
        disable=not progress,
    )
    num_threads = max(1, min(max_threads, os.cpu_count() or 1, len(plan.tasks)))
    stop, lock = threading.Event(), threading.Lock()

    def read_file(file: Path) -> None:
        for task in _tasks_of(file, plan, tensors, stop):
            with lock:
                bar.update(task.num_bytes)

    with bar, ThreadPoolExecutor(num_threads, thread_name_prefix="load") as pool:
        futures = [pool.submit(read_file, file) for file in plan.tasks]
        try:
            for future in futures:
                future.result()
        finally:  # also when a signal ends the wait
            stop.set()
            pool.shutdown(cancel_futures=True)
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def allocate(model: nn.Module, device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
    """Replace the model's meta parameters by uninitialised memory on `device`; name -> tensor.

    FP8 parameters stay FP8; scales and router biases are float32; all others get `dtype`.
    """
    tensors: dict[str, Tensor] = {}
    for name, parameter in list(model.named_parameters()):
        kind = dtype
        if parameter.dtype == torch.float8_e4m3fn:
            kind = parameter.dtype
        elif name.endswith(("_scale", "router.bias")):
            kind = torch.float32
        tensor = torch.empty(parameter.shape, dtype=kind, device=device)
        owner, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(owner), leaf, nn.Parameter(tensor, requires_grad=False))
        tensors[name] = tensor
    for module in model.modules():
        for leaf, buffer in module.named_buffers(recurse=False):
            setattr(module, leaf, buffer.to(device))
    return tensors


def _check_model(model: nn.Module, plan: WeightPlan) -> None:
    """The model must have exactly the parameters of the plan, or the two were not made together."""
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    if shapes != plan.shapes:
        differing = {name for name, _ in shapes.items() ^ plan.shapes.items()}
        raise ValueError(f"model and plan differ in {sorted(differing)[:10]}")


def _tasks_of(
    file: Path, plan: WeightPlan, tensors: Mapping[str, Tensor], stop: threading.Event
) -> Iterator[Task]:
    """Carry out one file's tasks in the order of its bytes, giving each when it is done."""
    with safe_open(file, framework="pt", device="cpu") as handle:
        for task in plan.tasks[file]:
            if stop.is_set():
                return
            _carry_out(task, handle, tensors)
            yield task


def _carry_out(task: Task, handle: Any, tensors: Mapping[str, Tensor]) -> None:
    source, into = task.source, tensors[task.parameter]
    part = handle.get_slice(task.stored_name)
    start, stop = source.rows
    if task.action == "quantize":
        # A row's scale is of the whole row, also where this rank keeps only some columns.
        rows = part[start:stop].to(into.device)
        scale = row_scales(rows)
        _place(scale, tensors[scale_name(task.parameter)], source)
        _place(quantize_rows(_columns(rows, source), scale), into, source)
    elif task.action == "scale":
        _place(part[start:stop].reshape(-1), into, source)
    elif source.columns is None:
        _place(_layout(part[start:stop], source), into, source)
    else:
        _place(part[start:stop, source.columns[0] : source.columns[1]], into, source)


def _columns(rows: Tensor, source: Source) -> Tensor:
    return rows if source.columns is None else rows[:, source.columns[0] : source.columns[1]]


def _layout(stored: Tensor, source: Source) -> Tensor:
    if source.layout == "patch":
        return stored.flatten(1)
    if source.layout == "block":
        return stored.permute(0, 2, 3, 1).flatten(1)
    return stored


def _place(value: Tensor, into: Tensor, source: Source) -> None:
    if source.expert is not None:
        into = into[source.expert]
    into[source.start : source.start + source.num_rows].copy_(value)
