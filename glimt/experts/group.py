"""`ExpertGroup`: the replicas of a machine that share experts, and how rows get to others."""

from typing import Literal

import msgspec

Backend = Literal["auto", "allgather_reducescatter", "alltoall"]


class ExpertGroup(msgspec.Struct, frozen=True, kw_only=True):
    """Of one incarnation: they are started together, and die together."""

    meeting_point: str  # file at which they find each other; each tp rank at one of its own
    inboxes: tuple[str, ...]  # of their engines, by place
