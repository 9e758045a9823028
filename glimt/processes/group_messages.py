"""What machines that share experts tell each other of their engines, and each its supervisor."""

import msgspec

from glimt.experts.group import ExpertGroup


class GroupBegins(msgspec.Struct, frozen=True, tag="group_begins"):
    """All machines are there and none has engines: start yours."""

    group: ExpertGroup


class GroupEnds(msgspec.Struct, frozen=True, tag="group_ends"):
    """A part of it is lost: end your engines, and say `GroupQuiet`."""

    number: int


class GroupQuiet(msgspec.Struct, frozen=True, tag="group_quiet"):
    """The engines of incarnation `number` have ended, all of this machine; 0: none have begun."""

    number: int
