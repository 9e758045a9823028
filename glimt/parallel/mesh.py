"""`Mesh`: this process's place in the grid of GPUs, and the collectives the networks use.

Axes: `tp` splits every matrix; `dp` counts the replicas that share experts, each of which computes
tokens of its own; `ep` spreads whole experts over all ranks of both. A collective is written where
a block's forward needs it; over an axis of size 1 it gives its argument back and costs nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.distributed import (
    AllreduceOptions,
    AllToAllOptions,
    BroadcastOptions,
    ProcessGroup,
    ReduceOp,
    ReduceScatterOptions,
)

from glimt.errors import BadSettings
from glimt.experts.group import Backend
from glimt.experts.placement import Placement
from glimt.parallel.beside import Beside
from glimt.parallel.one_kernel import OneKernelSum

_AllgatherOptions: Any = torch._C._distributed_c10d.AllgatherOptions  # not in the stubs


class SumAndNorm(Protocol):
    """`norm_sums.NormSums`, by its form: who only asks how a model is split needs no kernels."""

    def add_rms_norm(
        self, x_TD: Tensor, part_TD: Any, weight_D: Tensor, eps: float, *, quantizes: bool
    ) -> tuple[Any, Tensor] | None:
        """(norm, sum) of x and all ranks' parts, each perhaps still to be summed (`Delta`); None
        if it is not for these."""


@dataclass(frozen=True, slots=True)
class Mesh:
    """Sizes and own ranks of the axes; `tp_group` joins the ranks of the tp axis.

    `host_group` joins the same ranks for what the host has to agree on (gloo, also beside GPUs);
    `dp_group` and `dp_host_group` join the ranks of all replicas that have the same `tp_rank`.
    `splits_tower`: the vision tower is split over tp like the decoder; else each rank has all of
    it and the ranks encode different images. `small_sums`: what sums small tensors, if not NCCL;
    `norm_sums`: what sums few rows and norms them at once.
    `placement`: which rank of the ep axis has which experts, if not in order;
    `exchange_backend`: how rows reach the experts of other replicas, `beside`: where there is work
    to do meanwhile.
    """

    tp_size: int = 1
    tp_rank: int = 0
    dp_size: int = 1
    dp_rank: int = 0
    ep_size: int = 1
    ep_rank: int = 0
    tp_group: ProcessGroup | None = None
    host_group: ProcessGroup | None = None
    dp_group: ProcessGroup | None = None
    dp_host_group: ProcessGroup | None = None
    splits_tower: bool = False
    small_sums: OneKernelSum | None = None
    norm_sums: SumAndNorm | None = None
    placement: Placement | None = None
    exchange_backend: Backend = "auto"
    beside: Beside | None = None

    @staticmethod
    def single() -> "Mesh":
        """One process, one device."""
        return Mesh()

    def __post_init__(self) -> None:
        if self.ep_size not in (1, self.num_ranks):
            raise BadSettings(f"experts spread over {self.ep_size} of {self.num_ranks} ranks")
        if self.dp_size > 1 and (self.dp_group is None or self.ep_size == 1):
            raise BadSettings(f"{self.dp_size} replicas that share no experts, or without a group")
        if self.tp_size > 1 and self.tp_group is None:
            raise BadSettings(f"{self.tp_size} tensor-parallel ranks and no group that joins them")

    @property
    def num_ranks(self) -> int:
        """Ranks that compute each step together."""
        return self.tp_size * self.dp_size

    @property
    def tower(self) -> "Mesh":
        """The mesh as the vision tower sees it."""
        return self if self.splits_tower else Mesh.single()

    def tp_share(self, size: int, what: str) -> int:
        """This rank's part of `size`. Raises BadSettings where it cannot be split evenly."""
        if size % self.tp_size:
            raise BadSettings(f"{what} ({size}) cannot be split over {self.tp_size} GPUs")
        return size // self.tp_size

    def ep_share(self, num_experts: int) -> int:
        """Places for experts of a layer on this rank. Raises BadSettings if they do not divide."""
        if self.placement is not None:
            return self.placement.num_places
        if num_experts % self.ep_size:
            raise BadSettings(
                f"n_routed_experts ({num_experts}) cannot be spread over {self.ep_size} GPUs"
            )
        return num_experts // self.ep_size

    # ------------------------------------------------------------------- on the device's stream

    def tp_sum(self, partial: Tensor) -> Tensor:
        """The sum over the tp axis of every rank's `partial`; may reuse its memory."""
        if self.tp_group is None:
            return partial
        partial = partial.contiguous()
        if self.small_sums is not None:
            total = self.small_sums.sum(partial)
            if total is not None:
                return total
        options = AllreduceOptions()
        options.asyncOp = False  # on the current stream: nothing to wait for, and capturable
        _finish(self.tp_group.allreduce([partial], options))
        return partial

    def tp_concat(self, part: Tensor) -> Tensor:
        """Every rank's `part`, joined along the last dim in the order of the ranks."""
        if self.tp_group is None:
            return part
        return self.tp_stack(part).movedim(0, -2).flatten(-2)

    def tp_stack(self, part: Tensor) -> Tensor:
        """Every rank's `part` along a new first dim, in the order of the ranks."""
        if self.tp_group is None:
            return part[None]
        part = part.contiguous()
        parts = part.new_empty((self.tp_size * part.shape[0], *part.shape[1:]))
        _finish(self.tp_group._allgather_base(parts, part))
        return parts.view(self.tp_size, *part.shape)

    def tp_exchange(self, parts: Tensor) -> Tensor:
        """`parts[r]` goes to rank r; gives what every rank had for this one, in their order."""
        if self.tp_group is None:
            return parts
        parts = parts.contiguous()
        received = torch.empty_like(parts)
        _finish(self.tp_group.alltoall_base(received, parts, [], []))
        return received

    def tp_broadcast(self, value: Tensor, source: int = 0) -> Tensor:
        """Rank `source`'s `value` on every rank; the others give one of the same shape and type,
        whose memory is reused.
        """
        if self.tp_group is None:
            return value
        value = value.contiguous()
        options = BroadcastOptions()
        options.rootRank = source
        options.asyncOp = False
        _finish(self.tp_group.broadcast([value], options))
        return value

    def dp_gather(self, own: Tensor) -> Tensor:
        """Every replica's `own` [T, …], one after the other: [W · T, …]. All have the same T."""
        if self.dp_group is None:
            return own
        own = own.contiguous()
        everybodys = own.new_empty((self.dp_size * own.shape[0], *own.shape[1:]))
        _finish(self.dp_group._allgather_base(everybodys, own, _in_order(_AllgatherOptions())))
        return everybodys

    def dp_scatter_sum(self, parts: Tensor) -> Tensor:
        """Of [W · T, …] the sum over all replicas of what belongs to this one: [T, …]."""
        if self.dp_group is None:
            return parts
        parts = parts.contiguous()
        own = parts.new_empty((parts.shape[0] // self.dp_size, *parts.shape[1:]))
        options = _in_order(ReduceScatterOptions())
        _finish(self.dp_group._reduce_scatter_base(own, parts, options))
        return own

    def dp_deal(self, rows: Tensor, given: list[int], taken: list[int]) -> Tensor:
        """`given[r]` rows of [sum of given, …] to each replica r in order, and `taken[r]` of its
        rows from each: [sum of taken, …]."""
        if self.dp_group is None:
            return rows
        rows = rows.contiguous()
        got = rows.new_empty((sum(taken), *rows.shape[1:]))
        options = _in_order(AllToAllOptions())
        _finish(self.dp_group.alltoall_base(got, rows, taken, given, options))
        return got

    # ----------------------------------------------------------------------------- on the host

    def tp_least(self, number: int) -> int:
        """The smallest of the numbers of a replica's ranks, for limits that all must keep."""
        return _least(number, self.host_group)

    def least(self, number: int) -> int:
        """The smallest of the numbers of all ranks, those of other replicas included."""
        return _least(self.tp_least(number), self.dp_host_group)

    def dp_tell(self, numbers: Sequence[int]) -> list[list[int]]:
        """Every replica's numbers. Raises RuntimeError if one of them is gone."""
        if self.dp_host_group is None:
            return [[*numbers]]
        own = torch.tensor([*numbers], dtype=torch.int64)
        everybodys = own.new_empty(self.dp_size, len(own))
        self.dp_host_group._allgather_base(everybodys.view(-1), own).wait()
        told: list[list[int]] = everybodys.tolist()
        return told


def _least(number: int, group: ProcessGroup | None) -> int:
    if group is None:
        return number
    least = torch.tensor([number], dtype=torch.int64)
    options = AllreduceOptions()
    options.reduceOp = ReduceOp(ReduceOp.MIN)
    group.allreduce([least], options).wait()
    return int(least.item())


def _in_order(options: Any) -> Any:
    """Of a collective on the current stream: nothing to wait for, and capturable. Where a torch
    knows no such option, the stream waits for what `_finish` is given."""
    if hasattr(options, "asyncOp"):
        options.asyncOp = False
    return options


def _finish(work: "torch.distributed.Work | None") -> None:
    """Groups that work on the current stream give nothing to wait for."""
    if work is not None:
        work.wait()
