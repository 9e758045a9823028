"""Main of the process that stands for the replicas of other machines, before this one's servers.

    server ──Submit …──▶ gate ──ToReplica, Pixels──▶ uplink ──Submit …──▶ engine
    server ◀──Outputs─── gate ◀──FromReplica──────── uplink ◀──Outputs─── engine
             ZeroMQ           one TCP connection             ZeroMQ
                              for each machine
       the head, with HTTP                        a node, --headless

To servers and supervisor it looks like the engines it stands for. It lets machines in that know the
token and have the same versions, checkpoint and settings, at any time and in any order; one that is
lost takes its replicas' requests along, and may come again.
"""

import asyncio
import contextlib
import logging
import sys
import time
from typing import Any

import msgspec

from glimt.arena import SharedArena
from glimt.processes.announcing import waiting_for
from glimt.processes.cluster import REMIND_S, listen
from glimt.processes.control import (
    EngineDown,
    EngineLeaving,
    EngineUp,
    Ready,
    ServerForgotten,
    ServerGone,
    Stop,
    ToChild,
)
from glimt.processes.control_line import ControlLine
from glimt.processes.far_link import (
    Admitted,
    Beat,
    FarLink,
    FromReplica,
    HeadStops,
    Introduction,
    NodeLeaves,
    Pixels,
    ReplicaDown,
    ReplicaUp,
    ToReplica,
    span,
)
from glimt.processes.far_meeting import beat, difference, let_in_all, run_far
from glimt.processes.far_start import GateStart
from glimt.processes.far_work import FarArena, FarWork
from glimt.processes.node_link import LinkLost
from glimt.processes.tasks import Tasks
from glimt.transport import AsyncInbox, Outbox, encode
from glimt.wire import EngineInbound, EngineInfo, Outputs, PixelRef, ResetCaches

log = logging.getLogger("glimt.processes.gate")

SETTLE_S = 0.2  # for what a dead server has sent to arrive
FLUSH_LIMIT_S = 1.0
LOST = "the engine's machine is lost, or its engine has died; try again"
FLAGS = ("--data-parallel-address", "--data-parallel-rpc-port")


class Machine:
    """One that was let in: its connection, its replicas, and what they work on."""

    def __init__(self, link: FarLink, who: Introduction, work: FarWork) -> None:
        self.link = link
        self.name = who.name
        self.copies = who.copies
        self.work = work
        self.inboxes: dict[int, tuple[AsyncInbox[EngineInbound], asyncio.Task[None]]] = {}
        self.is_leaving = False

    def close_inbox(self, index: int) -> bool:
        """No server sends to this replica any more; whether one could."""
        if index not in self.inboxes:
            return False
        inbox, task = self.inboxes.pop(index)
        task.cancel()
        inbox.close()
        return True


