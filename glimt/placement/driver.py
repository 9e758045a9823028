"""Main of the process that speaks with Ray: finds places, starts what runs there, and starts it
again when it ends. What is started prints comes back with its machine's name.

Ray ends all that this process has placed with it, and it ends with its parent.
"""

import json
import logging
import os
import queue
import secrets
import socket
import sys
import threading
import time
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, NoReturn

import ray
from ray.exceptions import RayError

from glimt.config import Settings
from glimt.errors import BadSettings
from glimt.placement import ray_cluster
from glimt.placement.layout import Group, Resource, Wish, groups_of
from glimt.placement.meetings import Meetings
from glimt.placement.messages import Placed, PlacerStart
from glimt.placement.orders import (
    Address,
    Head,
    decode,
    encode,
    of_place,
    of_this_machine,
    wish_of,
)
from glimt.processes import child
from glimt.processes.children import Backoff, exit_text
from glimt.processes.control import (
    Stop,
    ToChild,
)
from glimt.processes.control_line import ControlLine

_PORTS = 3  # of a meeting point: copies that share experts also take the two that follow
_TRIES = 20
JOIN_LIMIT_S = 15.0  # for machines that are started together with this program
LOOK_S = 0.5
SHUTDOWN_LIMIT_S = 8.0
RETRY_S = 60.0  # for a place that keeps ending
ENDING_S = 10.0  # in which this process ends as well, if the server has been stopped
_REFUSAL = "glimt: "
_IN_ORDER = f"ended: {exit_text(0)}"


