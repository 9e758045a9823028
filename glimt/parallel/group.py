"""Joins the processes of a replica into groups: NCCL between GPUs, gloo between hosts and on CPUs.

The groups are values, not the state of a module: a test makes several of them in one process.
"""

import logging
import os
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import torch
from torch import distributed
from torch.distributed import ProcessGroup

from glimt.errors import BadSettings
from glimt.parallel.norm_sums import NormSums, make_norm_sums
from glimt.parallel.one_kernel import OneKernelSum, make_one_kernel_sum

log = logging.getLogger(__name__)

dist: Any = distributed  # torch's type stubs know half of it

# The last resort against a rank that neither works nor dies; whoever watches the processes notices
# sooner. Long enough for one rank to compile kernels while another waits.
TIMEOUT = timedelta(seconds=300)
SHARING_TIMEOUT = timedelta(seconds=30)
# Of what hosts agree on: machines may read their weights at very different speeds.
HOST_TIMEOUT = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class Meeting:
    """Where the ranks find each other: at a file that no group used before, or, on several
    machines, at a port of rank 0's, which is closed to strangers only by the network.
    """

    file: Path | None = None
    host: str = ""
    port: int = 0
    listener_fd: int = -1  # listening socket of the rank that all come to
    own_address: str = "127.0.0.1"  # at which others reach this rank
    name: str = ""  # of the group, where several meet at one port

    def store(self, size: int) -> Any:
        """What the ranks tell each other their addresses by."""
        if self.file is not None:
            return dist.FileStore(str(self.file), size)
        listens = self.listener_fd >= 0
        store = dist.TCPStore(
            self.host,
            self.port,
            size,
            listens,
            TIMEOUT,
            wait_for_workers=False,
            master_listen_fd=os.dup(self.listener_fd) if listens else None,  # torch closes it
        )
        return dist.PrefixStore(self.name, store) if self.name else store


@dataclass(frozen=True, slots=True)
class Groups:
    """The same ranks twice: `device` moves tensors of the device, `host` those of the CPU."""

    device: ProcessGroup
    host: ProcessGroup
    small_sums: OneKernelSum | None = None
    norm_sums: NormSums | None = None


def join(
    meeting: Meeting,
    rank: int,
    size: int,
    device: torch.device,
    *,
    width: int = 0,
    only_nccl: bool = False,
) -> Groups:
    """Meet the other ranks.

    `width`: of the rows whose sums are normed; 0 = none are. `only_nccl`: sums on GPUs are NCCL's,
    whatever their size.

    All ranks must call this; it returns when they have. Raises BadSettings if their devices cannot
    work together, and RuntimeError after `TIMEOUT`.
    """
    groups, store = _meet(meeting, rank, size, device)
    if device.type != "cuda" or only_nccl:
        return groups
    nccl, host = groups.device, groups.host
    # Where only one rank fails to share memory, the others shall not wait long for it.
    store.set_timeout(SHARING_TIMEOUT)
    memory = dist.PrefixStore("memory", store)
    small_sums = make_one_kernel_sum(f"tp{size}", nccl, host, memory, rank, size, device)
    norm_sums = None
    if small_sums is not None and width:
        norm_sums = make_norm_sums(small_sums.group_name, host, rank, size, device, width)
    store.set_timeout(TIMEOUT)
    return Groups(nccl, host, small_sums, norm_sums)


def join_replicas(meeting: Meeting, rank: int, size: int, device: torch.device) -> Groups:
    """Meet the ranks of the other replicas that share experts with this one.

    All of them must call this; it returns when they have. Raises as `join` does.
    """
    groups, _ = _meet(meeting, rank, size, device)
    return groups


def _meet(meeting: Meeting, rank: int, size: int, device: torch.device) -> tuple[Groups, Any]:
    """(gloo's group of these ranks, and on GPUs NCCL's; the store they met in)."""
    store = meeting.store(size)
    store.set_timeout(TIMEOUT)
    check_devices(dist.PrefixStore("kind", store), rank, size, device)
    host = gloo(dist.PrefixStore("host", store), rank, size, meeting.own_address)
    if device.type != "cuda":
        return Groups(host, host), store
    return Groups(_nccl(dist.PrefixStore("device", store), rank, size, device), host), store


def check_devices(store: Any, rank: int, size: int, device: torch.device) -> None:
    """Ranks of which some compute on a GPU and others on a CPU, or that have different NCCLs, would
    wait for each other. Different GPUs can work together, at the pace of the slowest.

    Raises BadSettings, on all ranks.
    """
    on_gpu = device.type == "cuda"
    nccl = ".".join(map(str, cast(Any, torch.cuda.nccl).version())) if on_gpu else ""
    kind = torch.cuda.get_device_name(device) if on_gpu else "a CPU"
    store.set(str(rank), f"{nccl}|{kind}")
    found = [store.get(str(other)).decode().split("|", 1) for other in range(size)]
    first_nccl, first_kind = found[0]
    for other, (its_nccl, its_kind) in enumerate(found):
        if its_nccl != first_nccl:
            raise BadSettings(
                f"rank {other} computes on {its_kind}{its_nccl and f' with NCCL {its_nccl}'}, rank "
                f"0 on {first_kind}{first_nccl and f' with NCCL {first_nccl}'}: they cannot work "
                "together; look at the driver (nvidia-smi) and torch of the odd one's machine"
            )
        if its_kind != first_kind and rank == 0:
            log.warning("rank %d has %s, rank 0 %s", other, its_kind, first_kind)


def gloo(store: Any, rank: int, size: int, own_address: str = "127.0.0.1") -> ProcessGroup:
    """A group over the interface that has `own_address`; the loopback, on one machine."""
    kind: Any = dist.ProcessGroupGloo
    options = kind._Options()
    options._devices = [kind.create_device(hostname=own_address)]
    options._timeout = HOST_TIMEOUT
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
