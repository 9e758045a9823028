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
import time
from collections.abc import Coroutine
from typing import Any

import msgspec

from glimt.processes.announcing import waiting_for
from glimt.processes.cluster import REMIND_S, listen
from glimt.processes.control import (
    Alive,
    Ready,
    Stop,
    ToChild,
)
from glimt.processes.control_line import ControlLine
from glimt.processes.far_link import BEAT_S, Admitted, Beat, FarLink, Introduction
from glimt.processes.far_meeting import find_head, let_in, run_far
from glimt.processes.far_start import MusterStart
from glimt.processes.group_messages import GroupBegins, GroupEnds, GroupQuiet
from glimt.processes.node_link import LinkLost
from glimt.processes.preflight import differences
from glimt.processes.roll_call import Member, RollCall

log = logging.getLogger("glimt.processes.muster")

FLAGS = ("--data-parallel-address", "the port after --data-parallel-rpc-port")


class Muster:
    """What both ends are: tasks, and the line to the supervisor."""

    def __init__(self, start: MusterStart, line: ControlLine[ToChild]) -> None:
        self._start = start
        self._line = line
        self._tasks: set[asyncio.Task[None]] = set()
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def run(self) -> None:
        """Until told to stop, or the supervisor is gone. Raises StartupError, and LinkLost."""
        asyncio.get_running_loop().add_reader(self._line.fileno(), self._on_control)
        self._begin()
        await self._ended

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
            case Stop() if not self._ended.done():
                self._ended.set_result(None)
            case GroupQuiet() as quiet:
                self._on_quiet(quiet)
            case _:
                pass

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._on_task_end)

    def _on_task_end(self, task: asyncio.Task[None]) -> None:
        """One that raises takes the process along: the supervisor starts another."""
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None and not self._ended.done():
            self._ended.set_exception(error)

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
        for forever in (self._accept(), self._beat(), self._remind()):
            self._spawn(forever)
        self._line.send(Ready())

    def _on_quiet(self, quiet: GroupQuiet) -> None:
        if self._own is not None:
            self._roll.quiet(self._own, quiet.number)

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            connection, (address, *_) = await loop.sock_accept(self._listener)
            self._spawn(self._serve(connection, str(address)))

    async def _serve(self, connection: socket.socket, address: str) -> None:
        """A machine, from its connection to its loss."""
        found = await let_in(connection, address, self._start.token, self._objection, log)
        if found is None:
            return
        link, who = found
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
            if not self._ended.done():
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
        found = differences(self._start.facts, who.facts, "the head")
        return f"{who.name} differs from the head: {'; '.join(found)}" if found else ""

    async def _beat(self) -> None:
        """Say that this process lives, and give up machines that do not."""
        while True:
            self._line.send(Alive(0.0), waits=False)
            for link in self._links:
                link.send(Beat(time.monotonic()))
                link.give_up_if_silent()
            await asyncio.sleep(BEAT_S)

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
        self._spawn(self._serve())

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
        self._spawn(self._beat(link))
        while True:
            match await link.receive():
                case GroupBegins() | GroupEnds() as message:
                    self._tell(message, link.own_address)
                case Beat():
                    pass
                case _:
                    raise LinkLost("the head says what it should not")

    async def _beat(self, link: FarLink) -> None:
        """Say that this process lives, to both sides."""
        while True:
            self._line.send(Alive(0.0), waits=False)
            link.send(Beat(time.monotonic()))
            link.give_up_if_silent()
            await asyncio.sleep(BEAT_S)


def _member(start: MusterStart, line: ControlLine[ToChild]) -> "Caller | Answerer":
    return Caller(start, line) if start.listens else Answerer(start, line)


def main() -> None:
    """Entry point of `python -m glimt.processes.muster`."""
    try:
        run_far(MusterStart, __doc__, "muster", _member)
    except LinkLost as error:
        log.warning("the machine that calls the roll is lost: %s", error)
        sys.exit(1)


if __name__ == "__main__":
    main()
