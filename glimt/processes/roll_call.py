"""When the engines of several machines that share experts begin, and that all end together.

    quiet ──all copies there, no engine anywhere──▶ on ──a machine lost or quiet──▶ quiet again

Incarnations have numbers, so that news of an earlier one changes nothing. Knows no sockets.
"""

from collections.abc import Callable
from dataclasses import dataclass

from glimt.experts.group import ExpertGroup
from glimt.processes.group_messages import GroupBegins, GroupEnds


@dataclass(eq=False)
class Member:
    """A machine with copies [first, …). `tell` reaches it; `address` is where others reach it."""

    name: str
    copies: range
    address: str
    tell: Callable[[GroupBegins | GroupEnds], object]
    number: int = 0  # of the incarnation that it was told to begin last
    is_quiet: bool = False


class RollCall:
    """All machines that share experts, as far as they are there."""

    def __init__(self, num_copies: int, port: int) -> None:
        """`port`: where the ranks meet, on the machine of the first copy."""
        self._num_copies = num_copies
        self._port = port
        self._members: list[Member] = []
        self._number = 0
        self._is_on = False

    @property
    def missing(self) -> list[int]:
        """Copies that no machine has brought."""
        there = {copy for member in self._members for copy in member.copies}
        return [copy for copy in range(self._num_copies) if copy not in there]

    def objection(self, name: str, copies: range) -> str:
        """Why a machine cannot join; nothing if it can."""
        if not copies or copies.stop > self._num_copies:
            return f"{name}: copies are numbered 0 to {self._num_copies - 1} here"
        for other in self._members:
            if set(copies) & set(other.copies):
                return f"{name}: there is a {other.name} already"
        return ""

    def join(self, member: Member) -> None:
        """A machine is there; its engines may still be ending."""
        self._members.append(member)

    def leave(self, member: Member) -> None:
        """A machine is lost, and its engines with it."""
        self._members.remove(member)
        self._end()

    def quiet(self, member: Member, number: int) -> None:
        """No engine of incarnation `number` runs on this machine any more."""
        if number != member.number:
            return
        member.is_quiet = True
        self._end()
        if not self.missing and all(each.is_quiet for each in self._members):
            self._begin()

    def _begin(self) -> None:
        self._number += 1
        self._is_on = True
        (first,) = (member for member in self._members if 0 in member.copies)
        group = ExpertGroup(
            first=0,
            size=self._num_copies,
            meeting_point=first.address,
            meeting_port=self._port,
            number=self._number,
        )
        for member in self._members:
            member.number, member.is_quiet = self._number, False
        for member in self._members:
            member.tell(GroupBegins(group))

    def _end(self) -> None:
        if not self._is_on:
            return
        self._is_on = False
        for member in self._members:
            if not member.is_quiet:
                member.tell(GroupEnds(self._number))
