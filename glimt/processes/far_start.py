"""Settings of the processes by which the replicas of several machines work together."""

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


class MusterStart(msgspec.Struct, frozen=True, kw_only=True, tag="muster_start"):
    """Everything needed by the process by which this machine shares experts with others."""

    first_copy: int  # number of this machine's first replica
    num_here: int
    num_copies: int  # of all machines
    listens: bool  # the others look for this machine
    host: str  # of the machine that the others look for
    port: int
    meeting_port: int  # at which ranks meet, on the machine of replica 0
    token: str
    facts: Facts
    log_level: str
    log_json: bool
