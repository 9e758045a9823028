"""Main of the process by which a machine shares experts with others: it says when its engines begin
and end, which is when those of all machines do.

    supervisor ◀──GroupBegins, GroupEnds── muster ◀══════▶ muster of the machine that all look for
               ───GroupQuiet────────────▶         FarLink   (the head, or that of copy 0)

Engines lack the experts of those that are gone, so all end with any of them, and begin anew when
all machines are back. Before a machine is let in it proves that it knows the token, and brings
versions, checkpoint and settings that are compared. It carries nothing of the steps themselves.
"""

import asyncio
import logging
import socket
import sys

import msgspec

from glimt.processes.announcing import waiting_for
from glimt.processes.cluster import REMIND_S, listen
from glimt.processes.control import (
    Ready,
    Stop,
    ToChild,
)
from glimt.processes.control_line import ControlLine
from glimt.processes.far_link import Admitted, Beat, FarLink, Introduction
from glimt.processes.far_meeting import beat, difference, find_head, let_in_all, run_far
from glimt.processes.far_start import MusterStart
from glimt.processes.group_messages import GroupBegins, GroupEnds, GroupQuiet
from glimt.processes.node_link import LinkLost
from glimt.processes.roll_call import Member, RollCall
from glimt.processes.tasks import Tasks

log = logging.getLogger("glimt.processes.muster")

FLAGS = ("--data-parallel-address", "the port after --data-parallel-rpc-port")


class Muster:
    """What both ends are: tasks, and the line to the supervisor."""

    def __init__(self, start: MusterStart, line: ControlLine[ToChild]) -> None:
        self._start = start
        self._line = line
        self._tasks = Tasks()

    async def run(self) -> None:
        """Until told to stop, or the supervisor is gone. Raises StartupError, and LinkLost."""
        asyncio.get_running_loop().add_reader(self._line.fileno(), self._on_control)
        self._begin()
        await self._tasks.wait()

    def _begin(self) -> None:
        """Begin to work."""
        raise NotImplementedError

    def _on_quiet(self, quiet: GroupQuiet) -> None:
        """No engine runs on this machine."""
        raise NotImplementedError

    def _on_control(self) -> None:
        match self._line.receive():
            case None:
                sys.exit("the supervisor is gone")
            case Stop():
                self._tasks.end()
            case GroupQuiet() as quiet:
                self._on_quiet(quiet)
            case _:
                pass

    def _tell(self, message: GroupBegins | GroupEnds, own_address: str) -> None:
        """What all machines are told, to this one's supervisor."""
        if isinstance(message, GroupBegins):
            group = msgspec.structs.replace(message.group, own_address=own_address)
            message = GroupBegins(group)
        self._line.send(message)


class Caller(Muster):
    """Of the machine that all look for: lets them in and calls the roll."""

    def __init__(self, start: MusterStart, line: ControlLine[ToChild]) -> None:
        """Raises BadSettings if the port cannot be had."""
        super().__init__(start, line)
        self._listener = listen(start.host, start.port, FLAGS)
        self._listener.setblocking(False)
        self._address = str(self._listener.getsockname()[0])
        self._roll = RollCall(start.num_copies, start.meeting_port)
        self._links: list[FarLink] = []
        self._own: Member | None = None
        if start.num_here:
            copies = range(start.first_copy, start.first_copy + start.num_here)
            self._own = Member(
                "this machine",
                copies,
                self._address,
                lambda message: self._tell(message, self._address),
            )
            self._roll.join(self._own)

    def _begin(self) -> None:
        for forever in (
            self._let_in_all(),
            beat(self._line, lambda: self._links),
            self._remind(),
        ):
            self._tasks.spawn(forever)
        self._line.send(Ready())

    def _on_quiet(self, quiet: GroupQuiet) -> None:
        if self._own is not None:
            self._roll.quiet(self._own, quiet.number)

    async def _let_in_all(self) -> None:
        await let_in_all(
            self._listener, self._start.token, self._objection, self._serve, self._tasks, log
        )

    async def _serve(self, link: FarLink, who: Introduction) -> None:
        """A machine that was let in, until its loss."""
        member = Member(who.name, who.copies, link.other_address, link.send)
        self._links.append(link)
        self._roll.join(member)
        link.send(Admitted())
        log.info("%s is there, to share experts", member.name)
        try:
            while True:
                match await link.receive():
                    case GroupQuiet(number):
                        self._roll.quiet(member, number)
                    case Beat():
                        pass
                    case _:
                        raise LinkLost("it says what it should not")
        except LinkLost as error:
            if not self._tasks.have_ended:
                log.warning(
                    "%s is lost, and all that share experts with it end: %s", member.name, error
                )
        finally:
            link.close()
            self._links.remove(link)
            self._roll.leave(member)

    def _objection(self, who: Introduction) -> str:
        if objection := self._roll.objection(who.name, who.copies):
            return objection
        return difference(self._start.facts, who)

    async def _remind(self) -> None:
        """Name the copies without which none can begin, at the start and every so often."""
        start = self._start
        while True:
            if missing := self._roll.missing:
                where = f"{start.host}:{start.port}"
                log.warning("%s at %s, to share experts", waiting_for(missing), where)
            await asyncio.sleep(REMIND_S)


class Answerer(Muster):
    """Of every other machine: looks for that one, and does what all do."""

    _link: FarLink | None = None

    def _begin(self) -> None:
        self._tasks.spawn(self._serve())

    def _on_quiet(self, quiet: GroupQuiet) -> None:
        if self._link is not None:
            self._link.send(quiet)

    async def _serve(self) -> None:
        start = self._start
        who = Introduction(
            host=socket.gethostname(),
            first_copy=start.first_copy,
            num_copies=start.num_here,
            facts=start.facts,
        )
        link = await find_head(start.host, start.port, start.token, who, log)
        self._link = link
        self._line.send(Ready())
        self._tasks.spawn(beat(self._line, lambda: [link]))
        while True:
            match await link.receive():
                case GroupBegins() | GroupEnds() as message:
                    self._tell(message, link.own_address)
                case Beat():
                    pass
                case _:
                    raise LinkLost("the head says what it should not")


def _member(start: MusterStart, line: ControlLine[ToChild]) -> "Caller | Answerer":
    return Caller(start, line) if start.listens else Answerer(start, line)


def main() -> None:
    """Entry point of `python -m glimt.processes.muster`."""
    run_far(MusterStart, __doc__, "muster", _member)


if __name__ == "__main__":
    main()
