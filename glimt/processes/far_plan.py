"""What a head and the machines with its further copies start beside the engines."""

from glimt import __version__
from glimt.config import ParallelSettings
from glimt.copies import DEFAULT_PORT, copies_of
from glimt.processes.control import EngineStart
from glimt.processes.far_start import GateStart, UplinkStart
from glimt.processes.preflight import facts_of


def gate_start(parallel: ParallelSettings, engine: EngineStart) -> GateStart | None:
    """For a head, whose copies are not all its own."""
    copies = copies_of(parallel)
    if copies.role != "head":
        return None
    return GateStart(
        num_copies=copies.total,
        num_here=copies.here,
        host=parallel.data_parallel_address or "",
        port=parallel.data_parallel_rpc_port or DEFAULT_PORT,
        token=parallel.master_token or "",
        facts=facts_of(engine, __version__, data_parallel_size=copies.total),
        log_level=engine.log_level,
        log_json=engine.log_json,
    )


def uplink_start(parallel: ParallelSettings, engine: EngineStart) -> UplinkStart | None:
    """For a machine that computes for a head."""
    copies = copies_of(parallel)
    if copies.role != "node":
        return None
    return UplinkStart(
        first_copy=copies.first,
        num_here=copies.here,
        host=parallel.data_parallel_address or "",
        port=parallel.data_parallel_rpc_port or DEFAULT_PORT,
        token=parallel.master_token or "",
        facts=facts_of(engine, __version__, data_parallel_size=copies.total),
        log_level=engine.log_level,
        log_json=engine.log_json,
    )
