"""Main of a peer: one further rank of a replica, which carries out the plans of its engine.

It decides nothing and knows no requests, only plans. It builds the same parts as the engine process
in the same order, because each of them computes together with the other ranks.
"""

import logging
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from glimt.arena import SharedArena
from glimt.engine.plan import TokenMasks
from glimt.log import set_up
from glimt.parallel.group import Meeting
from glimt.processes import child
from glimt.processes.build import build_rank
from glimt.processes.children import end_with_parent
from glimt.processes.control import (
    PeerStart,
    Phase,
    Ready,
    Stop,
    ToChild,
)
from glimt.processes.control_line import ControlLine, watch
from glimt.processes.engine import Heartbeat, use_spare_cores
from glimt.processes.machine import Machine, settle
from glimt.processes.plan_message import OrderMessage, PlanMessage, ToPeer, unpack
from glimt.processes.ranks import Place
from glimt.runner.launched import CrashedStep
from glimt.runner.pixels import PixelSource
from glimt.transport import Inbox
from glimt.wire import PixelRef

log = logging.getLogger(__name__)

NO_MASKS = TokenMasks((), np.zeros((0, 0), np.int32))


def run(start: PeerStart, line: ControlLine[ToChild]) -> None:
    """Build this rank and follow its engine's plans. Raises StartupError."""
    sent = SentPixels()
    shared = [SharedArena(fd, index) for index, fd in enumerate(start.engine.arena_fds)]
    arenas: Sequence[PixelSource] = shared or [sent] * start.num_far_arenas
    watch(line, _on_message)

    def report(name: str, seconds: float, detail: str) -> None:
        line.send(Phase(name, seconds, detail))

    place = Place.of(start.engine, start.rank, meeting_of(start))
    built = build_rank(start.engine, arenas, report, place)
    messages: Inbox[ToPeer] = Inbox(start.inbox, ToPeer)
    heartbeat = Heartbeat(line)
    heartbeat.start()
    settle()
    line.send(Ready())
    follow(built.executor, messages, heartbeat, sent)


def meeting_of(start: PeerStart) -> Meeting:
    """Where this rank meets the others."""
    if not start.meeting_port:
        return Meeting(Path(start.meeting_point))
    return Meeting(host=start.meeting_point, port=start.meeting_port, own_address=start.own_address)


class SentPixels:
    """Pixels that came with the plan, for ranks that share no memory with rank 0."""

    def __init__(self) -> None:
        self._pixels: dict[PixelRef, bytearray] = {}

    def take(self, message: PlanMessage) -> None:
        """Keep what the next step needs, and nothing else."""
        refs = [span.pixels for span in message.encode]
        self._pixels = {
            ref: bytearray(data) for ref, data in zip(refs, message.pixels, strict=False)
        }

    def view(self, ref: PixelRef) -> memoryview:
        """See `PixelSource`. Raises KeyError for what did not come."""
        return memoryview(self._pixels[ref])


def follow(
    machine: Machine, messages: Inbox[ToPeer], heartbeat: Heartbeat, sent: SentPixels
) -> None:
    """Do all that rank 0 does, for ever. Raises what a step or an order raised, and ValueError if a
    message is missing: without it this rank would compute something else than the others.
    """
    number = 0
    while True:
        heartbeat.rest()
        for message in messages.receive(None):
            number += 1
            if message.number != number:
                raise ValueError(f"message {message.number} came where {number} was expected")
            if isinstance(message, PlanMessage):
                heartbeat.progress()
                sent.take(message)
                launch(machine, message)
                heartbeat.rest()
            else:
                obey(machine, message)


def launch(machine: Machine, message: PlanMessage) -> None:
    """Carry a plan out, and draw at once: masks are rank 0's business, and so is what was drawn."""
    step = machine.launch(unpack(message))
    if isinstance(step, CrashedStep):
        raise step.error
    if message.waits_for_masks:
        step.draw(NO_MASKS)


def obey(machine: Machine, order: OrderMessage) -> None:
    """Do what rank 0 has done by order of an operator."""
    match order.kind:
        case "sleep":
            machine.sleep(order.level)
        case "wake":
            machine.wake()
        case "start_profile":
            machine.start_profile()
        case "stop_profile":
            machine.stop_profile()()


def _on_message(message: object) -> None:
    if isinstance(message, Stop):
        os._exit(0)  # nothing is lost, and groups of ranks take long to take apart


def main() -> None:
    """Entry point of `python -m glimt.processes.peer`."""
    end_with_parent()
    start, line = child.begin(PeerStart, __doc__)
    engine = start.engine
    set_up(engine.log_level, as_json=engine.log_json, name=f"peer-{engine.index}.{start.rank}")
    use_spare_cores(engine.num_ranks_here)
    try:
        with child.refusing(line, os._exit):
            run(start, line)
    except Exception:
        log.exception("this rank cannot go on")
        os._exit(1)


if __name__ == "__main__":
    main()
