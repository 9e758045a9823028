"""`ExpertGroup`: the replicas that share experts, where they meet, and how rows get to others."""

from typing import Literal

import msgspec

Backend = Literal["auto", "allgather_reducescatter", "alltoall"]


class ExpertGroup(msgspec.Struct, frozen=True, kw_only=True):
    """Of one incarnation: they are started together, and die together.

    Those of one machine meet at a file, and their engines know each other's `inboxes` (by place);
    those of several meet at an address, where engine `first` listens.
    """

    first: int  # number of the first of them
    size: int
    meeting_point: str  # file, or address
    meeting_port: int = 0  # 0: it is a file
    own_address: str = "127.0.0.1"  # of this machine, at which others reach it
    number: int = 0  # of the incarnation, of those on several machines
    inboxes: tuple[str, ...] = ()
