"""Which copies of the model run here, and how requests reach the others: what the data-parallel
flags say together.

    role     who has HTTP             who balances
    all      this machine             Glimt, over the copies of this machine
    head     this machine             Glimt, over the copies of all machines
    node     the head                 the head; this machine only computes (--headless)
    hybrid   each machine             yours over machines, Glimt over the copies of each
    external each copy                yours
    ranks    node 0 of --nnodes       whoever balances there; this machine computes a part of a copy
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from glimt.board import MAX_ENGINES
from glimt.config import ParallelSettings

Role = Literal["all", "head", "node", "hybrid", "external", "ranks"]

DEFAULT_PORT = 29550
MIN_TOKEN_LENGTH = 16


@dataclass(frozen=True, slots=True)
class Copies:
    """Copies [first, first + here) of `total` run on this machine."""

    role: Role
    total: int
    first: int
    here: int

    @property
    def local(self) -> range:
        """Those of this machine."""
        return range(self.first, self.first + self.here)

    @property
    def far(self) -> range:
        """Those that other machines bring to this one."""
        return range(self.here, self.total) if self.role == "head" else range(0)

    @property
    def spans_machines(self) -> bool:
        """Whether machines speak with each other for them."""
        return self.role in ("head", "node")


def copies_of(parallel: ParallelSettings) -> Copies:
    """What the flags mean, if `problems` finds nothing wrong with them."""
    role, total = _role(parallel), parallel.data_parallel_size
    start, local = parallel.data_parallel_start_rank or 0, parallel.data_parallel_size_local
    if role == "external":
        rank = parallel.data_parallel_rank
        return Copies(role, total, start if rank is None else rank, 1)
    if role == "all":
        return Copies(role, total, 0, total)
    if role == "ranks":
        return Copies(role, total, start, 1)
    return Copies(role, total, start, total - start if local is None else local)


def expert_copies(parallel: ParallelSettings) -> range:
    """Numbers of the copies that this machine's share experts with, if there are experts: of all
    machines that can speak with each other, else of this one. Of one that itself takes several
    machines: no other.
    """
    copies = copies_of(parallel)
    if not parallel.enable_expert_parallel or parallel.nnodes > 1:
        return range(copies.first, copies.first + min(1, copies.here))
    knows_others = copies.spans_machines or _meets_for_experts(parallel, copies.role)
    if knows_others and parallel.expert_parallel_scope == "all":
        return range(copies.total)
    return copies.local


def _meets_for_experts(parallel: ParallelSettings, role: Role) -> bool:
    """Servers behind a balancer of the user's that meet to share their experts."""
    wishes = parallel.enable_expert_parallel and parallel.expert_parallel_scope == "all"
    knows = parallel.data_parallel_address is not None
    return role in ("hybrid", "external") and wishes and knows and parallel.nnodes == 1


def _role(parallel: ParallelSettings) -> Role:
    total, local = parallel.data_parallel_size, parallel.data_parallel_size_local
    if parallel.data_parallel_external_lb or parallel.data_parallel_rank is not None:
        return "external"
    if parallel.nnodes > 1 and parallel.node_rank:
        return "ranks"
    if parallel.headless:
        return "node"
    if local in (None, total):
        return "all"
    if parallel.data_parallel_hybrid_lb or parallel.data_parallel_start_rank is not None:
        return "external" if local == 1 else "hybrid"
    return "head"


def problems(parallel: ParallelSettings) -> Iterator[str]:
    """What of the data-parallel flags cannot be, a line each."""
    total, role = parallel.data_parallel_size, _role(parallel)
    if not 1 <= total <= MAX_ENGINES:
        yield f"--data-parallel-size {total}: must be 1 to {MAX_ENGINES}"
        return
    yield from _balancers(parallel, role)
    yield from _numbers(parallel, role)
    if role in ("head", "node") or _meets_for_experts(parallel, role):
        yield from _meeting(parallel, role)
        if parallel.data_parallel_backend == "mp" and role == "node":
            yield from _headless(parallel)


