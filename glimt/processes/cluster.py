"""Machine 0's view of the others: lets those in that fit, and speaks with their ranks.

It belongs to the engine process. A machine that is lost takes the replica along; the engine that is
started anew waits here until all machines have come back.
"""

import logging
import selectors
import socket
import time
from typing import Any

import msgspec

from glimt.errors import BadSettings
from glimt.processes.children import Pulse
from glimt.processes.node_link import (
    Hello,
    LinkLost,
    NodeLink,
    Reached,
    StopNode,
    ToRanks,
    TryReach,
    TurnedAway,
    Welcome,
    examine,
)
from glimt.processes.preflight import ClusterSettings, differences
from glimt.processes.reach import Door, Where, unreachable
from glimt.transport import encode

log = logging.getLogger(__name__)

REMIND_S = 30.0
NAME_LIMIT_S = 30.0  # for the name of this machine to be known, where a cluster gives it one


class RemoteRank(Pulse):
    """A rank on another machine, as far as it is known here."""

    def __init__(self, name: str, rank: int) -> None:
        super().__init__(name)
        self.rank = rank


class Node:
    """A further machine that was let in, and its ranks."""

    def __init__(self, link: NodeLink, hello: Hello, ranks: range) -> None:
        self.link = link
        self.node_rank = hello.node_rank
        self.name = f"node {hello.node_rank} ({hello.host})"
        self.door = Where(self.name, link.other_address, hello.door)
        self.ranks = {rank: RemoteRank(f"peer-{rank} on {self.name}", rank) for rank in ranks}

    def send(self, message: msgspec.Struct) -> bool:
        """To all its ranks. False if the machine is gone."""
        return self.link.send(ToRanks(encode(message)))


class Cluster:
    """All further machines of a replica, once `gather` has returned."""

    def __init__(self, settings: ClusterSettings, num_ranks: int, num_arenas: int) -> None:
        """Raises BadSettings if the port cannot be had."""
        self._settings = settings
        self._ranks_each = num_ranks // settings.num_nodes
        self._num_arenas = num_arenas
        self._nodes: dict[int, Node] = {}
        self._listener = listen(settings.host, settings.port)
        self.own_address = str(self._listener.getsockname()[0])
        # Taken here and handed to torch, so that it listens on this address only.
        self.meeting = listen(self.own_address, 0)
        self.meeting_port = int(self.meeting.getsockname()[1])

    @property
    def nodes(self) -> list[Node]:
        """By their numbers."""
        return [self._nodes[rank] for rank in sorted(self._nodes)]

    def gather(self) -> None:
        """Wait until all machines are there and reach each other, however long it takes, then have
        them start their ranks."""
        said, said_s = "", 0.0
        with selectors.DefaultSelector() as selector:
            selector.register(self._listener, selectors.EVENT_READ)
            while trouble := self._missing() or self._parted(selector):
                parted = trouble != said and not self._missing()
                if parted or time.monotonic() - said_s > REMIND_S:
                    log.warning("%s", trouble)
                    said, said_s = trouble, time.monotonic()
                for key, _ in selector.select(1.0):
                    if isinstance(key.data, Node):
                        self._forget(key.data, selector)
                    elif (node := self._let_in()) is not None:
                        selector.register(node.link.fileno(), selectors.EVENT_READ, node)
        self._listener.close()  # who comes now gets no answer, and tries again
        for node in self.nodes:
            node.link.send(Welcome(self.meeting_port, self._num_arenas))

    def _parted(self, selector: selectors.BaseSelector) -> str:
        """Who does not reach whom, when all are there; "" if all reach all."""
        door = Door(self.own_address)
        doors = [Where("node 0", self.own_address, door.port), *(n.door for n in self.nodes)]
        for node in self.nodes:
            node.link.send(TryReach(tuple(each for each in doors if each is not node.door)))
        parted = [f"node 0 cannot reach {line}" for line in unreachable(doors[1:])]
        for node in self.nodes:
            try:
                reply = node.link.receive()
            except LinkLost:
                self._forget(node, selector)
                continue
            failed = reply.failed if isinstance(reply, Reached) else ("anybody",)
            parted += [f"{node.name} cannot reach {line}" for line in failed]
        door.close()
        if not parted:
            return self._missing()
        return (
            f"waiting until all machines reach each other: {'; '.join(parted)}; ranks talk over "
            "ports that the system chooses: let these machines through to each other at all of them"
        )

    def _missing(self) -> str:
        there = {0, *self._nodes}
        names = [str(rank) for rank in range(self._settings.num_nodes) if rank not in there]
        where = f"{self.own_address}:{self._port()}"
        return f"waiting for node {', '.join(names)} at {where}" if names else ""

    def _port(self) -> int:
        return int(self._listener.getsockname()[1])

    def _forget(self, node: Node, selector: selectors.BaseSelector) -> None:
        """It has nothing to say yet, so this is its end."""
        log.warning("%s went away again", node.name)
        selector.unregister(node.link.fileno())
        node.link.close()
        del self._nodes[node.node_rank]

    def _let_in(self) -> Node | None:
        try:
            connection, (address, *_) = self._listener.accept()
            link = NodeLink(connection)
        except OSError:  # it has gone again
            return None
        try:
            examine(link, self._settings.token)
            hello = link.receive()
            if not isinstance(hello, Hello):
                raise LinkLost("it does not speak our language")
            reason = self._objection(hello)
            if reason:
                link.send(TurnedAway(reason))
                raise LinkLost(reason)
        except LinkLost as error:
            log.warning("a machine at %s was not let in: %s", address, error)
            link.close()
            return None
        first = hello.node_rank * self._ranks_each
        node = Node(link, hello, range(first, first + self._ranks_each))
        self._nodes[node.node_rank] = node
        log.info("%s is there", node.name)
        return node

    def _objection(self, hello: Hello) -> str:
        name = f"node {hello.node_rank} ({hello.host})"
        if not 0 < hello.node_rank < self._settings.num_nodes:
            return f"{name}: --node-rank must be 1 to {self._settings.num_nodes - 1}"
        if hello.node_rank in self._nodes:
            return f"{name}: there is a {self._nodes[hello.node_rank].name} already"
        found = differences(self._settings.facts, hello.facts)
        return f"{name} differs from node 0: {'; '.join(found)}" if found else ""

    def stop(self) -> None:
        """End the other machines in order."""
        for node in self.nodes:
            node.link.send(StopNode())

    def close(self) -> None:
        """End all connections, and so the ranks behind them."""
        for node in self.nodes:
            node.link.close()
        self._listener.close()
        self.meeting.close()


def listen(
    host: str, port: int, flags: tuple[str, str] = ("--master-addr", "--master-port")
) -> socket.socket:
    """A listening socket on this address of this machine only. Raises BadSettings, with `flags`."""
    family, address = _resolve(host, port, flags[0])
    listener = socket.socket(family)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise BadSettings(
            f"node 0 cannot listen on {host}:{port} ({error.strerror}): {flags[0]} must be an "
            f"address of node 0 itself, and {flags[1]} free"
        ) from None
    listener.listen(16)
    return listener


def _resolve(host: str, port: int, flag: str) -> tuple[int, Any]:
    """The family and the address. Raises BadSettings if the name stays unknown."""
    deadline_s = time.monotonic() + NAME_LIMIT_S
    while True:
        try:
            family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            return family, address
        except OSError as error:
            if time.monotonic() > deadline_s:
                raise BadSettings(f"{flag} {host}: {error.strerror}") from None
            time.sleep(1.0)
