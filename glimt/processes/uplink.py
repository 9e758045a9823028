"""Main of the process that stands, on a machine without HTTP, for the servers of the head.

To the engines and the supervisor of its machine it looks like a server: it takes their outputs and
sends them requests. It looks for the head, is let in or turned away, and then only carries
(`gate.py` is the other end). It ends with the connection; then the engines end what they were
doing, as after the death of any server, the supervisor starts another, and weights stay loaded.
"""

import asyncio
import logging
import socket
import sys
from typing import Any

import msgspec

from glimt.arena import SharedArena
from glimt.processes.control import (
    Drain,
    EngineDown,
    EngineUp,
    HeadEnded,
    Ready,
    Stop,
    ToChild,
)
from glimt.processes.control_line import ControlLine
from glimt.processes.far_link import (
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
)
from glimt.processes.far_meeting import beat, find_head, run_far
from glimt.processes.far_start import UplinkStart
from glimt.processes.node_link import LinkLost
from glimt.processes.tasks import Tasks
from glimt.transport import AsyncInbox, Outbox
from glimt.wire import PixelRef

log = logging.getLogger("glimt.processes.uplink")


class Uplink:
    """One connection to the head, from looking for it to its end."""

    def __init__(self, start: UplinkStart, line: ControlLine[ToChild]) -> None:
        self._start = start
        self._line = line
        self._arena = SharedArena(start.arena_fd, 0)
        self._inbox: AsyncInbox[msgspec.Raw] = AsyncInbox(start.inbox, msgspec.Raw)
        self._engines: dict[int, EngineUp] = {}
        self._outboxes: dict[int, Outbox] = {}
        self._link: FarLink | None = None
        self._tasks = Tasks()

    async def run(self) -> None:
        """Until the connection is lost (LinkLost) or there is no more need of it. Raises
        StartupError if the head turns this machine away, or is not found.
        """
        asyncio.get_running_loop().add_reader(self._line.fileno(), self._on_control)
        self._tasks.spawn(self._serve())
        await self._tasks.wait()

    async def _serve(self) -> None:
        start = self._start
        who = Introduction(
            host=socket.gethostname(),
            first_copy=start.first_copy,
            num_copies=start.num_here,
            arena_bytes=self._arena.nbytes,
            facts=start.facts,
        )
        link = await find_head(start.host, start.port, start.token, who, log)
        self._link = link
        for engine_up in self._engines.values():
            link.send(ReplicaUp(engine_up.index, engine_up.info))
        self._line.send(Ready())
        self._tasks.spawn(beat(self._line, lambda: [link]))
        self._tasks.spawn(self._carry_outputs(link))
        while not self._tasks.have_ended:
            self._obey(await link.receive())

    # ------------------------------------------------------------------------------- carrying

    def _obey(self, message: Any) -> None:
        match message:
            case ToReplica(index, frame):
                if (outbox := self._outboxes.get(index)) is not None:
                    outbox.send_frame(frame)
            case Pixels(offset, data):
                self._arena.view(PixelRef(0, offset, len(data)))[:] = data
            case Beat():
                pass
            case HeadStops():
                self._line.send(HeadEnded())
                self._tasks.end()
            case _:
                raise LinkLost("the head says what it should not")

    async def _carry_outputs(self, link: FarLink) -> None:
        while True:
            for frame in await self._inbox.receive():
                link.send(FromReplica(bytes(frame)))

    # --------------------------------------------------------------------------- control line

    def _on_control(self) -> None:
        link = self._link
        match self._line.receive():
            case None:
                sys.exit("the supervisor is gone")
            case EngineUp(index, address) as engine_up:
                self._engine_down(index)
                self._engines[index] = engine_up
                self._outboxes[index] = Outbox(address)
                if link is not None:
                    link.send(ReplicaUp(index, engine_up.info))
            case EngineDown(index):
                self._engine_down(index)
                if link is not None:
                    link.send(ReplicaDown(index))
            case Drain() if link is not None:
                link.send(NodeLeaves())
            case Drain() | Stop():
                self._tasks.end()
            case _:
                pass

    def _engine_down(self, index: int) -> None:
        self._engines.pop(index, None)
        if (outbox := self._outboxes.pop(index, None)) is not None:
            outbox.close()


def main() -> None:
    """Entry point of `python -m glimt.processes.uplink`."""
    run_far(UplinkStart, __doc__, "uplink", Uplink)


if __name__ == "__main__":
    main()
