"""Makes the child processes of a plan, each with the addresses and the memory that it needs."""

import socket
from pathlib import Path

import msgspec

from glimt.experts.group import ExpertGroup
from glimt.processes.children import Child
from glimt.processes.control import (
    EngineStart,
    MediaWorkerStart,
    ServerStart,
)
from glimt.processes.far_start import GateStart, MusterStart, UplinkStart
from glimt.processes.shared_memory import SharedMemory

# Else torch shows where in its code it was when a machine went with which ranks had met.
QUIET_STORES = {"TORCH_CPP_LOG_LEVEL": "ERROR"}


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What to start: made once from settings and checkpoint, used again at each restart."""

    engine: EngineStart
    server: ServerStart
    copies: range = range(1)  # numbers of the replicas of this machine
    shares_experts: bool = False  # they compute experts for each other, and die together
    gate: GateStart | None = None  # to replicas of other machines
    uplink: UplinkStart | None = None  # to the machine that has HTTP, which this one has not
    muster: MusterStart | None = None  # replicas of other machines have a part of the experts
    num_media_workers: int
    arena_bytes: int
    shares_images: bool = False  # one image cache for all servers, which outlives them
    shutdown_timeout_s: float
    engine_stall_limit_s: float = 120.0  # a step that takes longer than this is a hang
    server_silence_limit_s: float = 30.0  # its loop speaks itself, and may be held up

    @property
    def all_copies(self) -> frozenset[int]:
        """Numbers of the replicas that servers of this machine send requests to."""
        far = range(0) if self.gate is None else range(self.gate.num_here, self.gate.num_copies)
        return frozenset((*self.copies, *far))


class Starter:
    """Starts the processes of one plan, as often as they are wanted."""

    def __init__(
        self,
        plan: Plan,
        folder: Path,
        memory: SharedMemory,
        listener: socket.socket | None,
    ) -> None:
        """`folder`: of the sockets between processes. `listener`: of HTTP."""
        self._plan = plan
        self._folder = folder
        self._memory = memory
        self._listener = listener
        self._num_servers = plan.server.num_servers if plan.uplink is None else 1
        self._incarnation = 0
        self._group: ExpertGroup | None = None

    def _address(self, name: str) -> str:
        """A socket path that no earlier incarnation has used."""
        self._incarnation += 1
        return f"ipc://{self._folder}/{name}.{self._incarnation}"

    def _server_inboxes(self) -> tuple[str, ...]:
        return tuple(f"ipc://{self._folder}/server-{server}" for server in range(self._num_servers))

    def begin_group(self, group: ExpertGroup | None = None) -> None:
        """Before engines that share experts are started, all of them anew. `group`: of all
        machines, if the muster has said so.
        """
        if not self._plan.shares_experts:
            return
        copies = self._plan.copies
        inboxes = tuple(self._address(f"engine-{index}") for index in copies)
        if group is not None:
            self._group = msgspec.structs.replace(group, inboxes=inboxes)
            return
        self._group = ExpertGroup(
            first=copies.start,
            size=len(copies),
            meeting_point=str(self._folder / f"experts.{self._incarnation}"),
            inboxes=inboxes,
        )

    def engine(self, index: int) -> Child:
        """The engine of replica `index`."""
        name = f"engine-{index}"
        place = self._plan.copies.index(index)
        group = self._group
        start = msgspec.structs.replace(
            self._plan.engine,
            index=index,
            place_here=place,
            inbox=self._address(name) if group is None else group.inboxes[place],
            expert_group=group,
            server_inboxes=self._server_inboxes(),
            arena_fds=self._memory.arena_fds,
            folder=str(self._folder),
        )
        variables = QUIET_STORES if group is not None and group.meeting_port else None
        module, fds = "glimt.processes.engine", self._memory.arena_fds
        return Child(name, module, start, fds, variables=variables)

    def server(self, index: int) -> Child:
        """Server process `index`, or what stands for all servers on a machine without."""
        if self._plan.uplink is not None:
            return self._uplink(self._plan.uplink)
        if self._listener is None:
            raise ValueError("a server needs a socket to listen on")
        memory = self._memory
        start = msgspec.structs.replace(
            self._plan.server,
            index=index,
            inbox=self._server_inboxes()[index],
            copies=tuple(sorted(self._plan.all_copies)),
            media_hub=f"ipc://{self._folder}/media-{index}",
            arena_fd=memory.arena_of(index).fd,
            index_fd=memory.index_fd,
            board_fd=memory.board_fd,
            ledger_fd=memory.ledger_fd,
            socket_fd=self._listener.fileno(),
        )
        fds = (*memory.fds_of(index), self._listener.fileno())
        return Child(f"server-{index}", "glimt.processes.server", start, fds)

    def media_worker(self, number: int) -> Child:
        """Media worker `number`; they are dealt out to the servers."""
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
        return Child(f"media-{number}", "glimt.processes.media_worker", start, (arena.fd,))

    def gate(self, wishes: GateStart) -> Child:
        """What stands for the replicas of other machines."""
        start = msgspec.structs.replace(
            wishes,
            inboxes=self._address("far"),
            server_inboxes=self._server_inboxes(),
            arena_fds=self._memory.arena_fds,
        )
        return Child("gate", "glimt.processes.gate", start, self._memory.arena_fds)

    def muster(self, wishes: MusterStart) -> Child:
        """What says when the engines of all machines that share experts begin and end."""
        return Child("muster", "glimt.processes.muster", wishes)

    def _uplink(self, wishes: UplinkStart) -> Child:
        arena = self._memory.arena_of(0)
        start = msgspec.structs.replace(wishes, inbox=self._server_inboxes()[0], arena_fd=arena.fd)
        return Child("uplink", "glimt.processes.uplink", start, (arena.fd,))
