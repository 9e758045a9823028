"""A process's place in its replica, and the mesh that follows from it and the user's wishes."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from glimt.experts.group import ExpertGroup
from glimt.models.config import ModelConfig, VisionConfig
from glimt.parallel.beside import Beside
from glimt.parallel.group import Meeting, join, join_replicas
from glimt.parallel.mesh import Mesh
from glimt.processes.cluster import listen
from glimt.processes.control import EngineStart
from glimt.processes.reach import interface_of

MEETING_FLAGS = ("--data-parallel-address", "the second port after --data-parallel-rpc-port")


@dataclass(frozen=True, slots=True)
class Place:
    """Which of the replica's ranks this is; `meeting` says where they meet if there are several."""

    rank: int = 0
    size: int = 1
    meeting: Meeting | None = None
    first_gpu: int = 0  # of the replica, on this machine
    num_here: int = 1  # ranks of the replica on this machine

    @staticmethod
    def of(start: EngineStart, rank: int, meeting: Meeting | None) -> "Place":
        """The place of a rank of replica `start.index`; replicas take their GPUs in order."""
        size = start.tensor_parallel_size
        num_here = size // start.num_nodes
        return Place(rank, size, meeting, start.place_here * num_here, num_here)

    @property
    def gpu(self) -> int:
        """This rank's, by its number on this machine."""
        return self.first_gpu + self.rank % self.num_here

    @property
    def name(self) -> str:
        """For files that each rank writes."""
        return "engine" if self.size == 1 else f"engine-rank-{self.rank}"


ALONE = Place()


def choose_interface(address: str) -> None:
    """Let NCCL meet other machines over the interface that has `address`, as gloo does, unless the
    user chose one: of several, its own choice may be one that the others do not reach.
    """
    name = interface_of(address)
    if name:
        os.environ.setdefault("NCCL_SOCKET_IFNAME", f"={name}")  # "=": this very name


def make_mesh(start: EngineStart, config: ModelConfig, place: Place, device: torch.device) -> Mesh:
    """Meet the other ranks, of the replica and of those that share its experts."""
    mesh = _replica_mesh(start, config, place, device)
    group = start.expert_group
    if group is None:
        return mesh
    dp_rank = start.index - group.first
    with _meeting(group, dp_rank, place.rank) as meeting, naming_the_cure(meeting):
        joined = join_replicas(meeting, dp_rank, group.size, device)
    return replace(
        mesh,
        dp_size=group.size,
        dp_rank=dp_rank,
        ep_size=group.size * place.size,
        ep_rank=dp_rank * place.size + place.rank,
        dp_group=joined.device,
        dp_host_group=joined.host,
        placement=start.expert_placement,
        exchange_backend=start.all2all_backend,
        beside=Beside(device),
    )


@contextmanager
def naming_the_cure(meeting: Meeting) -> Iterator[None]:
    """Say what to look at where ranks of several machines cannot meet; torch names a line of its
    own code. Raises RuntimeError.
    """
    try:
        yield
    except RuntimeError as error:
        if not meeting.host:
            raise
        raise RuntimeError(
            f"ranks could not meet ({meeting.own_address} is this machine's address, "
            f"{meeting.host}:{meeting.port} where they meet): each machine must reach each other "
            "at all TCP ports"
        ) from error


@contextmanager
def _meeting(group: ExpertGroup, dp_rank: int, tp_rank: int) -> Iterator[Meeting]:
    """Where the ranks of equal tp rank meet, those of all replicas. Raises BadSettings."""
    if not group.meeting_port:
        yield Meeting(Path(f"{group.meeting_point}-{tp_rank}"))
        return
    here = Meeting(
        host=group.meeting_point,
        port=group.meeting_port,
        own_address=group.own_address,
        name=f"{group.number}/{tp_rank}",
    )
    choose_interface(group.own_address)
    if dp_rank or tp_rank:
        yield here
        return
    with listen(group.meeting_point, group.meeting_port, MEETING_FLAGS) as listener:
        yield replace(here, listener_fd=listener.fileno())


def _replica_mesh(
    start: EngineStart, config: ModelConfig, place: Place, device: torch.device
) -> Mesh:
    """The ranks of one replica. A dense model has no experts to spread."""
    if place.meeting is None:
        return Mesh.single()
    if place.meeting.host:
        choose_interface(place.meeting.own_address)
    spreads = start.expert_parallel and config.text.moe is not None
    with naming_the_cure(place.meeting):
        groups = join(
            place.meeting,
            place.rank,
            place.size,
            device,
            width=config.text.hidden_size,
            only_nccl=start.disable_custom_all_reduce or start.num_nodes > 1,
        )
    return Mesh(
        tp_size=place.size,
        tp_rank=place.rank,
        ep_size=place.size if spreads else 1,
        ep_rank=place.rank if spreads else 0,
        placement=start.expert_placement,
        tp_group=groups.device,
        host_group=groups.host,
        small_sums=groups.small_sums,
        norm_sums=groups.norm_sums,
        splits_tower=start.encoder_tp_mode == "weights" and _divides(config.vision, place.size),
    )


def _divides(vision: VisionConfig, size: int) -> bool:
    """Whether the tower's heads and widths can be split (12 heads cannot, over 8 GPUs)."""
    parts = (vision.num_heads, vision.block_intermediate_size, vision.merger_intermediate_size)
    return all(part % size == 0 for part in parts)


def describe_mesh(mesh: Mesh, start: EngineStart) -> str:
    """What the wishes became, for people."""
    shared = ""
    if mesh.dp_size > 1:
        shared = f", experts shared with {mesh.dp_size - 1} more replicas"
    if mesh.tp_size == 1:
        return "one" + shared
    backend = mesh.tp_group.name() if mesh.tp_group is not None else "none"
    tower = "split" if mesh.splits_tower else "whole on each, images dealt out"
    if not mesh.splits_tower and start.encoder_tp_mode == "weights":
        tower += " (its heads or widths do not divide)"
    experts = "whole experts each" if mesh.ep_size > 1 else "every matrix split"
    if mesh.small_sums is not None:
        backend += " and one-kernel sums"
    if mesh.norm_sums is not None:
        backend += ", fused with norms"
    return f"{mesh.tp_size} over {backend}, {experts}, vision tower {tower}" + shared
