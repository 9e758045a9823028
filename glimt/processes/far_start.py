"""Settings of the two processes between which replicas of other machines work for this one."""

import msgspec

from glimt.processes.preflight import Facts


class GateStart(msgspec.Struct, frozen=True, kw_only=True, tag="gate_start"):
    """Everything needed by the process that stands for the replicas of other machines."""

    num_copies: int  # replicas of all machines
    num_here: int  # of this machine; the others are far
    host: str  # own address, at which other machines reach this one
    port: int
    token: str
    facts: Facts
    inboxes: str = ""  # what the addresses begin with that it binds, one for each replica
    server_inboxes: tuple[str, ...] = ()
    arena_fds: tuple[int, ...] = ()
    log_level: str
    log_json: bool


class UplinkStart(msgspec.Struct, frozen=True, kw_only=True, tag="uplink_start"):
    """Everything needed by the process that stands, on a machine without HTTP, for the servers."""

    first_copy: int  # number of this machine's first replica
    num_here: int
    host: str  # of the machine that has HTTP
    port: int
    token: str
    facts: Facts
    inbox: str = ""  # address it binds for Outputs
    arena_fd: int = -1
    log_level: str
    log_json: bool
