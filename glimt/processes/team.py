"""The peers of a replica: started by its engine process, watched by it, given its plans.

    engine process (rank 0)  ───── ToPeer ────▶  peer 1 … peer N - 1        ZeroMQ
       scheduler, executor   ◀══ tensors ═════▶  executor                   NCCL or gloo

A replica lives and dies as one: a step needs all its ranks, so the loss of one is the loss of the
replica. Peers end with their engine (the control line, and the kernel for those that are stopped),
so whoever starts an engine anew starts the whole replica anew.
"""

import logging
import os
import selectors
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

import msgspec

from glimt.engine.plan import InFlight, StepPlan, StepResult, TokenMasks
from glimt.errors import BadSettings, ReplicaLost
from glimt.parallel.group import Meeting
from glimt.processes.children import Child, Pulse, exit_text
from glimt.processes.cluster import Cluster, Node
from glimt.processes.control import (
    Alive,
    EngineStart,
    PeerStart,
    Phase,
    Ready,
    Refused,
    Stop,
    ToParent,
)
from glimt.processes.folders import make_folder, remove_stale_folders
from glimt.processes.machine import Machine
from glimt.processes.node_link import FromRank, LinkLost, RankEnded
from glimt.processes.plan_message import OrderMessage, ToPeer, pack
from glimt.runner.launched import CrashedStep
from glimt.runner.pixels import PixelSource
from glimt.transport import Fanout

log = logging.getLogger(__name__)

STEP_LIMIT_S = 120.0  # a peer that is so long in one step hangs
STOP_LIMIT_S = 5.0
_LOOK_S = 0.5


@dataclass(frozen=True, slots=True)
class Loss:
    """Why a replica is lost. `is_refusal`: a peer cannot start for a reason the user can mend."""

    reason: str
    is_refusal: bool = False


