"""How two machines come together over a `FarLink`: one lets in, the other looks for it."""

import asyncio
import logging
import socket
import sys
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Protocol, TypeVar

import uvloop

from glimt.errors import StartupError
from glimt.log import set_up
from glimt.processes import child
from glimt.processes.children import end_with_parent
from glimt.processes.control import Alive, ToChild
from glimt.processes.control_line import ControlLine
from glimt.processes.far_link import BEAT_S, Admitted, Beat, FarLink, Introduction
from glimt.processes.far_start import FarStart
from glimt.processes.node_link import (
    HANDSHAKE_LIMIT_S,
    LinkLost,
    NodeLink,
    TurnedAway,
    examine,
    introduce,
)
from glimt.processes.preflight import Facts, differences
from glimt.processes.tasks import Tasks

log = logging.getLogger(__name__)

REJOIN_LIMIT_S = 600.0  # of tries to reach the head, before giving up
RETRY_S = 1.0
CONNECT_LIMIT_S = 5.0

Start = TypeVar("Start", bound=FarStart)


class Runs(Protocol):
    """What such a process is: a gate, an uplink, a member of the muster."""

    async def run(self) -> None:
        """Until its end. Raises StartupError, and LinkLost where the head is lost."""


def run_far(
    kind: type[Start],
    description: str | None,
    name: str,
    make: Callable[[Start, ControlLine[ToChild]], Runs],
) -> None:
    """Main of a process that meets other machines: makes what it is, within the loop, and runs it
    to its end. A StartupError is told to the supervisor, and ends the process with status 2; the
    loss of the head with status 1, since another process may find it again.
    """
    end_with_parent()
    start, line = child.begin(kind, description)
    set_up(start.log_level, as_json=start.log_json, name=name)

    async def serve() -> None:
        await make(start, line).run()

    try:
        with child.refusing(line):
            uvloop.run(serve())
    except LinkLost as error:
        log.warning("the head is lost: %s", error)
        sys.exit(1)


async def let_in_all(
    listener: socket.socket,
    token: str,
    objection: Callable[[Introduction], str],
    work_with: Callable[[FarLink, Introduction], Coroutine[Any, Any, None]],
    tasks: Tasks,
    log: logging.Logger,
) -> None:
    """Let machines in that connect, for ever; `work_with` each in a task of its own."""

    async def meet(connection: socket.socket, address: str) -> None:
        found = await _let_in(connection, address, token, objection, log)
        if found is not None:
            await work_with(*found)

    loop = asyncio.get_running_loop()
    while True:
        connection, (address, *_) = await loop.sock_accept(listener)
        tasks.spawn(meet(connection, str(address)))


async def beat(line: ControlLine[ToChild], links: Callable[[], Sequence[FarLink]]) -> None:
    """Say that this process lives, to its supervisor and to the other ends of `links`, and give up
    those that do not; for ever.
    """
    while True:
        line.send(Alive(0.0), waits=False)
        for link in links():
            link.send(Beat(time.monotonic()))
            link.give_up_if_silent()
        await asyncio.sleep(BEAT_S)


def difference(facts: Facts, who: Introduction) -> str:
    """Why that machine cannot work with the head, whose `facts` are given; empty if it can."""
    found = differences(facts, who.facts, "the head")
    return f"{who.name} differs from the head: {'; '.join(found)}" if found else ""


async def _let_in(
    connection: socket.socket,
    address: str,
    token: str,
    objection: Callable[[Introduction], str],
    log: logging.Logger,
) -> tuple[FarLink, Introduction] | None:
    """Who has connected, once it has proved itself and nothing speaks against it; it is not told
    yet (`Admitted`). None: it was turned away, and the log says why.
    """
    link = NodeLink(connection)
    try:
        await asyncio.to_thread(examine, link, token)
    except (LinkLost, OSError) as error:
        log.warning("a machine at %s was not let in: %s", address, error)
        link.close()
        return None
    far = await FarLink.over(link)
    try:
        who = await asyncio.wait_for(far.receive(), HANDSHAKE_LIMIT_S)
        if not isinstance(who, Introduction):
            raise LinkLost("it does not speak our language")
        reason = objection(who)
        if reason:
            far.send(TurnedAway(reason))
            await far.flush()
            raise LinkLost(reason)
    except (LinkLost, TimeoutError) as error:
        log.warning("a machine at %s was not let in: %s", address, error)
        far.close()
        return None
    return far, who


async def find_head(
    host: str, port: int, token: str, who: Introduction, log: logging.Logger
) -> FarLink:
    """Look for the head and be let in. Raises StartupError if it refuses, or is not found."""
    where = f"{host}:{port}"
    log.info("looking for the head at %s", where)
    deadline_s = time.monotonic() + REJOIN_LIMIT_S
    while True:
        try:
            return await _try_to_join(host, port, token, who, log)
        except (OSError, LinkLost, TimeoutError) as error:
            if time.monotonic() > deadline_s:
                raise StartupError(
                    f"the head at {where} could not be reached for {REJOIN_LIMIT_S:.0f} s "
                    f"({error}): is it started with the same --data-parallel-address and "
                    "--data-parallel-rpc-port, and may this machine reach it?"
                ) from None
            await asyncio.sleep(RETRY_S)


async def _try_to_join(
    host: str, port: int, token: str, who: Introduction, log: logging.Logger
) -> FarLink:
    link = await asyncio.to_thread(_prove, host, port, token)
    far = await FarLink.over(link)
    try:
        far.send(who)
        reply: Any = await asyncio.wait_for(far.receive(), CONNECT_LIMIT_S)
    except BaseException:
        far.close()
        raise
    if isinstance(reply, TurnedAway):
        far.close()
        raise StartupError(f"the head refuses this machine: {reply.reason}")
    if not isinstance(reply, Admitted):
        far.close()
        raise LinkLost("what listens there is no head")
    log.info("let in by the head")
    return far


def _prove(host: str, port: int, token: str) -> NodeLink:
    """Connect, and prove each other's knowledge of the token; blocks. Raises StartupError."""
    link = NodeLink(socket.create_connection((host, port), CONNECT_LIMIT_S))
    try:
        reason = introduce(link, token)
    except BaseException:
        link.close()
        raise
    if reason is not None:
        link.close()
        raise StartupError(f"the head at {host}:{port} refuses: {reason}")
    return link
