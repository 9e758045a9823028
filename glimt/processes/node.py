"""A machine beside machine 0: starts its ranks of the replica, and carries their messages.

It has no HTTP and decides nothing. When machine 0 is lost it ends its ranks and tries to come back;
so it may be started before machine 0, and outlives its restarts.
"""

import selectors
import shutil
import signal
import socket
import time
from collections.abc import Callable
from typing import Any

import msgspec

from glimt.errors import StartupError
from glimt.processes.children import Child, exit_text
from glimt.processes.control import EngineStart, PeerStart, Refused
from glimt.processes.folders import make_folder
from glimt.processes.node_link import (
    FromRank,
    Hello,
    LinkLost,
    NodeLink,
    RankEnded,
    Reached,
    StopNode,
    ToRanks,
    TryReach,
    TurnedAway,
    Welcome,
    introduce,
)
from glimt.processes.preflight import ClusterSettings
from glimt.processes.reach import Door, unreachable
from glimt.transport import Fanout

REJOIN_LIMIT_S = 600.0  # of tries to reach machine 0, before giving up
RETRY_S = 1.0
CONNECT_LIMIT_S = 5.0

Say = Callable[[str], None]


def serve_node(start: EngineStart, node_rank: int, say: Say) -> int:
    """Work for machine 0 until it ends in order, or a signal comes; the exit status.

    Raises StartupError if machine 0 turns this one away, or cannot be reached for `REJOIN_LIMIT_S`.
    """
    if start.cluster is None:
        raise StartupError(f"node {node_rank} needs --nnodes")
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, _interrupt)
    try:
        while True:
            link, door = _join(start.cluster, node_rank, say)
            with _Session(start, node_rank, link, door, say) as session:
                if session.run():
                    say("node 0 has ended: so does this node")
                    return 0
    except KeyboardInterrupt:
        return 0


def _interrupt(signum: int, frame: object) -> None:
    raise KeyboardInterrupt


def _join(cluster: ClusterSettings, node_rank: int, say: Say) -> tuple[NodeLink, Door]:
    """Find machine 0 and be known to it. Raises StartupError."""
    where = f"{cluster.host}:{cluster.port}"
    say(f"looking for node 0 at {where}")
    deadline_s = time.monotonic() + REJOIN_LIMIT_S
    while True:
        try:
            address = (cluster.host, cluster.port)
            link = NodeLink(socket.create_connection(address, CONNECT_LIMIT_S))
            try:
                reason = introduce(link, cluster.token)
            except LinkLost:
                link.close()
                raise
            if reason is not None:
                link.close()
                raise StartupError(f"node 0 at {where} refuses this node: {reason}")
            door = Door(link.own_address)
            link.send(Hello(node_rank, socket.gethostname(), cluster.facts, door.port))
            return link, door
        except (OSError, LinkLost) as error:
            if time.monotonic() > deadline_s:
                raise StartupError(
                    f"node 0 at {where} could not be reached for {REJOIN_LIMIT_S:.0f} s ({error}): "
                    "is it started with the same --master-addr and --master-port, and may this "
                    "machine reach it?"
                ) from None
            time.sleep(RETRY_S)


class _Session:
    """From being let in until one of the two sides is lost."""

    def __init__(
        self,
        start: EngineStart,
        node_rank: int,
        link: NodeLink,
        door: Door,
        say: Say,
    ) -> None:
        self._start = start
        self._node_rank = node_rank
        self._link = link
        self._door = door
        self._say = say
        self._folder = make_folder()
        self._peers: dict[int, Child] = {}
        self._fanout: Fanout | None = None
        self._is_over = False
        self._unreached: list[str] = []

    def __enter__(self) -> "_Session":
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing of it runs any more."""
        for peer in self._peers.values():
            peer.kill()
        for peer in self._peers.values():
            peer.reap()
        if self._fanout is not None:
            self._fanout.close()
        self._link.close()
        self._door.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def run(self) -> bool:
        """Whether machine 0 has ended in order; False: it was lost. Raises StartupError."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._link.fileno(), selectors.EVENT_READ)
            while True:
                for key, _ in selector.select():
                    if key.data is not None:
                        if not self._carry(*key.data):
                            selector.unregister(key.fd)
                        continue
                    try:
                        message = self._link.receive()
                    except LinkLost as error:
                        self._say(f"node 0 is lost ({error}): ending the ranks of this node")
                        return False
                    self._obey(message, selector)
                    if self._is_over:
                        return True

    def _obey(self, message: Any, selector: selectors.BaseSelector) -> None:
        match message:
            case TurnedAway(reason):
                raise StartupError(f"node 0 refuses this node: {reason}")
            case TryReach(doors):
                failed = unreachable(doors)
                for line in failed:
                    if line not in self._unreached:
                        self._say(f"this node cannot reach {line}")
                self._unreached = failed
                self._link.send(Reached(tuple(failed)))
            case Welcome():
                self._door.close()
                self._start_ranks(message)
                for rank, peer in self._peers.items():
                    selector.register(peer.line.fileno(), selectors.EVENT_READ, (rank, peer))
            case ToRanks(frame) if self._fanout is not None:
                self._fanout.send_frame(frame)
            case StopNode():
                self._is_over = True

    def _start_ranks(self, welcome: Welcome) -> None:
        here = self._start.num_ranks_here
        first = self._node_rank * here
        addresses = [f"ipc://{self._folder}/peer-{rank}" for rank in range(first, first + here)]
        self._fanout = Fanout(addresses)
        engine = msgspec.structs.replace(self._start, cluster=None)
        self._say(f"all nodes are there: starting ranks {first} to {first + here - 1}")
        for rank, inbox in enumerate(addresses, first):
            start = PeerStart(
                engine=engine,
                rank=rank,
                inbox=inbox,
                meeting_point=self._link.other_address,
                meeting_port=welcome.meeting_port,
                own_address=self._link.own_address,
                num_far_arenas=welcome.num_arenas,
            )
            self._peers[rank] = Child(f"peer-{rank}", "glimt.processes.peer", start)

    def _carry(self, rank: int, peer: Child) -> bool:
        """What a rank says, to machine 0; whether it still lives."""
        message = peer.line.receive()
        if message is not None:
            if isinstance(message, Refused):
                self._say(f"{peer.name}: {message.message}")
            self._link.send(FromRank(rank, message))
            return True
        how = exit_text(peer.reap())
        self._say(f"{peer.name} ended: {how}")
        self._link.send(RankEnded(rank, how))
        return False