class Gate:
    """All machines with replicas for the servers of this one."""

    def __init__(self, start: GateStart, line: ControlLine[ToChild]) -> None:
        """Raises BadSettings if the port cannot be had."""
        self._start = start
        self._line = line
        self._arenas = [SharedArena(fd, index) for index, fd in enumerate(start.arena_fds)]
        self._outboxes = [Outbox(address) for address in start.server_inboxes]
        self._outputs: msgspec.msgpack.Decoder[Outputs] = msgspec.msgpack.Decoder(Outputs)
        self._listener = listen(start.host, start.port, FLAGS)
        self._listener.setblocking(False)
        self._machines: list[Machine] = []
        self._dead: set[int] = set()  # servers of which something may still arrive
        self._to_forget: set[int] = set()  # dead ones of which nothing arrives any more
        self._num_inboxes = 0
        self._tasks = Tasks()

    async def run(self) -> None:
        """Until told to stop, or the supervisor is gone."""
        asyncio.get_running_loop().add_reader(self._line.fileno(), self._on_control)
        for forever in (self._let_in_all(), self._beat(), self._remind()):
            self._tasks.spawn(forever)
        self._line.send(Ready())
        try:
            await self._tasks.wait()
            await self._stop_machines()
        finally:
            asyncio.get_running_loop().remove_reader(self._line.fileno())
            await self._tasks.cancel()
            self._listener.close()
            for outbox in self._outboxes:
                outbox.close()
            for arena in self._arenas:
                arena.close()

    async def _stop_machines(self) -> None:
        for machine in self._machines:
            machine.link.send(HeadStops())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FLUSH_LIMIT_S):
                for machine in self._machines:
                    await machine.link.flush()

    def _on_control(self) -> None:
        match self._line.receive():
            case None:
                sys.exit("the supervisor is gone")
            case Stop():
                self._tasks.end()
            case ServerGone(server):
                self._outboxes[server].close()  # what is on its way must not reach its successor
                self._outboxes[server] = Outbox(self._start.server_inboxes[server])
                self._dead.add(server)
                self._tasks.spawn(self._forget(server))
            case _:
                pass

    async def _forget(self, server: int) -> None:
        """End what a dead server has asked for."""
        for machine in self._machines:
            machine.work.server_gone(server)
        await asyncio.sleep(SETTLE_S)
        self._dead.discard(server)
        self._to_forget.add(server)
        self._note_forgotten()

    def _note_forgotten(self) -> None:
        for server in list(self._to_forget):
            if not any(machine.work.serves(server) for machine in self._machines):
                self._to_forget.discard(server)
                self._line.send(ServerForgotten(server))

    # ----------------------------------------------------------------------------- letting in

    async def _let_in_all(self) -> None:
        await let_in_all(
            self._listener, self._start.token, self._objection, self._work_with, self._tasks, log
        )

    def _objection(self, who: Introduction) -> str:
        start, copies = self._start, who.copies
        far = range(start.num_here, start.num_copies)
        if not copies or copies[0] not in far or copies[-1] not in far:
            return (
                f"{who.name}: the head wants replicas {span(far)} of {start.num_copies} from "
                "others (--data-parallel-start-rank, --data-parallel-size-local)"
            )
        for other in self._machines:
            if set(copies) & set(other.copies):
                return f"{who.name}: there is a {other.name} already"
        return difference(start.facts, who)

    def _machine(self, link: FarLink, who: Introduction) -> Machine:
        work = FarWork(
            FarArena(who.arena_bytes),
            num_servers=len(self._outboxes),
            read=self._read,
            send_pixels=lambda offset, data: link.send(Pixels(offset, data)),
            send_to_replica=lambda index, message: link.send(ToReplica(index, encode(message))),
            send_to_server=self._send_to_server,
        )
        return Machine(link, who, work)

    def _read(self, place: PixelRef) -> bytes:
        """A copy: the server may use the place again once the request has ended."""
        return bytes(self._arenas[place.arena].view(place))

    def _send_to_server(self, server: int, outputs: Outputs) -> None:
        if not self._outboxes[server].send(outputs):
            log.warning("server %d does not read its outputs; some are lost", server)

    # ------------------------------------------------------------------------------- carrying

    async def _work_with(self, link: FarLink, who: Introduction) -> None:
        """Until it is lost."""
        machine = self._machine(link, who)
        self._machines.append(machine)
        machine.link.send(Admitted())
        log.info("%s is there", machine.name)
        try:
            while True:
                self._obey(machine, await machine.link.receive())
        except LinkLost as error:
            if machine.is_leaving:
                log.info("%s has left", machine.name)
            elif not self._tasks.have_ended:
                log.warning("%s is lost: %s", machine.name, error)
        finally:
            machine.link.close()
            self._machines.remove(machine)
            for index in machine.copies:
                self._down(machine, index)
            self._note_forgotten()

    def _obey(self, machine: Machine, message: Any) -> None:
        match message:
            case FromReplica(frame):
                try:
                    outputs = self._outputs.decode(frame)
                except msgspec.MsgspecError:
                    raise LinkLost("it says what cannot be understood") from None
                machine.work.deliver(outputs)
                if self._to_forget:
                    self._note_forgotten()
                if machine.is_leaving and not machine.work.num_open:
                    machine.link.send(HeadStops())
            case Beat(clock_s):
                machine.work.note_clock(clock_s, time.monotonic())
            case ReplicaUp(index, info) if index in machine.copies:
                self._up(machine, index, info)
            case ReplicaDown(index) if index in machine.copies:
                self._down(machine, index)
            case NodeLeaves():
                log.info("%s leaves: its replicas get nothing new", machine.name)
                machine.is_leaving = True
                for index in machine.inboxes:
                    self._line.send(EngineLeaving(index))
                if not machine.work.num_open:
                    machine.link.send(HeadStops())
            case _:
                raise LinkLost("it says what it should not")

    def _up(self, machine: Machine, index: int, info: EngineInfo) -> None:
        self._down(machine, index)
        self._num_inboxes += 1  # an address of its own: messages for a lost replica reach no other
        address = f"{self._start.inboxes}-{self._num_inboxes}"
        inbox: AsyncInbox[EngineInbound] = AsyncInbox(address, EngineInbound)
        machine.inboxes[index] = inbox, self._tasks.spawn(self._carry(machine, index, inbox))
        self._line.send(EngineUp(index=index, address=address, info=info))

    def _down(self, machine: Machine, index: int) -> None:
        if machine.close_inbox(index):
            self._line.send(EngineDown(index, LOST))
        machine.work.replica_down(index)

    async def _carry(self, machine: Machine, index: int, inbox: AsyncInbox[EngineInbound]) -> None:
        while True:
            for message in await inbox.receive():
                if isinstance(message, ResetCaches) or message.server not in self._dead:
                    machine.work.take(index, message)

    # -------------------------------------------------------------------------------- looking

    async def _beat(self) -> None:
        await beat(self._line, lambda: [machine.link for machine in self._machines])

    async def _remind(self) -> None:
        """Name the replicas that nobody has brought, at the start and every so often."""
        start = self._start
        while True:
            there = {index for machine in self._machines for index in machine.copies}
            missing = sorted({*range(start.num_here, start.num_copies)} - there)
            if missing:
                log.warning("%s at %s:%d", waiting_for(missing), start.host, start.port)
            await asyncio.sleep(REMIND_S)


def main() -> None:
    """Entry point of `python -m glimt.processes.gate`."""
    run_far(GateStart, __doc__, "gate", Gate)


if __name__ == "__main__":
    main()