def _balancers(parallel: ParallelSettings, role: Role) -> Iterator[str]:
    """Two ways of balancing cannot both be."""
    start, local = parallel.data_parallel_start_rank, parallel.data_parallel_size_local
    rank = parallel.data_parallel_rank
    external = "--data-parallel-external-lb" if rank is None else "--data-parallel-rank"
    if parallel.data_parallel_hybrid_lb:
        if role == "external" and local != 1:
            yield f"--data-parallel-hybrid-lb and {external}: one or the other balances"
        if role == "node":
            yield "--data-parallel-hybrid-lb: each machine answers HTTP; leave out --headless"
        if local is None:
            yield "--data-parallel-hybrid-lb needs --data-parallel-size-local, the copies here"
    if role != "external":
        if role == "all" and start:
            yield (
                f"--data-parallel-start-rank {start} needs --data-parallel-size-local, the copies "
                "here (and --headless, if another machine answers HTTP)"
            )
        return
    if parallel.headless and parallel.nnodes == 1:
        yield f"{external}: each copy answers HTTP; leave out --headless"
    if local not in (None, 1):
        yield f"{external} is one copy: --data-parallel-size-local {local} must be 1 or left out"
    if rank is None and start is None and parallel.data_parallel_external_lb:
        yield "--data-parallel-external-lb needs --data-parallel-rank, the number of this copy"
    if rank is not None and start not in (None, rank):
        yield f"--data-parallel-start-rank {start} and --data-parallel-rank {rank} differ"


def _numbers(parallel: ParallelSettings, role: Role) -> Iterator[str]:
    total, local = parallel.data_parallel_size, parallel.data_parallel_size_local
    rank, start = parallel.data_parallel_rank, parallel.data_parallel_start_rank or 0
    if rank is not None and not 0 <= rank < total:
        yield f"--data-parallel-rank {rank}: with --data-parallel-size {total}, 0 to {total - 1}"
    if not 0 <= start < total:
        yield (
            f"--data-parallel-start-rank {start}: with --data-parallel-size {total}, 0 to "
            f"{total - 1}"
        )
        return
    least = 0 if role == "head" and parallel.nnodes == 1 else 1
    if (
        role not in ("external", "ranks")
        and local is not None
        and not least <= local <= total - start
    ):
        yield (
            f"--data-parallel-size-local {local}: with --data-parallel-size {total}"
            + (f" and --data-parallel-start-rank {start}" if start else "")
            + f", {least} to {total - start}"
        )


def _meeting(parallel: ParallelSettings, role: Role) -> Iterator[str]:
    """How machines find the head, and show that they may."""
    local = f"--data-parallel-size-local {parallel.data_parallel_size_local}"
    why = "--headless" if role == "node" else local
    if role in ("hybrid", "external"):
        why = "--enable-expert-parallel with --data-parallel-address"
    address, port = parallel.data_parallel_address, parallel.data_parallel_rpc_port
    if address is None:
        yield (
            f"{why} needs --data-parallel-address, the address of the machine that answers HTTP"
            + (
                " (or leave it out: HTTP here)"
                if role == "node"
                else " (or leave it out: all here)"
            )
        )
    if address in ("0.0.0.0", "::"):
        yield f"--data-parallel-address {address}: name the address that the other machines reach"
    most = 65533 if parallel.enable_expert_parallel else 65535
    if port is not None and not 1 <= port <= most:
        beyond = " (the two ports after it are used as well)" if most < 65535 else ""
        yield f"--data-parallel-rpc-port {port}: must be 1 to {most}{beyond}"
    if len(parallel.master_token or "") < MIN_TOKEN_LENGTH:
        yield (
            f"{why} needs a --master-token of {MIN_TOKEN_LENGTH} characters or more, the same on "
            "all machines (GLIMT_MASTER_TOKEN): who does not know it is not let in"
        )


def _headless(parallel: ParallelSettings) -> Iterator[str]:
    if parallel.api_server_count != 1:
        yield f"--api-server-count {parallel.api_server_count}: with --headless there is no HTTP"


def notes(parallel: ParallelSettings) -> Iterator[str]:
    """What of the flags has no effect, or deserves a word."""
    copies = copies_of(parallel)
    if copies.role in ("hybrid", "external"):
        here = ", ".join(map(str, copies.local))
        yield (
            f"copies {here} of {copies.total}, on the first visible GPUs; to balance between "
            "servers is yours"
        )
    if copies.spans_machines or copies.role == "ranks":
        return
    if _meets_for_experts(parallel, copies.role):
        yield "where there are experts, all copies of all servers share them"
        return
    wishes = parallel.enable_expert_parallel and parallel.expert_parallel_scope == "all"
    if wishes and parallel.nnodes == 1 and copies.role in ("hybrid", "external"):
        yield (
            "experts are shared on this machine only; with --data-parallel-address, the address of "
            "the machine of copy 0, by the copies of all servers"
        )
    for flag, wanted in (
        ("--data-parallel-address", parallel.data_parallel_address is not None),
        ("--data-parallel-rpc-port", parallel.data_parallel_rpc_port is not None),
    ):
        if wanted:
            yield f"{flag} has no effect: this server speaks with no other machine for its copies"
    if parallel.data_parallel_hybrid_lb and copies.role == "all":
        yield "--data-parallel-hybrid-lb has no effect: all copies are here"
