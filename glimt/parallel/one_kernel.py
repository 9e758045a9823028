"""`OneKernelSum`: sums of small tensors over the GPUs of one machine, in a single kernel.

A decode step adds up a few kilobytes twice a layer, and what that costs is latency, not bytes. Each
rank copies its part into a buffer that all can read, waits for the others' signals, and adds up all
parts itself; torch has that kernel ("symmetric memory"). No NVLink multicast is used. Large tensors
are NCCL's, which moves fewer bytes.

All ranks add the same numbers, so their results agree.
"""

import logging
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed

from glimt.errors import BadSettings
from glimt.parallel.release import Release, stream_lanes
from glimt.parallel.trial import all_agree, all_same, record_event, wait_for_device

log = logging.getLogger(__name__)

MAX_BYTES = 512 * 1024  # of a sum; see benchmarks/all_reduce.py
_ALIGNMENT = 16  # bytes that the kernel reads at once
_TRIAL_LIMIT_S = 20.0
_RELEASE_LIMIT_S = 5.0

dist: Any = distributed  # torch's type stubs know half of it


@dataclass(frozen=True, slots=True)
class OneKernelSum:
    """Buffers of one group of ranks, by type."""

    group_name: str
    group: Any  # torch finds it by its name for only as long as somebody holds it
    buffers: dict[torch.dtype, Tensor]

    def sum(self, partial: Tensor) -> Tensor | None:
        """The sum over all ranks as a new tensor; None: too large, or of another type."""
        buffer = self.buffers.get(partial.dtype)
        num_bytes = partial.numel() * partial.itemsize
        if buffer is None or num_bytes > MAX_BYTES or num_bytes % _ALIGNMENT or not num_bytes:
            return None
        # torch 2.11 wants both of the same shape; the buffer's beginning is as good as the buffer.
        part_of_it = buffer[: partial.numel()].view(partial.shape)
        total: Tensor = torch.ops.symm_mem.one_shot_all_reduce_copy(
            part_of_it, partial, "sum", self.group_name
        )
        return total


def make_one_kernel_sum(
    name: str, backend: Any, host: Any, store: Any, rank: int, size: int, device: torch.device
) -> OneKernelSum | None:
    """All ranks call this; `backend` is the NCCL group that they share, `host` the gloo one. None
    on all of them where it cannot be done (GPUs that do not reach each other's memory), or was
    wrong or not done in time in a trial; the log says why. Raises BadSettings if a trial that
    failed left a GPU that cannot be used.
    """
    made, cause = None, None
    try:
        group = _name_group(name, backend, store, rank, size, device)
        buffers, handles = _share_buffers(name, device)
        made = OneKernelSum(name, group, buffers)
        for handle in handles:
            _mark(handle, rank, size)
        pads = [
            [handle.get_signal_pad(peer, dtype=torch.int32) for peer in range(size)]
            for handle in handles
        ]
        release = Release(pads, rank, stream_lanes(device), _RELEASE_LIMIT_S)
        wait_for_device(_TRIAL_LIMIT_S)
    except Exception as error:
        made, cause = None, error
    # The kernel waits for the others without a bound, so all must have come so far.
    works = all_agree(host, size, made is not None)
    if works and made is not None:
        totals: list[Tensor] = []
        try:
            _look(handles, rank, size)
        except Exception as error:
            cause = error
        works = all_agree(host, size, cause is None)
        if works:
            try:
                totals = _prove(made, release, device, rank, size)
            except BadSettings:
                raise
            except Exception as error:
                cause = error
            works = all_agree(host, size, cause is None)
        if works and not all_same(host, totals):
            works, cause = False, RuntimeError("ranks have different sums")
    if not works:
        log.warning(
            "sums in one kernel cannot be used, NCCL does them all: %s",
            cause or "another rank cannot do it",
        )
        return None
    return made


def _name_group(
    name: str, backend: Any, store: Any, rank: int, size: int, device: torch.device
) -> Any:
    """A group that torch knows by its name and may share memory."""
    internal: Any = torch._C._distributed_c10d
    group = dist.ProcessGroup(store, rank, size)
    group._register_backend(device, dist.ProcessGroup.BackendType.NCCL, backend)
    group._set_group_name(name)
    internal._register_process_group(name, group)
    internal._SymmetricMemory.set_group_info(name, rank, size, store)
    return group


def _share_buffers(name: str, device: torch.device) -> tuple[dict[torch.dtype, Tensor], list[Any]]:
    """Memory that all ranks can read, and torch's handles to it. A collective operation."""
    internal: Any = torch._C._distributed_c10d
    memory = internal._SymmetricMemory
    buffers, handles = {}, []
    for dtype in (torch.bfloat16, torch.float32):
        length = MAX_BYTES // dtype.itemsize
        buffers[dtype] = memory.empty_strided_p2p((length,), (1,), dtype, device, None)
        handles.append(memory.rendezvous(buffers[dtype], name))
    return buffers, handles


def _mark(handle: Any, rank: int, size: int) -> None:
    """Write this rank's number into the memory of all, which waits for nobody."""
    for peer in range(size):
        handle.get_buffer(peer, (size,), torch.float32)[rank] = rank + 1


def _look(handles: list[Any], rank: int, size: int) -> None:
    """Once all have marked: whether it arrived. Raises RuntimeError."""
    for handle in handles:
        marks = handle.get_buffer(rank, (size,), torch.float32).tolist()
        if marks != [peer + 1 for peer in range(size)]:
            raise RuntimeError(f"what ranks wrote into the memory of rank {rank} was {marks}")


def _prove(
    made: OneKernelSum, release: Release, device: torch.device, rank: int, size: int
) -> list[Tensor]:
    """Sums of small integers, which are exact; then those of any numbers, which must be the same to
    the bit on every rank: ranks whose activations differ may choose other experts.

    All of a type are launched before any is looked at, since the others wait in each. Another
    type's kernel may have to be loaded, which CUDA need not do beside one that waits. Raises
    RuntimeError, TimeoutError if others did not take part, and BadSettings if the GPU then hangs.
    """
    expected = size * (size + 1) / 2
    free: list[Tensor | None] = []
    for dtype, buffer in made.buffers.items():
        counts = (8, 4096, 12_288, buffer.numel())
        parts = [torch.full((n,), float(rank + 1), dtype=dtype, device=device) for n in counts]
        any_numbers = torch.randn(4096, device=device).to(dtype)
        exact = [made.sum(part) for part in parts for _ in range(3)]
        free.append(made.sum(any_numbers))
        try:
            wait_for_device(_TRIAL_LIMIT_S)
        except TimeoutError:
            release.free(record_event().query)
            raise
        for total in exact:
            if total is None or not bool((total == expected).all()):
                raise RuntimeError(f"a sum of {0 if total is None else total.numel()} was wrong")
    return [total for total in free if total is not None]