class Places:
    """All places of one server in the cluster."""

    def __init__(self, start: PlacerStart) -> None:
        """Wait until Ray has found room for all. Raises BadSettings."""
        settings = decode(start.settings)
        parallel = settings.parallel
        num_ranks = parallel.tensor_parallel_size * parallel.data_parallel_size
        self._connection = ray_cluster.connect(num_ranks if settings.cache.device == "cpu" else 0)
        deadline_s = time.monotonic() + (0.0 if self._connection.is_own else JOIN_LIMIT_S)
        resource = _resource(settings, deadline_s)
        cache = replace(settings.cache, device="cuda" if resource == "GPU" else "cpu")
        self._settings = replace(settings, cache=cache)
        self.refusals: queue.Queue[str] = queue.Queue()
        self._head = _head(self._settings)
        wish = wish_of(settings, resource, start.num_here)
        groups = _groups_of(wish, deadline_s)
        self._num_together = wish.num_together
        self._places = ray_cluster.reserve_all(groups)
        for group, reserved in self._places:
            ray_cluster.wait_for(reserved, group, resource, _say)
        # Held, not run: what is here is started by the parent.
        self._seats_here = [
            ray_cluster.seat(reserved, group, 0)
            for group, reserved in self._places
            if group.is_here
        ]
        self._meetings = Meetings(len(groups))

    def placed(self) -> Placed:
        """What this machine is to do, on which of its GPUs."""
        held = [ray.get(seat.where.remote()) for seat in self._seats_here]
        num_here = len(held) * self._num_together
        settings = of_this_machine(self._settings, self._head, num_here)
        return Placed(
            settings=encode(settings),
            num_here=num_here,
            gpus=",".join(gpus for _, gpus in held if gpus),
            what=f"{self._connection.where}: {self._described()}",
        )

    def _described(self) -> str:
        num_far, num_here = len(self._far()), len(self._seats_here) * self._num_together
        copies, parts = len(self._places), self._settings.parallel.nnodes
        if parts > 1 and copies > 1:
            return f"{copies} copies of {parts} machines each, the first begins on this machine"
        if parts > 1:
            return f"ranks on this machine and {num_far} other(s)"
        together = f", {self._num_together} on each" if self._num_together > 1 else ""
        return f"{num_here} of {copies * self._num_together} copies on this machine{together}"

    def _far(self) -> list[tuple[int, int]]:
        """(group, part) of all places but those of this machine."""
        return [
            (index, part)
            for index, (group, _) in enumerate(self._places)
            for part in range(len(group.bundles))
            if part or not group.is_here
        ]

    def start(self) -> None:
        """Run what is not here, each in a thread of its own."""
        for index, part in self._far():
            name = f"place-{index}-{part}"
            thread = threading.Thread(target=self._keep, args=(index, part), name=name, daemon=True)
            thread.start()

    def _keep(self, index: int, part: int) -> None:
        """Have it run, for ever."""
        backoff, is_first = Backoff(), True
        while True:
            name, end, reason = self._play(index, part)
            if reason and is_first:
                self.refusals.put(f"{name}: {reason}")
                return
            is_first = False
            if end == _IN_ORDER:
                time.sleep(ENDING_S)
            pause_s = backoff.death(time.monotonic())
            pause_s = RETRY_S if pause_s is None else max(1.0, pause_s)
            _say(f"[{name}] {end}; starting it again in {pause_s:.0f} s")
            time.sleep(pause_s)

    def _play(self, index: int, part: int) -> tuple[str, str, str]:
        """Run it once: where, how it ended, and if it refused to start, why."""
        (group, reserved), seat = self._places[index], None
        name, refusal = "a machine of the Ray cluster", ""
        try:
            while not reserved.wait(timeout_seconds=60):
                pass  # the machine is lost, and Ray looks for another
            seat = ray_cluster.seat(reserved, group, part)
            node_id, _ = ray.get(seat.where.remote())
            name = ray_cluster.machine_name(node_id)
            ranks = self._ranks_of(group, part, node_id, seat)
            settings = of_place(self._settings, self._head, group.copy, part, ranks)
            _say(f"[{name}] {_what(settings)}")
            for item in seat.run.options(num_returns="streaming").remote(encode(settings)):
                said = ray.get(item)
                if isinstance(said, int):
                    return name, f"ended: {exit_text(said)}", refusal if said == 2 else ""
                refusal = said.removeprefix(_REFUSAL) if said.startswith(_REFUSAL) else refusal
                _say(_with_name(name, said))
            return name, "said nothing more", ""
        except RayError as error:
            return name, f"is lost: {_shortened(error)}", _cannot_import(error)
        finally:
            if seat is not None:
                self._meetings.leave(group.copy, seat)
                ray.kill(seat)

    def _ranks_of(self, group: Group, part: int, node_id: str, seat: Any) -> Address | None:
        """Where the ranks of a copy of several machines meet. It is its first machine that says so;
        if that is another one than before, the others are started again.
        """
        if len(group.bundles) == 1:
            return None
        if group.is_here:
            return self._head.ranks
        if part:
            return self._meetings.join(group.copy, seat)
        if not self._meetings.is_at(group.copy, node_id):
            address = Address(*ray.get(seat.meeting_point.remote()))
            for late in self._meetings.move(group.copy, node_id, address):
                ray.kill(late)
        return self._meetings.join(group.copy, None)


def _resource(settings: Settings, deadline_s: float) -> Resource:
    """What ranks run on; where that is open, on GPUs if Ray gets to know of any."""
    if settings.cache.device != "auto":
        return "CPU" if settings.cache.device == "cpu" else "GPU"
    while not ray_cluster.has_gpus():
        if time.monotonic() > deadline_s:
            _say("Ray knows of no GPUs: ranks run on CPUs")
            return "CPU"
        time.sleep(LOOK_S)
    return "GPU"


def _groups_of(wish: Wish, deadline_s: float) -> tuple[Group, ...]:
    """Where all copies go. Raises BadSettings if the cluster stays too small for them."""
    is_known = False
    while True:
        machines = ray_cluster.machines(wish.resource)
        try:
            return groups_of(wish, machines, ray_cluster.here())
        except BadSettings as error:
            if time.monotonic() > deadline_s:
                raise
            if not is_known:
                _say(f"{error}. Looking whether machines still join")
                is_known = True
        time.sleep(LOOK_S)


