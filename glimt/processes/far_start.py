"""Settings of the processes by which the replicas of several machines work together."""

import msgspec

from glimt.processes.preflight import Facts


class FarStart(msgspec.Struct, frozen=True, kw_only=True):
    """What all of them are told."""

    num_here: int  # replicas of this machine; the others are far
    host: str  # of the machine that the others look for, as they reach it
    port: int
    token: str
    facts: Facts
    log_level: str
    log_json: bool


class GateStart(FarStart, frozen=True, kw_only=True, tag="gate_start"):
    """Everything needed by the process that stands for the replicas of other machines."""

    num_copies: int  # replicas of all machines
    inboxes: str = ""  # what the addresses begin with that it binds, one for each replica
    server_inboxes: tuple[str, ...] = ()
    arena_fds: tuple[int, ...] = ()


class UplinkStart(FarStart, frozen=True, kw_only=True, tag="uplink_start"):
    """Everything needed by the process that stands, on a machine without HTTP, for the servers."""

    first_copy: int  # number of this machine's first replica
    inbox: str = ""  # address it binds for Outputs
    arena_fd: int = -1


class MusterStart(FarStart, frozen=True, kw_only=True, tag="muster_start"):
    """Everything needed by the process by which this machine shares experts with others."""

    first_copy: int  # number of this machine's first replica
    num_copies: int  # of all machines
    listens: bool  # the others look for this machine
    meeting_port: int  # at which ranks meet, on the machine of replica 0
