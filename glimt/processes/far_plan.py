"""What the flags say of other machines: those of one replica, and those with further copies."""

import os
from typing import Any

from glimt import __version__
from glimt.config import ParallelSettings
from glimt.copies import DEFAULT_PORT, copies_of, expert_copies
from glimt.processes.control import EngineStart
from glimt.processes.far_start import GateStart, MusterStart, UplinkStart
from glimt.processes.preflight import ClusterSettings, facts_of, together

_MASTER_PORT = 29501


def cluster_of(parallel: ParallelSettings, engine: EngineStart) -> ClusterSettings | None:
    """For a replica over several machines: how they find each other, and this machine's facts."""
    if parallel.nnodes == 1:
        return None
    return ClusterSettings(
        num_nodes=parallel.nnodes,
        host=parallel.master_addr or "",
        port=parallel.master_port or _MASTER_PORT,
        token=parallel.master_token or "",
        facts=together(facts_of(engine, __version__), os.environ),
    )


def gate_start(parallel: ParallelSettings, engine: EngineStart) -> GateStart | None:
    """For a head, whose copies are not all its own."""
    copies = copies_of(parallel)
    if copies.role != "head":
        return None
    return GateStart(num_copies=copies.total, port=_port(parallel), **_of_all(parallel, engine))


def uplink_start(parallel: ParallelSettings, engine: EngineStart) -> UplinkStart | None:
    """For a machine that computes for a head."""
    copies = copies_of(parallel)
    if copies.role != "node":
        return None
    return UplinkStart(first_copy=copies.first, port=_port(parallel), **_of_all(parallel, engine))


def muster_start(parallel: ParallelSettings, engine: EngineStart) -> MusterStart | None:
    """For a machine whose copies share experts with those of others, if there are experts."""
    copies = copies_of(parallel)
    if len(expert_copies(parallel)) <= max(1, copies.here):
        return None
    of_all = _of_all(parallel, engine)
    of_all["facts"] = together(of_all["facts"], os.environ)
    return MusterStart(
        first_copy=copies.first,
        num_copies=copies.total,
        listens=copies.role == "head" or (copies.role != "node" and copies.first == 0),
        port=_port(parallel) + 1,
        meeting_port=_port(parallel) + 2,
        **of_all,
    )


def _port(parallel: ParallelSettings) -> int:
    return parallel.data_parallel_rpc_port or DEFAULT_PORT


def _of_all(parallel: ParallelSettings, engine: EngineStart) -> dict[str, Any]:
    """The fields of `FarStart`, without the port."""
    return {
        "num_here": copies_of(parallel).here,
        "host": parallel.data_parallel_address or "",
        "token": parallel.master_token or "",
        "facts": facts_of(
            engine,
            __version__,
            data_parallel_size=parallel.data_parallel_size,
            expert_parallel_scope=parallel.expert_parallel_scope,
        ),
        "log_level": engine.log_level,
        "log_json": engine.log_json,
    }