def _head(settings: Settings) -> Head:
    """The addresses that the user gave, or free ones of this machine."""
    parallel = settings.parallel
    return Head(
        copies=_address(parallel.data_parallel_address, parallel.data_parallel_rpc_port),
        ranks=_address(parallel.master_addr, parallel.master_port),
        token=parallel.master_token or secrets.token_urlsafe(32),
    )


def _address(host: str | None, port: int | None) -> Address:
    host = host or ray_cluster.own_address()
    return Address(host, port or _free_port(host))


def _free_port(host: str) -> int:
    """The first of `_PORTS` in a row."""
    for _ in range(_TRIES):
        with ExitStack() as taken:
            try:
                first = _take(taken, host, 0)
            except OSError as error:
                text = f"{host} is no address of this machine: {error.strerror}"
                raise BadSettings(text) from None
            try:
                for more in range(1, _PORTS):
                    _take(taken, host, first + more)
            except (OSError, OverflowError):  # taken, or beyond the last one
                continue
            return first
    raise BadSettings(f"{host} has no {_PORTS} free ports in a row")


def _take(taken: ExitStack, host: str, port: int) -> int:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    one = taken.enter_context(socket.socket(family))
    one.bind((host, port))
    return int(one.getsockname()[1])


def _what(settings: Settings) -> str:
    parallel = settings.parallel
    start, local = parallel.data_parallel_start_rank or 0, parallel.data_parallel_size_local or 1
    copy = f"copy {start}" if local == 1 else f"copies {start} to {start + local - 1}"
    if parallel.nnodes == 1:
        return f"is the place of {copy}"
    here = parallel.tensor_parallel_size // parallel.nnodes
    first = parallel.node_rank * here
    of_copy = f" of {copy}" if parallel.data_parallel_size > 1 else ""
    return f"is the place of ranks {first} to {first + here - 1}{of_copy}"


def _with_name(name: str, line: str) -> str:
    """A line of another machine with its name, as text or in its JSON object."""
    if line.startswith("{"):
        try:
            return json.dumps({**json.loads(line), "node": name})
        except (json.JSONDecodeError, TypeError):
            pass
    return f"[{name}] {line}"


def _shortened(error: RayError) -> str:
    """Ray's pages of advice, without the advice."""
    return " ".join(str(error).split())[:300]


def _cannot_import(error: RayError) -> str:
    """Why the actor could not even begin, if that is so."""
    if "glimt" not in str(error) or "failed to import" not in str(error):
        return ""
    return "Ray's Python there cannot import this version of Glimt; install it there"


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def run(start: PlacerStart, line: ControlLine[ToChild]) -> None:
    """Place everything, and see to it. Raises StartupError."""
    places = Places(start)
    line.send(places.placed())
    places.start()
    raise BadSettings(places.refusals.get())


def _leave(status: int) -> NoReturn:
    """Let Ray end what was placed, and its own processes if they were started here. Killed before,
    those would linger for a minute.
    """
    limit = threading.Timer(SHUTDOWN_LIMIT_S, os._exit, (1,))
    limit.daemon = True
    limit.start()
    ray.shutdown()
    os._exit(status)


def _follow(line: ControlLine[ToChild]) -> None:
    """Leave when the parent says so, or is gone."""
    while (message := line.receive()) is not None:
        if isinstance(message, Stop):
            _leave(0)
    _leave(1)


def main() -> None:
    """Entry point of `python -m glimt.placement.driver`."""
    start, line = child.begin(PlacerStart, __doc__)
    logging.getLogger("ray").setLevel(logging.CRITICAL)
    threading.Thread(target=_follow, args=(line,), name="control-line", daemon=True).start()
    try:
        with child.refusing(line, _leave):
            run(start, line)
    except RayError as error:
        _say(f"Ray's cluster is lost: {_shortened(error)}")
    _leave(2)


if __name__ == "__main__":
    main()
