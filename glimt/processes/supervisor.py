"""The parent of all: starts the processes of a server, notices a death, shuts down in order.

    supervisor ─┬─ servers          HTTP, prompts, text; all accept on the same socket
                ├─ media workers    decode and resize, each for one server
                └─ engines          scheduler and device, one for each replica

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

import msgspec

from glimt.errors import EngineDied, StartupError
from glimt.processes.children import Backoff, Child, exit_text
from glimt.processes.control import (
    Alive,
    Drain,
    EngineDown,
    EngineStart,
    EngineUp,
    MediaWorkerDown,
    MediaWorkerStart,
    Notice,
    Phase,
    Ready,
    Refused,
    ServerForgotten,
    ServerGone,
    ServerStart,
    Stop,
)
from glimt.processes.folders import make_folder
from glimt.processes.shared_memory import SharedMemory
from glimt.wire import EngineInfo

FORGET_LIMIT_S = 30.0  # for an engine to end the requests of a server that died
STOP_LIMIT_S = 5.0
RETRY_S = 60.0  # for a replica that keeps dying while others live


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What to start: made once from settings and checkpoint, used again at each restart."""

    engine: EngineStart
    server: ServerStart
    copies: range = range(1)  # numbers of the replicas of this machine
    num_media_workers: int
    arena_bytes: int
    shares_images: bool = False  # one image cache for all servers, which outlives them
    shutdown_timeout_s: float
    engine_stall_limit_s: float = 120.0  # a step that takes longer than this is a hang
    server_silence_limit_s: float = 30.0  # its loop speaks itself, and may be held up


