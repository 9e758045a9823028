"""The parent of all: starts the processes of a server, notices a death, shuts down in order.

    supervisor ─┬─ servers          HTTP, prompts, text; all accept on the same socket
                ├─ media workers    decode and resize, each for one server
                ├─ engines          scheduler and device, one for each replica
                ├─ gate             if there are replicas on other machines: stands for them
                └─ muster           if they share experts: says when all engines begin and end

    On a machine without HTTP:  supervisor ─┬─ uplink     stands for the servers of the head
                                            ├─ muster     as above
                                            └─ engines

It computes nothing itself and imports neither torch nor a web framework, so that it is still
there when something else is not. It owns what must outlive any child: the listening socket (a
client that connects during a restart waits instead of being refused), the shared memory, the
folder with the sockets.
"""

import asyncio
import contextlib
import shutil
import signal
import socket
import time
from collections.abc import Callable
from functools import partial

import msgspec

from glimt.errors import StartupError
from glimt.processes.announcing import address_of, resolved, waiting_for
from glimt.processes.children import Backoff, Child, exit_text
from glimt.processes.control import (
    Alive,
    Drain,
    EngineDown,
    EngineLeaving,
    EngineStart,
    EngineUp,
    HeadEnded,
    MediaWorkerDown,
    MediaWorkerStart,
    Notice,
    Phase,
    Ready,
    Refused,
    ServerForgotten,
    ServerStart,
    Stop,
)
from glimt.processes.engine_group import EngineGroup
from glimt.processes.far_start import GateStart, MusterStart, UplinkStart
from glimt.processes.folders import make_folder
from glimt.processes.forgetting import Forgetting
from glimt.processes.group_messages import GroupBegins, GroupEnds
from glimt.processes.shared_memory import SharedMemory
from glimt.processes.starting import Plan, Starter
from glimt.wire import EngineInfo

STOP_LIMIT_S = 5.0
RETRY_S = 60.0  # for a replica that keeps dying while others live
RESTARTING = "the engine died; it is being restarted"
REJOIN_S = 1.0  # after the loss of the machine that has HTTP


