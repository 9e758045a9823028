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

log = logging.getLogger(__name__)

MAX_BYTES = 512 * 1024  # of a sum; see benchmarks/all_reduce.py
_ALIGNMENT = 16  # bytes that the kernel reads at once

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
    name: str, backend: Any, store: Any, rank: int, size: int, device: torch.device
) -> OneKernelSum | None:
    """All ranks call this; `backend` is the NCCL group that they share. None where it cannot be
    done (GPUs that do not reach each other's memory), or is wrong; the log says why.
    """
    try:
        group = _name_group(name, backend, store, rank, size, device)
        made = OneKernelSum(name, group, _share_buffers(name, device))
        _prove(made, backend, device, rank, size)
    except Exception as error:
        log.warning("sums in one kernel cannot be used, NCCL does them all: %s", error)
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


def _share_buffers(name: str, device: torch.device) -> dict[torch.dtype, Tensor]:
    """Memory that all ranks can read. A collective operation."""
    internal: Any = torch._C._distributed_c10d
    memory = internal._SymmetricMemory
    buffers = {}
    for dtype in (torch.bfloat16, torch.float32):
        length = MAX_BYTES // dtype.itemsize
        buffers[dtype] = memory.empty_strided_p2p((length,), (1,), dtype, device, None)
        memory.rendezvous(buffers[dtype], name)
    return buffers


def _prove(made: OneKernelSum, backend: Any, device: torch.device, rank: int, size: int) -> None:
    """Sums of small integers are exact, and those of any numbers the same to the bit on every rank:
    ranks whose activations differ may choose other experts. Raises RuntimeError.
    """
    expected = size * (size + 1) / 2
    for dtype, buffer in made.buffers.items():
        for count in (8, 4096, 12_288, buffer.numel()):
            for _ in range(3):
                part = torch.full((count,), float(rank + 1), dtype=dtype, device=device)
                total = made.sum(part)
                if total is None or not bool((total == expected).all()):
                    raise RuntimeError(f"a sum of {count} numbers of {dtype} was wrong")
        total = made.sum(torch.randn(4096, device=device).to(dtype))
        if total is None:
            raise RuntimeError(f"nothing was summed of {dtype}")
        totals = total.new_empty(size * 4096)
        backend._allgather_base(totals, total).wait()
        if not bool((totals.view(size, -1) == total).all()):
            raise RuntimeError(f"ranks have different sums of {dtype}")