class Supervisor:
    """Runs one server until it is told to stop. `say` prints one line for the operator."""

    def __init__(self, plan: Plan, listener: socket.socket, say: Callable[[str], None]) -> None:
        self._plan = plan
        self._listener = listener
        self._say = say
        self._folder = make_folder()
        self._num_servers = plan.server.num_servers
        self._memory = SharedMemory(
            plan.arena_bytes, self._num_servers, shares_images=plan.shares_images
        )
        self._children: dict[str, Child] = {}
        self._backoffs: dict[str, Backoff] = {}
        self._incarnation = 0
        self._engines_up: dict[int, EngineUp] = {}
        # By dead server: the engines that may still work for it, and that none does any more.
        self._remembering: dict[int, tuple[set[str], asyncio.Event]] = {}
        self._ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._stopping = False
        self._announced = False
        self._started_s = time.monotonic()
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> int:
        """Start everything and wait for the end; the exit status of the program."""
        loop = asyncio.get_running_loop()
        for signum in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signum, self._on_signal, signum)
        try:
            for index in self._plan.copies:
                self._start_engine(index)
            for index in range(self._num_servers):
                self._start_server(index)
            for number in range(self._plan.num_media_workers):
                self._start_media_worker(number)
            self._spawn(self._watch())
            return await self._ended
        finally:
            self._end_all()

    # ------------------------------------------------------------------------------ starting

    def _address(self, name: str) -> str:
        """A socket path that no earlier incarnation has used."""
        self._incarnation += 1
        return f"ipc://{self._folder}/{name}.{self._incarnation}"

    def _start_engine(self, index: int) -> None:
        name = f"engine-{index}"
        start = msgspec.structs.replace(
            self._plan.engine,
            index=index,
            place_here=self._plan.copies.index(index),
            inbox=self._address(name),
            server_inboxes=tuple(
                f"ipc://{self._folder}/server-{server}" for server in range(self._num_servers)
            ),
            arena_fds=self._memory.arena_fds,
            folder=str(self._folder),
        )
        self._adopt(Child(name, "glimt.processes.engine", start, self._memory.arena_fds))

    def _start_server(self, index: int) -> None:
        memory = self._memory
        start = msgspec.structs.replace(
            self._plan.server,
            index=index,
            inbox=f"ipc://{self._folder}/server-{index}",
            media_hub=f"ipc://{self._folder}/media-{index}",
            arena_fd=memory.arena_of(index).fd,
            index_fd=memory.index_fd,
            board_fd=memory.board_fd,
            ledger_fd=memory.ledger_fd,
            socket_fd=self._listener.fileno(),
        )
        fds = (*memory.fds_of(index), self._listener.fileno())
        child = Child(f"server-{index}", "glimt.processes.server", start, fds)
        self._adopt(child)
        for engine_up in self._engines_up.values():
            child.line.send(engine_up)

    def _start_media_worker(self, number: int) -> None:
        self._incarnation += 1
        server = number % self._num_servers
        arena = self._memory.arena_of(server)
        start = MediaWorkerStart(
            number=number,
            server=server,
            name=f"media-{number}.{self._incarnation}",
            hub=f"ipc://{self._folder}/media-{server}",
            arena_fd=arena.fd,
            arena=arena.index,
            log_level=self._plan.server.log_level,
            log_json=self._plan.server.log_json,
        )
        name = f"media-{number}"
        self._adopt(Child(name, "glimt.processes.media_worker", start, (arena.fd,)))

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
                if not self._announced:
                    self._say(f"  {child.name:<9} {name:<28} {seconds:7.2f} s  {detail}".rstrip())
            case Ready(info):
                self._on_ready(child, info)
            case Alive(stalled_s):
                child.lives(stalled_s)
            case ServerForgotten(server):
                self._has_forgotten(child.name, server)
            case Notice():
                for other in self._servers():
                    if other is not child:
                        other.line.send(message)
            case Refused(text):
                self._finish(2, text)

    async def _watch(self) -> None:
        """End an engine or server whose loop stands still, or whose whole process is stopped."""
        plan = self._plan
        while True:
            await asyncio.sleep(1.0)
            for engine in self._engines():
                self._judge(engine, engine.complaint(plan.engine_stall_limit_s))
            silence_limit_s = plan.server_silence_limit_s
            for server in self._servers():
                self._judge(server, server.complaint(silence_limit_s, silence_limit_s))

    def _judge(self, child: Child, complaint: str | None) -> None:
        if child.ready and complaint is not None:
            self._say(f"{child.name} {complaint}: ending it")
            child.ready = False
            child.kill()

    def _engines(self) -> list[Child]:
        """Those that run, ready or not."""
        children = self._children.values()
        return [child for child in children if isinstance(child.start, EngineStart)]

    def _servers(self) -> list[Child]:
        children = self._children.values()
        return [child for child in children if isinstance(child.start, ServerStart)]

    def _on_ready(self, child: Child, info: EngineInfo | None) -> None:
        child.ready = True
        child.lives(0.0)
        if isinstance(child.start, EngineStart) and info is not None:
            index = child.start.index
            self._engines_up[index] = EngineUp(index=index, address=child.start.inbox, info=info)
            self._say(f"  {child.name:<9} resolved: {_resolved(info)}")
            for server in self._servers():
                server.line.send(self._engines_up[index])
        everything = all(other.ready for other in self._children.values())
        if everything and not self._announced:
            self._announced = True
            self._announce()
        elif self._announced:
            self._say(f"{child.name} is back")

    def _announce(self) -> None:
        seconds = time.monotonic() - self._started_s
        name = self._plan.server.served_model_names[0]
        if self._listener.family == socket.AF_UNIX:
            where = f"unix:{self._listener.getsockname()}"
        else:
            host, port = self._listener.getsockname()[:2]
            host = f"[{host}]" if ":" in host else host
            scheme = "http" if self._plan.server.tls is None else "https"
            where = f"{scheme}://{host}:{port}"
        self._say(f"ready after {seconds:.1f} s: {where}/v1  serving {name}")

    # ------------------------------------------------------------------------------- deaths

    def _on_death(self, child: Child) -> None:
        asyncio.get_running_loop().remove_reader(child.line.fileno())
        status = child.reap()
        if self._children.get(child.name) is child:
            del self._children[child.name]
        if self._stopping:
            if not self._servers():
                self._finish(0)
            return
        self._say(f"{child.name} ended: {exit_text(status)}")
        if not child.ready and not self._announced:
            self._finish(1, f"{child.name} could not start; its messages are above")
            return
        pause_s = self._backoffs.setdefault(child.name, Backoff()).death(time.monotonic())
        if pause_s is None and isinstance(child.start, EngineStart):
            others = self._engines_up.keys() - {child.start.index}
            pause_s = RETRY_S if others else None
        if pause_s is None:
            self._finish(1, f"{child.name} keeps dying; giving up")
            return
        self._spawn(self._replace(child, pause_s))

    async def _replace(self, child: Child, pause_s: float) -> None:
        """Tell those who relied on the dead child, then start its successor."""
        match child.start:
            case EngineStart(index=index):
                self._engines_up.pop(index, None)
                for server in self._servers():
                    server.line.send(EngineDown(index, EngineDied.code))
                for number in list(self._remembering):
                    self._has_forgotten(child.name, number)
                restart: Callable[[], None] = lambda: self._start_engine(index)  # noqa: E731
            case MediaWorkerStart(number=number, name=name, server=index):
                if (its_server := self._children.get(f"server-{index}")) is not None:
                    its_server.line.send(MediaWorkerDown(name))
                restart = lambda: self._start_media_worker(number)  # noqa: E731
            case _:
                server_index = child.start.index
                await self._forget_server(server_index)
                restart = lambda: self._start_server(server_index)  # noqa: E731
        await asyncio.sleep(pause_s)
        if not self._stopping:
            restart()

    async def _forget_server(self, server: int) -> None:
        """Before a new server may use the arena, nobody may still read or write for the old one."""
        for child in list(self._children.values()):
            if isinstance(child.start, MediaWorkerStart) and child.start.server == server:
                child.kill()
        if engines := self._engines():
            names, forgotten = {engine.name for engine in engines}, asyncio.Event()
            self._remembering[server] = names, forgotten
            for engine in engines:
                engine.line.send(ServerGone(server))
            try:
                await asyncio.wait_for(forgotten.wait(), FORGET_LIMIT_S)
            except TimeoutError:
                for engine in engines:
                    if engine.name in names:
                        engine.kill()
            del self._remembering[server]
        self._memory.forget_server(server)

    def _has_forgotten(self, engine: str, server: int) -> None:
        """It works no more for a server that died, or is dead itself."""
        names, forgotten = self._remembering.get(server, (set(), None))
        names.discard(engine)
        if forgotten is not None and not names:
            forgotten.set()

    def _spawn(self, coroutine: "asyncio._CoroutineLike[None]") -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # ------------------------------------------------------------------------------ stopping

    def _on_signal(self, signum: int) -> None:
        servers = self._servers()
        if self._stopping or not servers or not self._announced:
            self._finish(0 if self._announced else 128 + signum)
            return
        self._stopping = True
        timeout_s = self._plan.shutdown_timeout_s
        self._say(
            f"stopping: running requests may finish (at most {timeout_s:.0f} s); "
            "once more to stop now"
        )
        for server in servers:
            server.line.send(Drain(timeout_s))
        asyncio.get_running_loop().call_later(timeout_s + STOP_LIMIT_S, self._finish, 0)

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
        with contextlib.suppress(OSError):
            self._listener.close()
        shutil.rmtree(self._folder, ignore_errors=True)


def _resolved(info: EngineInfo) -> str:
    """What the wishes became."""
    return ", ".join(
        f"{name}={getattr(info, name)}"
        for name in (
            "device",
            "tensor_parallel_size",
            "dtype",
            "weights_format",
            "kv_cache_dtype",
            "max_model_len",
            "max_num_seqs",
            "max_num_batched_tokens",
            "num_pages",
            "page_size",
            "max_image_tokens",
        )
    )