class Team:
    """All peers of one replica. `on_loss` is called once, in a thread, with all peers killed."""

    def __init__(
        self,
        start: EngineStart,
        on_loss: Callable[[Loss], None],
        arenas: Sequence[PixelSource] = (),
    ) -> None:
        """Start them, once all machines are there; they meet this process at `meeting`."""
        if start.folder:
            self._folder = Path(tempfile.mkdtemp(prefix="ranks-", dir=start.folder))
        else:
            remove_stale_folders()
            self._folder = make_folder()
        self._arenas = arenas
        self._cluster = self._gather(start)
        self.meeting = self._meeting()
        self._on_loss = on_loss
        self._loss: Loss | None = None
        self._is_closing = False
        self._all_present = threading.Event()  # they have read the same files and found no fault
        self._all_ready = threading.Event()
        self._num_present = 0
        self._num_peers = start.tensor_parallel_size - 1
        ranks = range(1, start.tensor_parallel_size // start.num_nodes)
        addresses = [f"ipc://{self._folder}/peer-{rank}" for rank in ranks]
        self._fanout = Fanout(addresses)
        self._num_sent = 0
        self._peers: list[Child] = []
        starts = [
            PeerStart(
                engine=msgspec.structs.replace(start, server_inboxes=(), cluster=None),
                rank=rank,
                inbox=address,
                meeting_point=str(self.meeting.file or self.meeting.host),
                meeting_port=self.meeting.port,
                own_address=self.meeting.own_address,
            )
            for rank, address in zip(ranks, addresses, strict=True)
        ]
        started: Future[None] = Future()
        self._watcher = threading.Thread(
            target=self._run, args=(starts, started), name="peers", daemon=True
        )
        self._watcher.start()
        started.result()

    def send(self, plan: StepPlan) -> None:
        """Hand a plan to all peers. Raises ReplicaLost."""
        self._num_sent += 1
        message = pack(self._num_sent, plan)
        self._send(message)
        if self._nodes and plan.encode:
            views = (self._arenas[span.pixels.arena].view(span.pixels) for span in plan.encode)
            message = msgspec.structs.replace(message, pixels=tuple(bytes(view) for view in views))
        self._send_far(message)

    def order(self, kind: str, level: int = 0) -> None:
        """Hand an order to all peers. Raises ReplicaLost."""
        self._num_sent += 1
        message = OrderMessage(self._num_sent, kind, level)
        self._send(message)
        self._send_far(message)

    def _send_far(self, message: ToPeer) -> None:
        for node in self._nodes:
            if not node.send(message):
                raise ReplicaLost(f"{node.name} is lost")

    def _send(self, message: ToPeer) -> None:
        self.check()
        if not self._fanout.send(message):
            raise ReplicaLost("a peer reads no plans any more")

    def check(self) -> None:
        """Raises ReplicaLost if a peer is gone, BadSettings if one refused to start."""
        if self._loss is not None:
            raise (BadSettings if self._loss.is_refusal else ReplicaLost)(self._loss.reason)

    def wait_present(self) -> None:
        """Until all peers are about to meet the others. Raises what `check` raises."""
        self._all_present.wait()
        self.check()

    def wait_ready(self) -> None:
        """Until all peers take plans. Raises what `check` raises."""
        self._all_ready.wait()
        self.check()

    def close(self) -> None:
        """End the peers. Doing it again does nothing."""
        self._is_closing = True
        if self._cluster is not None:
            self._cluster.stop()
        for peer in self._peers:
            peer.line.send(Stop())
        if threading.current_thread() is not self._watcher:
            self._watcher.join()
        deadline_s = time.monotonic() + STOP_LIMIT_S
        while self._peers:
            self._peers.pop().reap(max(0.0, deadline_s - time.monotonic()))
        self._fanout.close()
        if self._cluster is not None:
            self._cluster.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _gather(self, start: EngineStart) -> Cluster | None:
        if start.cluster is None:
            return None
        cluster = Cluster(start.cluster, start.tensor_parallel_size, len(self._arenas))
        cluster.gather()
        return cluster

    def _meeting(self) -> Meeting:
        if self._cluster is None:
            return Meeting(self._folder / "meeting-point")
        return Meeting(
            host=self._cluster.own_address,
            port=self._cluster.meeting_port,
            listener_fd=self._cluster.meeting.fileno(),
            own_address=self._cluster.own_address,
        )

    @property
    def _nodes(self) -> list[Node]:
        return [] if self._cluster is None else self._cluster.nodes

    # --------------------------------------------------------------------------------- watching

    def _run(self, starts: list[PeerStart], started: "Future[None]") -> None:
        """Start the peers in this thread, which lives as long as they; the kernel ends them with
        it, and so with the process.
        """
        try:
            for start in starts:
                fds = start.engine.arena_fds
                name = f"peer-{start.rank}"
                self._peers.append(Child(name, "glimt.processes.peer", start, fds))
        except OSError as error:
            started.set_exception(error)
            return
        started.set_result(None)
        self._watch(tuple(self._peers))

    def _watch(self, peers: tuple[Child, ...]) -> None:
        with selectors.DefaultSelector() as selector:
            for peer in peers:
                selector.register(peer.line.fileno(), selectors.EVENT_READ, peer)
            for node in self._nodes:
                selector.register(node.link.fileno(), selectors.EVENT_READ, node)
            while self._loss is None and not self._is_closing:
                for key, _ in selector.select(_LOOK_S):
                    if isinstance(key.data, Node):
                        self._read_node(key.data)
                    else:
                        self._read(key.data)
                for rank in self._all():
                    complaint = rank.complaint(STEP_LIMIT_S) if rank.ready else None
                    if complaint is not None:
                        self._lose(Loss(f"{rank.name} of this replica {complaint}"), rank)

    def _all(self) -> list[Pulse]:
        far = [rank for node in self._nodes for rank in node.ranks.values()]
        return [*self._peers, *far]

    def _read_node(self, node: Node) -> None:
        try:
            message = node.link.receive()
        except LinkLost as error:
            self._lose(Loss(f"{node.name} is lost: {error}"))
            return
        match message:
            case FromRank(rank, said) if rank in node.ranks:
                if isinstance(said, Refused):
                    said = Refused(f"{node.name}: {said.message}")
                self._heard(node.ranks[rank], said)
            case RankEnded(rank, how):
                self._lose(Loss(f"peer-{rank} of this replica, on {node.name}, ended: {how}"))
            case _:
                self._lose(Loss(f"{node.name} says what it should not"))

    def _read(self, peer: Child) -> None:
        message = peer.line.receive()
        if message is None:
            self._lose(Loss(f"{peer.name} of this replica ended"), peer)
        else:
            self._heard(peer, message)

    def _heard(self, peer: Pulse, message: ToParent) -> None:
        match message:
            case Refused(text):
                self._lose(Loss(text, is_refusal=True), peer)
            case Phase(name, seconds, detail):
                log.debug("%s: %s took %.2f s  %s", peer.name, name, seconds, detail)
                self._num_present += name == "config"
                if self._num_present == self._num_peers:
                    self._all_present.set()
            case Ready():
                peer.ready = True
                peer.lives(0.0)
                if all(other.ready for other in self._all()):
                    self._all_ready.set()
            case Alive(stalled_s):
                peer.lives(stalled_s)

    def _lose(self, loss: Loss, guilty: Pulse | None = None) -> None:
        """Nothing can be computed any more; ranks that wait for each other must not go on so."""
        if self._loss is not None or self._is_closing:
            return
        for peer in self._peers:
            peer.kill()
        if self._cluster is not None:
            self._cluster.close()
        if not loss.is_refusal and isinstance(guilty, Child):
            loss = Loss(f"{loss.reason} ({exit_text(guilty.reap())})")
        self._loss = loss
        self._all_present.set()
        self._all_ready.set()
        self._on_loss(loss)


class TeamMachine:
    """`Executor` and `Machine` of several ranks: what rank 0 is told to do the peers do as well.

    Where a step of one rank alone fails, the rest of the engine goes on; here the ranks may have
    parted in the middle of it, so the replica is given up (ReplicaLost).
    """

    def __init__(self, own: Machine, team: Team) -> None:
        self._own = own
        self._team = team

    def launch(self, plan: StepPlan) -> InFlight:
        """See `glimt.engine.plan.Executor`."""
        if self._own.sleep_level:
            return self._own.launch(plan)
        self._team.send(plan)
        step = self._own.launch(plan)
        if isinstance(step, CrashedStep):
            raise ReplicaLost(f"step {plan.step} failed on rank 0") from step.error
        return _TeamStep(step)

    @property
    def sleep_level(self) -> int:
        """See `glimt.engine.orders.Machine`, and so for what follows."""
        return self._own.sleep_level

    @property
    def is_profiling(self) -> bool:
        """Of rank 0; the others do as it does."""
        return self._own.is_profiling

    def sleep(self, level: int) -> None:
        """All ranks go to sleep."""
        self._own.sleep(level)
        self._team.order("sleep", level)

    def wake(self) -> None:
        """All ranks wake up. A peer that cannot takes the replica along."""
        self._own.wake()
        self._team.order("wake")

    def start_profile(self) -> str:
        """Each rank records itself."""
        folder = self._own.start_profile()
        self._team.order("start_profile")
        return folder

    def stop_profile(self) -> Callable[[], str]:
        """Each rank writes a file of its own."""
        write = self._own.stop_profile()
        self._team.order("stop_profile")
        return write

    def expert_load(self) -> str:
        """All ranks see all tokens of the replica, so rank 0 knows."""
        return self._own.expert_load()


class _TeamStep:
    """A launched step of several ranks."""

    def __init__(self, own: InFlight) -> None:
        self._own = own

    @property
    def plan(self) -> StepPlan:
        """What was launched."""
        return self._own.plan

    def draw(self, masks: TokenMasks) -> None:
        """See `InFlight`."""
        self._own.draw(masks)

    def result(self) -> StepResult:
        """Wait for the step. Raises ReplicaLost if it failed."""
        try:
            return self._own.result()
        except Exception as error:
            raise ReplicaLost(f"step {self.plan.step} failed on rank 0") from error


def end_process(loss: Loss) -> None:
    """What an engine process does about a loss: it ends, and is started anew with all its peers.

    At once: its main thread may wait for the lost rank inside a collective for ever.
    """
    log.critical("%s; this replica ends and is started again", loss.reason)
    os._exit(1)
