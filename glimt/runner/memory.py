"""How much memory is free, and how much of it a step needs for itself."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from glimt.engine.plan import NewRow, RowWork, StepPlan
from glimt.errors import NotEnoughMemory
from glimt.kernels.attention import MAX_WIDENED
from glimt.models.glm4v import Glm4v
from glimt.runner import streams
from glimt.runner.build import ExecutorSizes, build_executor
from glimt.runner.chunk_graphs import MAX_TOKENS
from glimt.runner.executor import ModelExecutor
from glimt.runner.graphs import Record
from glimt.runner.kv_cache import KvLayout
from glimt.wire import ImageSpan, PixelRef, SamplingParams

MAX_CPU_KV_BYTES = 4 * 2**30

_WORKSPACE_BYTES = 64 * 2**20  # that libraries take for the stream of recordings

_CGROUPS = (  # version 2 and version 1: limit, usage, statistics, page cache that can go
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    (
        "memory/memory.limit_in_bytes",
        "memory/memory.usage_in_bytes",
        "memory/memory.stat",
        "total_inactive_file",
    ),
)


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """Bytes of a device's memory; on a CPU those of this machine or container."""

    free_bytes: int
    total_bytes: int


def measure_free(device: torch.device) -> DeviceMemory:
    """Free and total memory now. On CUDA what torch holds in reserve counts as free."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info(device)
        return DeviceMemory(free, total)
    kilobytes = _table(Path("/proc/meminfo").read_text(encoding="ascii"))
    free, total = kilobytes["MemAvailable:"] * 1024, kilobytes["MemTotal:"] * 1024
    for limit_name, usage_name, statistics_name, reclaimable_name in _CGROUPS:
        limit, usage = _read_cgroup(limit_name).strip(), _read_cgroup(usage_name).strip()
        if limit.isdigit() and usage.isdigit():
            reclaimable = _table(_read_cgroup(statistics_name)).get(reclaimable_name, 0)
            free = min(free, max(0, int(limit) - int(usage) + reclaimable))
            total = min(total, int(limit))
    return DeviceMemory(free, total)


def kv_cache_bytes(
    memory: DeviceMemory, device: torch.device, utilization: float, step_bytes: int
) -> int:
    """Bytes for the KV cache when weights are loaded and a step takes `step_bytes` at its peak.

    CUDA: `utilization` of the whole device, less what is in use (by anybody) and `step_bytes`.
    CPU: `utilization` of what is free, at most 4 GiB. Raises NotEnoughMemory if nothing is left.
    """
    if device.type == "cpu":
        available = min(int(memory.free_bytes * utilization) - step_bytes, MAX_CPU_KV_BYTES)
    else:
        in_use = memory.total_bytes - memory.free_bytes
        available = int(memory.total_bytes * utilization) - in_use - step_bytes
    if available <= 0:
        raise NotEnoughMemory(
            f"no memory is left for the KV cache: {memory.free_bytes / 2**30:.2f} of "
            f"{memory.total_bytes / 2**30:.2f} GiB are free, of which "
            f"--gpu-memory-utilization {utilization} may be used, and a step needs "
            f"{step_bytes / 2**30:.2f} GiB"
        )
    return available


def peak_step_bytes(
    model: Glm4v,
    layout: KvLayout,
    sizes: ExecutorSizes,
    max_num_batched_tokens: int,
    device: torch.device,
    record: Record | None = None,
) -> int:
    """Bytes that the largest step takes beyond what is allocated now; 0 on a CPU.

    Runs it: all rows with `max_num_batched_tokens` tokens between them, every sampling feature
    that needs room, as much e4m3 context as attention widens in a step, while the largest pass of
    the vision tower has begun, and then that pass. The row tables are part of it, and so are a
    full image cache and, if graphs are to be recorded,
    what they keep.
    """
    if device.type == "cpu":
        return 0
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    peaks: list[int] = []

    def note() -> None:
        peaks.append(torch.cuda.max_memory_allocated(device) - before)
        torch.cuda.reset_peak_memory_stats(device)

    run_largest_step(model, layout, sizes, max_num_batched_tokens, device, done=note)
    peak = sum(peaks) if streams.OWN_STREAM else max(peaks)  # a stream's memory is its own
    if record is not None:
        peak += _graph_bytes(model, layout, sizes, device)
    torch.cuda.empty_cache()
    embedding_bytes = model.config.text.hidden_size * model.embedding.weight.dtype.itemsize
    return peak + sizes.image_cache_tokens * embedding_bytes


def run_largest_step(
    model: Glm4v,
    layout: KvLayout,
    sizes: ExecutorSizes,
    max_num_batched_tokens: int,
    device: torch.device,
    *,
    context: int | None = None,
    done: Callable[[], None] = lambda: None,
) -> None:
    """Carry out the step that `peak_step_bytes` describes. Raises what it raises.

    `context`: tokens that each row has then; None: as many as attention widens in one step, if its
    rows may have so many. `done` is called after the step, and again after the pass of the tower.
    """
    # Every row is given the same few pages: what the KV holds does not matter here.
    num_rows = min(sizes.max_num_seqs, max_num_batched_tokens)
    length = min(max_num_batched_tokens // num_rows, sizes.max_model_len)
    if context is None:
        each = MAX_WIDENED // num_rows // sizes.page_size * sizes.page_size
        context = min(each, sizes.max_model_len) if layout.dtype.itemsize == 1 else 0
    context = max(context, length)
    num_pages = -(-length // sizes.page_size)
    pixels = _NoPixels(model.config.vision.patch_size)
    executor = build_executor(model, layout, replace(sizes, num_pages=num_pages), [pixels], device)
    sampling = SamplingParams(
        max_tokens=1, top_p=0.9, min_p=0.1, repetition_penalty=1.1, frequency_penalty=0.1
    )
    pages = tuple(page % num_pages for page in range(-(-context // sizes.page_size)))
    rows = tuple(_text_row(row, context, sampling, pages) for row in range(num_rows))
    work = tuple(RowWork(row, context - length, length, samples=True) for row in range(num_rows))
    largest = max(sizes.max_patches, sizes.max_image_patches)
    image = pixels.span(largest, model.config.vision.merge_size)
    begun = StepPlan(step=0, new_rows=rows, encode=(image,), work=work[:1])
    executor.launch(begun).result()
    executor.launch(StepPlan(step=1, work=work)).result()
    done()
    executor.launch(StepPlan(step=2)).result()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    done()


def _graph_bytes(
    model: Glm4v,
    layout: KvLayout,
    sizes: ExecutorSizes,
    device: torch.device,
) -> int:
    """What graphs of the largest steps keep; those of smaller ones share it: one runs at a time.

    It is what the allocator had to take for the same steps as they come: nothing is recorded, which
    takes as long as many steps, for addresses that will be others.
    """
    torch.cuda.empty_cache()
    executor = record_largest_graphs(model, layout, sizes, device, lambda work: work)
    torch.cuda.synchronize(device)
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    del executor
    return kept + _WORKSPACE_BYTES


def record_largest_graphs(
    model: Glm4v, layout: KvLayout, sizes: ExecutorSizes, device: torch.device, record: Record
) -> ModelExecutor:
    """Carry out the largest steps that graphs are made of, so that `record` is given their work.

    The executor that is returned holds the graphs. Raises what the steps raise.
    """
    length = min(MAX_TOKENS - 8, sizes.max_model_len)  # and a few of padding
    num_pages = -(-length // sizes.page_size)
    executor = build_executor(
        model, layout, replace(sizes, num_pages=num_pages), [], device, record=record
    )
    sampling = SamplingParams(max_tokens=2, top_p=0.9, min_p=0.1)
    all_rows = range(sizes.max_num_seqs)
    rows = tuple(_text_row(row, 1, sampling, (0,)) for row in all_rows)
    work = tuple(RowWork(row, 0, 1, samples=True) for row in all_rows)
    executor.launch(StepPlan(step=0, new_rows=rows, work=work)).result()
    if executor.replays_prompts:
        prompt = _text_row(0, length, sampling, tuple(range(num_pages)))
        chunk = (RowWork(0, 0, length),)
        executor.launch(StepPlan(1, tuple(all_rows), new_rows=(prompt,), work=chunk)).result()
        executor.launch(StepPlan(2, work=chunk)).result()  # the second of its size is recorded
    return executor


def _text_row(row: int, length: int, sampling: SamplingParams, page_ids: tuple[int, ...]) -> NewRow:
    return NewRow(
        row=row,
        token_ids=np.zeros(length, np.int32),
        num_prompt_tokens=length,
        positions=None,
        rope_delta=0,
        images=(),
        sampling=sampling,
        page_ids=page_ids,
    )


class _NoPixels:
    """A pixel source of zeros."""

    def __init__(self, patch_size: int) -> None:
        self._patch_bytes = 3 * 2 * patch_size**2

    def span(self, num_patches: int, merge_size: int) -> ImageSpan:
        """An image of about `num_patches`, as square as can be (the tower's worst case)."""
        side = max(1, int(num_patches**0.5) // merge_size) * merge_size
        width = max(1, num_patches // side // merge_size) * merge_size
        return ImageSpan(
            content_hash=bytes(32),
            start=0,
            num_tokens=side * width // merge_size**2,
            grid_h=side,
            grid_w=width,
            num_frames=2,
            pixels=PixelRef(0, 0, side * width * self._patch_bytes),
        )

    def view(self, ref: PixelRef) -> memoryview:
        """Zeros, as many as asked for."""
        return memoryview(bytearray(ref.nbytes))


def _table(text: str) -> dict[str, int]:
    """Name and number of each line."""
    fields = (line.split() for line in text.splitlines())
    return {field[0]: int(field[1]) for field in fields if len(field) > 1}


def _read_cgroup(name: str) -> str:
    """A file of this container's memory controller; empty without one."""
    try:
        return (Path("/sys/fs/cgroup") / name).read_text(encoding="ascii")
    except OSError:
        return ""