class Supervisor:
    """Runs one server until it is told to stop. `say` prints one line for the operator."""

    def __init__(
        self, plan: Plan, listener: socket.socket | None, say: Callable[[str], None]
    ) -> None:
        """`listener`: of HTTP; None on a machine without."""
        self._plan = plan
        self._listener = listener
        self._say = say
        self._folder = make_folder()
        self._num_servers = plan.server.num_servers if plan.uplink is None else 1
        self._memory = SharedMemory(
            plan.arena_bytes,
            self._num_servers,
            shares_images=plan.shares_images and plan.uplink is None,
        )
        self._starter = Starter(plan, self._folder, self._memory, listener)
        self._children: dict[str, Child] = {}
        self._backoffs: dict[str, Backoff] = {}
        self._engines_up: dict[int, EngineUp] = {}
        self._forgetting = Forgetting()
        self._engines = EngineGroup(plan, self._starter, self._children, self._adopt)
        self._ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._stopping = False
        self._verdict = (0, "")  # status and message of an end in order
        self._is_started = False  # all that runs on this machine was ready once
        self._announced = False  # and so was all that runs on others
        self._started_s = time.monotonic()
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> int:
        """Start everything and wait for the end; the exit status of the program."""
        loop = asyncio.get_running_loop()
        for signum in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signum, self._on_signal, signum)
        try:
            self._start_all()
            self._spawn(self._watch())
            return await self._ended
        finally:
            self._end_all()

    # ------------------------------------------------------------------------------ starting

    def _start_all(self) -> None:
        plan = self._plan
        if plan.gate is not None:
            self._start_gate(plan.gate)
        if plan.muster is not None:  # then all machines begin together
            self._start_muster(plan.muster)
        elif plan.uplink is None:  # else when the head has let this machine in
            self._engines.start()
        for index in range(self._num_servers):
            self._start_server(index)
        for number in range(plan.num_media_workers if plan.uplink is None else 0):
            self._start_media_worker(number)

    def _start_gate(self, wishes: GateStart) -> None:
        self._adopt(self._starter.gate(wishes))

    def _start_muster(self, wishes: MusterStart) -> None:
        self._adopt(self._starter.muster(wishes))

    def _start_engine(self, index: int) -> None:
        self._adopt(self._starter.engine(index))

    def _start_server(self, index: int) -> None:
        child = self._starter.server(index)
        self._adopt(child)
        for engine_up in self._engines_up.values():
            child.line.send(engine_up)

    def _start_media_worker(self, number: int) -> None:
        self._adopt(self._starter.media_worker(number))

    def _adopt(self, child: Child) -> None:
        self._children[child.name] = child
        asyncio.get_running_loop().add_reader(child.line.fileno(), self._on_readable, child)

    # -------------------------------------------------------------------------- what they say

    def _on_readable(self, child: Child) -> None:
        message = child.line.receive()
        match message:
            case None:
                self._on_death(child)
            case Phase(name, seconds, detail):
                if not self._is_started:
                    self._say(f"  {child.name:<9} {name:<28} {seconds:7.2f} s  {detail}".rstrip())
            case Ready(info):
                self._on_ready(child, info)
            case Alive(stalled_s):
                child.lives(stalled_s)
            case GroupBegins() | GroupEnds() if not self._stopping:
                self._engines.obey(message)
            case EngineUp() | EngineDown() | EngineLeaving() | HeadEnded():
                self._on_far(message)
            case ServerForgotten(server):
                self._forgetting.has_forgotten(child.name, server)
            case Notice():
                self._tell_servers(message, but=child)
            case Refused(text):
                self._on_refusal(text)

    def _on_far(self, message: EngineUp | EngineDown | EngineLeaving | HeadEnded) -> None:
        """News of other machines."""
        match message:
            case EngineUp(index):
                self._engine_up(message, f"replica {index}")
            case EngineDown():
                self._engine_down(message)
            case EngineLeaving():
                self._tell_servers(message)
            case HeadEnded():
                if not self._stopping:
                    self._say("the machine that answers HTTP has ended: so does this one")
                self._finish(0)

    async def _watch(self) -> None:
        """End a process whose loop stands still, or that is stopped."""
        plan = self._plan
        while True:
            await asyncio.sleep(1.0)
            for child in list(self._children.values()):
                if isinstance(child.start, ServerStart):
                    limit_s = plan.server_silence_limit_s
                    self._judge(child, child.complaint(limit_s, limit_s))
                elif not isinstance(child.start, MediaWorkerStart):
                    self._judge(child, child.complaint(plan.engine_stall_limit_s))

    def _judge(self, child: Child, complaint: str | None) -> None:
        if child.ready and complaint is not None:
            self._say(f"{child.name} {complaint}: ending it")
            child.ready = False
            child.kill()

    def _workers(self) -> list[Child]:
        """Those that may work for a server. Who is not ready yet has never heard of one."""
        kinds = (EngineStart, GateStart)
        children = self._children.values()
        return [child for child in children if isinstance(child.start, kinds) and child.ready]

    def _servers(self) -> list[Child]:
        """Those that send requests to engines."""
        kinds = (ServerStart, UplinkStart)
        return [child for child in self._children.values() if isinstance(child.start, kinds)]

    def _tell_servers(self, message: msgspec.Struct, but: Child | None = None) -> None:
        for server in self._servers():
            if server is not but:
                server.line.send(message)

    def _engine_up(self, engine_up: EngineUp, name: str) -> None:
        self._engines_up[engine_up.index] = engine_up
        self._say(f"  {name:<9} resolved: {resolved(engine_up.info)}")
        self._tell_servers(engine_up)
        self._on_progress(name)

    def _engine_down(self, engine_down: EngineDown) -> None:
        self._engines_up.pop(engine_down.index, None)
        self._tell_servers(engine_down)

    def _on_ready(self, child: Child, info: EngineInfo | None) -> None:
        child.ready = True
        child.lives(0.0)
        if isinstance(child.start, MusterStart):
            self._engines.report_quiet()
        elif isinstance(child.start, UplinkStart) and not self._engines.has_begun:
            self._engines.restart()
        if isinstance(child.start, EngineStart) and info is not None:
            index, address = child.start.index, child.start.inbox
            self._engine_up(EngineUp(index=index, address=address, info=info), child.name)
        else:
            self._on_progress(child.name)

    def _on_progress(self, name: str) -> None:
        """Something does its work from now on, and with it perhaps everything."""
        missing = sorted(self._plan.all_copies - self._engines_up.keys())
        if self._announced or (self._is_started and missing):
            self._say(f"{name} is {'back' if self._announced else 'there'}")
        elif all(child.ready for child in self._children.values()) and self._engines.has_begun:
            self._is_started = True
            self._announced = not missing
            self._say(self._announcement() if not missing else f"  {waiting_for(missing)}")

    def _announcement(self) -> str:
        seconds = time.monotonic() - self._started_s
        name = self._plan.server.served_model_names[0]
        if self._listener is None:
            copies = ", ".join(map(str, self._plan.copies))
            return f"ready after {seconds:.1f} s: serving {name} for the head, as {copies}"
        where = address_of(self._listener, is_tls=self._plan.server.tls is not None)
        return f"ready after {seconds:.1f} s: {where}/v1  serving {name}"

    # ------------------------------------------------------------------------------- deaths

    def _on_death(self, child: Child) -> None:
        asyncio.get_running_loop().remove_reader(child.line.fileno())
        status = child.reap()
        if self._children.get(child.name) is child:
            del self._children[child.name]
        if self._stopping:
            if not self._servers():
                self._finish(*self._verdict)
            return
        self._say(f"{child.name} ended: {exit_text(status)}")
        if isinstance(child.start, UplinkStart | MusterStart):  # the connection may come again
            self._spawn(self._replace(child, REJOIN_S))
            return
        if not child.ready and not self._is_started and not self._engines.ends_by_order:
            self._finish(1, f"{child.name} could not start; its messages are above")
            return
        name = child.name
        if self._plan.shares_experts and isinstance(child.start, EngineStart):
            self._engine_down(EngineDown(child.start.index, RESTARTING))
            self._forgetting.is_dead(name)
            if self._engines.kill():
                return  # the last to end has all of them started anew
            if self._engines.ends_by_order:
                self._engines.report_quiet()
                return
            name = "the engines"
        pause_s = self._backoffs.setdefault(name, Backoff()).death(time.monotonic())
        if pause_s is None and isinstance(child.start, EngineStart):
            pause_s = RETRY_S if self._engines_up.keys() - {child.start.index} else None
        if pause_s is None:
            self._finish(1, f"{name} keeps dying; giving up")
            return
        self._spawn(self._replace(child, pause_s))

    async def _replace(self, child: Child, pause_s: float) -> None:
        """Tell those who relied on the dead child, then start its successor."""
        match child.start:
            case EngineStart(index=index):
                self._engine_down(EngineDown(index, RESTARTING))
                self._forgetting.is_dead(child.name)
                restart: Callable[[], None] = partial(self._start_engine, index)
                if self._plan.shares_experts:
                    restart = self._engines.restart
            case MusterStart() as muster:
                self._engines.muster_lost()
                restart = partial(self._start_muster, muster)
            case GateStart() as gate:
                for index in self._plan.all_copies - set(self._plan.copies):
                    self._engine_down(EngineDown(index, RESTARTING))
                self._forgetting.is_dead(child.name)
                restart = partial(self._start_gate, gate)
            case MediaWorkerStart(number=number, name=name, server=index):
                if (its_server := self._children.get(f"server-{index}")) is not None:
                    its_server.line.send(MediaWorkerDown(name))
                restart = partial(self._start_media_worker, number)
            case _:
                server_index = getattr(child.start, "index", 0)
                await self._forget_server(server_index)
                restart = partial(self._start_server, server_index)
        await asyncio.sleep(pause_s)
        if not self._stopping:
            restart()

    async def _forget_server(self, server: int) -> None:
        """Before a new server may use the arena, nobody may still read or write for the old one."""
        for child in list(self._children.values()):
            if isinstance(child.start, MediaWorkerStart) and child.start.server == server:
                child.kill()
        await self._forgetting.ask(server, self._workers())
        self._memory.forget_server(server)

    def _spawn(self, coroutine: "asyncio._CoroutineLike[None]") -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # ------------------------------------------------------------------------------ stopping

    def _on_signal(self, signum: int) -> None:
        if self._stopping or not self._servers() or not self._is_started:
            self._finish(*(self._verdict if self._is_started else (128 + signum, "")))
        else:
            self._drain()

    def _on_refusal(self, text: str) -> None:
        """A child cannot start, and will not: whom the others serve is served to the end."""
        self._verdict = (2, text)
        if self._stopping or not self._servers() or not self._is_started:
            self._finish(*self._verdict)
        else:
            self._say(text)
            self._drain()

    def _drain(self) -> None:
        self._stopping = True
        timeout_s = self._plan.shutdown_timeout_s
        self._say(
            f"stopping: running requests may finish (at most {timeout_s:.0f} s); "
            "once more to stop now"
        )
        for server in self._servers():
            server.line.send(Drain(timeout_s))
        limit_s = timeout_s + STOP_LIMIT_S
        asyncio.get_running_loop().call_later(limit_s, lambda: self._finish(*self._verdict))

    def _finish(self, status: int, message: str = "") -> None:
        self._stopping = True
        if self._ended.done():
            return
        if message and status:
            self._ended.set_exception(StartupError(message))
        else:
            self._ended.set_result(status)

    def _end_all(self) -> None:
        """End what still runs: asked first, killed after a moment. Leaves nothing behind."""
        self._stopping = True
        loop = asyncio.get_running_loop()
        for task in self._tasks:
            task.cancel()
        for child in self._children.values():
            loop.remove_reader(child.line.fileno())
            child.line.send(Stop())
        deadline_s = time.monotonic() + STOP_LIMIT_S
        for child in self._children.values():
            child.reap(max(0.0, deadline_s - time.monotonic()))
        self._children.clear()
        self._memory.close()
        if self._listener is not None:
            with contextlib.suppress(OSError):
                self._listener.close()
        shutil.rmtree(self._folder, ignore_errors=True)
