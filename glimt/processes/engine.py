"""Main of an engine process: told what to build, it builds it, says what it resolved, and runs.

The loop runs in the main thread. A second thread reads the control line, a third says once a
second how the loop is getting on, so that a hanging device does not look like a healthy server.
"""

import logging
import os
import threading
import time
from collections import defaultdict

import msgspec
import torch

from glimt.arena import SharedArena
from glimt.engine.lockstep import Wave
from glimt.engine.loop import EngineLoop
from glimt.errors import ReplicaLost
from glimt.log import set_up
from glimt.parallel.mesh import Mesh
from glimt.processes import child
from glimt.processes.build import build_engine
from glimt.processes.children import end_with_parent
from glimt.processes.control import (
    Alive,
    EngineStart,
    Phase,
    Ready,
    Refused,
    ServerForgotten,
    ServerGone,
    Stop,
    ToChild,
)
from glimt.processes.control_line import ControlLine, watch
from glimt.processes.machine import settle
from glimt.processes.team import Loss, end_process
from glimt.processes.wakes import waker
from glimt.transport import Inbox, Outbox
from glimt.wire import Abort, EngineMessage, Outputs, Submit

log = logging.getLogger(__name__)

ALIVE_INTERVAL_S = 1.0
CULPRIT_LIMIT_S = 1.0


class SocketMailbox:
    """The loop's mailbox over ZeroMQ. Knows which requests each server has open, so that the
    requests of a server that died can be ended and its end be reported.
    """

    def __init__(self, start: EngineStart, line: ControlLine[ToChild]) -> None:
        self._inbox: Inbox[EngineMessage] = Inbox(start.inbox, EngineMessage)
        self._addresses = start.server_inboxes
        self._outboxes = [Outbox(address) for address in self._addresses]
        self._line = line
        self._index = start.index
        self._open: defaultdict[int, set[int]] = defaultdict(set)
        self._gone: set[int] = set()  # servers to forget; written by the control thread
        self._aborted: set[int] = set()

    def server_gone(self, server: int) -> None:
        """This server died. Called from the control thread."""
        self._gone.add(server)

    def receive(self, timeout_s: float) -> list[EngineMessage]:
        """Messages of the servers, and aborts for servers that died."""
        messages = self._inbox.receive(0.0 if self._gone else timeout_s)
        for message in messages:
            if isinstance(message, Submit):
                self._open[message.server].add(message.request_id)
        for server in list(self._gone):
            if server not in self._aborted:
                self._aborted.add(server)
                messages += [Abort(server, request_id) for request_id in self._open[server]]
            elif not self._open[server]:
                self._forget(server)
        return messages

    def _forget(self, server: int) -> None:
        """Nothing of it runs any more; what was still on its way must not reach its successor."""
        self._outboxes[server].close()
        self._outboxes[server] = Outbox(self._addresses[server])
        self._gone.discard(server)
        self._aborted.discard(server)
        self._line.send(ServerForgotten(server))

    def send(self, server: int, outputs: Outputs) -> None:
        """Send, unless the server is gone; note which requests are over."""
        for output in outputs.outputs:
            if output.finish_reason is not None:
                self._open[server].discard(output.request_id)
        if self._index:
            outputs = msgspec.structs.replace(outputs, engine=self._index)
        if server not in self._gone and not self._outboxes[server].send(outputs):
            log.warning("server %d does not read its outputs; some are lost", server)


def make_wave(start: EngineStart, mesh: Mesh) -> Wave | None:
    """What steps together with the replicas that share experts, if there are any."""
    group = start.expert_group
    if group is None:
        return None
    return Wave(mesh.dp_tell, waker(group, start.inbox))


class Heartbeat:
    """Tells the parent that this process lives, and how long its loop has made no progress."""

    def __init__(self, line: ControlLine[ToChild]) -> None:
        self._line = line
        self._last_s: float | None = time.monotonic()

    def progress(self) -> None:
        """The loop made a turn."""
        self._last_s = time.monotonic()

    def rest(self) -> None:
        """The loop has nothing to do until `progress` is called."""
        self._last_s = None

    def start(self) -> None:
        """Report from a thread for as long as the process lives."""
        threading.Thread(target=self._run, name="heartbeat", daemon=True).start()

    def _run(self) -> None:
        while True:
            last_s = self._last_s
            if not self._line.send(Alive(0.0 if last_s is None else time.monotonic() - last_s)):
                return
            time.sleep(ALIVE_INTERVAL_S)


def run(start: EngineStart, line: ControlLine[ToChild]) -> None:
    """Build the engine and serve until told to stop. Raises StartupError."""
    arenas = [SharedArena(fd, index) for index, fd in enumerate(start.arena_fds)]

    def report(name: str, seconds: float, detail: str) -> None:
        line.send(Phase(name, seconds, detail))

    def on_loss(loss: Loss) -> None:
        if loss.is_refusal:
            line.send(Refused(loss.reason))
            os._exit(2)
        end_process(loss)

    engine = build_engine(start, arenas, report, on_loss)
    mailbox = SocketMailbox(start, line)
    heartbeat = Heartbeat(line)
    loop = EngineLoop(
        engine.scheduler,
        engine.executor,
        mailbox,
        machine=engine.executor,
        meter=engine.meter,
        expert_meter=engine.expert_meter,
        wave=make_wave(start, engine.mesh),
        servers=range(len(start.server_inboxes)),
        overlap=engine.overlap,
        progress=heartbeat.progress,
    )

    stopping = threading.Event()

    def on_message(message: object) -> None:
        if isinstance(message, Stop):
            stopping.set()
            loop.stop()
        elif isinstance(message, ServerGone):
            mailbox.server_gone(message.server)

    watch(line, on_message)
    heartbeat.start()
    settle()
    line.send(Ready(engine.info))
    try:
        loop.run()
    except ReplicaLost as error:
        if stopping.is_set():
            os._exit(0)  # another one that shares experts was faster to stop
        # Where a rank has died, who watches it ends this process sooner, and says which and how.
        time.sleep(CULPRIT_LIMIT_S)
        end_process(Loss(str(error)))
    engine.close()
    if start.expert_group is not None or engine.team is not None:
        os._exit(0)  # groups of ranks take long to take apart, and may wait for ever


def use_spare_cores(num_ranks: int = 1) -> None:
    """Compute on all cores but one, which is the server's and the media workers'; all ranks of this
    machine share them.

    Threads that wait for each other at every operation stand still when one of them shares its
    core with another process: with one thread too many a decode step took ten times as long.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, (len(os.sched_getaffinity(0)) - 1) // num_ranks))


def process_age_s() -> float:
    """Seconds since this process was started: what Python and the imports took."""
    with open("/proc/self/stat", encoding="ascii") as stat:
        started_ticks = int(stat.read().rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started_ticks / os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Entry point of `python -m glimt.processes.engine`."""
    end_with_parent()
    start, line = child.begin(EngineStart, __doc__)
    set_up(
        start.log_level,
        as_json=start.log_json,
        name=f"engine-{start.index}" if start.index else "engine",
    )
    use_spare_cores(start.num_ranks_here)
    line.send(Phase("python and imports", process_age_s()))
    with child.refusing(line):
        run(start, line)


if __name__ == "__main__":
    main()
