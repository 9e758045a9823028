"""Joins the processes of a replica into groups: NCCL between GPUs, gloo between hosts and on CPUs.

The groups are values, not the state of a module: a test makes several of them in one process.
"""

from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import torch
from torch import distributed
from torch.distributed import ProcessGroup

from glimt.parallel.one_kernel import OneKernelSum, make_one_kernel_sum

dist: Any = distributed  # torch's type stubs know half of it

# The last resort against a rank that neither works nor dies; whoever watches the processes notices
# sooner. Long enough for one rank to compile kernels while another waits.
TIMEOUT = timedelta(seconds=300)
SHARING_TIMEOUT = timedelta(seconds=30)


@dataclass(frozen=True, slots=True)
class Groups:
    """The same ranks twice: `device` moves tensors of the device, `host` those of the CPU."""

    device: ProcessGroup
    host: ProcessGroup
    small_sums: OneKernelSum | None = None


def join(
    meeting_point: Path, rank: int, size: int, device: torch.device, *, only_nccl: bool = False
) -> Groups:
    """Meet the other ranks of this machine at a file that no group used before.

    `only_nccl`: sums on GPUs are NCCL's, whatever their size.

    All ranks must call this; it returns when they have. Raises RuntimeError after `TIMEOUT`.
    """
    store = dist.FileStore(str(meeting_point), size)
    store.set_timeout(TIMEOUT)
    host = gloo(dist.PrefixStore("host", store), rank, size)
    if device.type != "cuda":
        return Groups(host, host)
    nccl = _nccl(dist.PrefixStore("device", store), rank, size, device)
    if only_nccl:
        return Groups(nccl, host)
    # Where only one rank fails to share memory, the others shall not wait long for it.
    store.set_timeout(SHARING_TIMEOUT)
    memory = dist.PrefixStore("memory", store)
    small_sums = make_one_kernel_sum(f"tp{size}", nccl, memory, rank, size, device)
    store.set_timeout(TIMEOUT)
    num_can = torch.tensor([int(small_sums is not None)])
    host.allreduce([num_can]).wait()
    return Groups(nccl, host, small_sums if num_can.item() == size else None)


def gloo(store: Any, rank: int, size: int) -> ProcessGroup:
    """A group over the loopback interface."""
    kind: Any = dist.ProcessGroupGloo
    options = kind._Options()
    options._devices = [kind.create_device(hostname="127.0.0.1")]
    options._timeout = TIMEOUT
    options._threads = 2
    return cast(ProcessGroup, kind(store, rank, size, options))


def _nccl(store: Any, rank: int, size: int, device: torch.device) -> ProcessGroup:
    """A group over NVLink or PCIe, with its communicator made now and not in the first step."""
    kind: Any = dist.ProcessGroupNCCL
    options = kind.Options()
    options._timeout = TIMEOUT
    group = cast(ProcessGroup, kind(store, rank, size, options))
    group.allreduce([torch.zeros(1, device=device)]).wait()
    torch.cuda.synchronize(device)
    return group
