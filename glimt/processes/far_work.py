"""What servers of this machine have asked of the replicas of one other machine.

Requests get numbers of their own on the way, so the other machine sees one server that never dies:
when one of ours does, its requests are ended here, one by one. This machine also decides where
pixels lie in the memory of the other, which so needs no say in it, and what is there already is not
sent again. Knows no sockets; time is given.
"""

import itertools
from collections import defaultdict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import msgspec

from glimt.errors import EngineFailed
from glimt.frontend.arena_pool import ArenaPool
from glimt.frontend.pixel_pool import PixelLease
from glimt.wire import (
    Abort,
    EngineInbound,
    ErrorInfo,
    ImageSpan,
    Order,
    OrderDone,
    Output,
    Outputs,
    PixelRef,
    ResetCaches,
    Submit,
)

MAX_DRIFT = 2e-4  # seconds a second, of two machines' clocks

Lease = PixelLease[None]
# (where in the other machine's memory, what)
SendPixels = Callable[[int, bytes], None]
SendToReplica = Callable[[int, EngineInbound], None]
SendToServer = Callable[[int, Outputs], None]


@dataclass(slots=True)
class FarArena:
    """The pixel memory of the other machine."""

    nbytes: int
    index: int = 0


@dataclass(slots=True, eq=False)
class _Request:
    """One that has had no terminal output yet."""

    replica: int
    server: int
    request_id: int  # of that server
    leases: list[Lease] = field(default_factory=list)
    submit: Submit | None = None  # while it waits for room
    is_orphan: bool = False  # its server is dead


class FarWork:
    """Requests on their way to and from the replicas of one machine."""

    def __init__(
        self,
        arena: FarArena,
        *,
        num_servers: int,
        read: Callable[[PixelRef], bytes],
        send_pixels: SendPixels,
        send_to_replica: SendToReplica,
        send_to_server: SendToServer,
    ) -> None:
        """`read` gives the pixels at a place of this machine's memory."""
        self._pool: ArenaPool[None] = ArenaPool(arena)
        self._num_servers = num_servers
        self._read = read
        self._send_pixels = send_pixels
        self._send_to_replica = send_to_replica
        self._send_to_server = send_to_server
        self._numbers = itertools.count(1)
        self._requests: dict[int, _Request] = {}
        self._number_of: dict[tuple[int, int], int] = {}  # by server and its request_id
        self._orders: dict[int, tuple[int, int, int]] = {}  # (replica, server, order_id)
        self._waiting: deque[int] = deque()  # for room for pixels, first come, first served
        self.clock_ahead_s: float | None = None  # this machine's clock before the other's

    # ------------------------------------------------------------------------- to the replicas

    def take(self, replica: int, message: EngineInbound) -> None:
        """A message of a server for one of the replicas."""
        match message:
            case Submit():
                self._submit(replica, message)
            case Abort(server, request_id):
                self._abort(self._number_of.get((server, request_id)))
            case Order(server=server, order_id=order_id):
                number = next(self._numbers)
                self._orders[number] = (replica, server, order_id)
                order = msgspec.structs.replace(message, server=0, order_id=number)
                self._send_to_replica(replica, order)
            case ResetCaches(images=images):
                if images:
                    self._pool.forget_unleased()
                self._send_to_replica(replica, message)

    def _submit(self, replica: int, submit: Submit) -> None:
        number = next(self._numbers)
        self._requests[number] = _Request(replica, submit.server, submit.request_id, submit=submit)
        self._number_of[submit.server, submit.request_id] = number
        if submit.images:
            self._waiting.append(number)
            self._place_waiting()
        else:
            self._forward(number, ())

    def _forward(self, number: int, images: tuple[ImageSpan, ...]) -> None:
        request = self._requests[number]
        submit, request.submit = request.submit, None
        if submit is None:
            raise RuntimeError("a request is forwarded once")
        forwarded = msgspec.structs.replace(
            submit,
            server=0,
            request_id=number,
            images=images,
            arrival_s=submit.arrival_s - (self.clock_ahead_s or 0.0),
        )
        self._send_to_replica(request.replica, forwarded)

    def _abort(self, number: int | None) -> None:
        request = None if number is None else self._requests.get(number)
        if number is None or request is None:
            return
        if request.submit is None:
            self._send_to_replica(request.replica, Abort(0, number))
        else:
            self._answer(number, Output(request.request_id, (), "abort"))

    # ---------------------------------------------------------------------------------- pixels

    def _place_waiting(self) -> None:
        """Send those on their way whose pixels find room."""
        while self._waiting:
            number = self._waiting[0]
            request = self._requests[number]
            submit = request.submit
            if submit is None:
                raise RuntimeError("a request that waits was forwarded")
            images = self._place(request, submit.images)
            if images is None and not any(r.leases for r in self._requests.values()):
                self._pool.forget_unleased()  # what is cached may lie in the way
                images = self._place(request, submit.images)
                if images is None:
                    self._refuse(number)
                    continue
            if images is None:
                return
            self._waiting.popleft()
            self._forward(number, images)

    def _place(
        self, request: _Request, images: Iterable[ImageSpan]
    ) -> tuple[ImageSpan, ...] | None:
        """The same images where they lie on the other machine, sent if need be; None: no room."""
        leases: dict[bytes, Lease] = {}
        new: dict[bytes, tuple[PixelRef, PixelRef]] = {}  # (there, here)
        for span in images:
            key = span.content_hash
            if key in leases or key in new:
                continue
            if (lease := self._pool.lease(key)) is not None:
                leases[key] = lease
                continue
            there = self._allocate(span.pixels.nbytes)
            if there is None:
                for lease in leases.values():
                    lease.release()
                for there, _ in new.values():
                    self._pool.free(there)
                return None
            new[key] = there, span.pixels
        for key, (there, here) in new.items():
            leases[key] = self._pool.keep(key, there, None)
            self._send_pixels(there.offset, self._read(here))
        request.leases = list(leases.values())
        return tuple(
            msgspec.structs.replace(span, pixels=leases[span.content_hash].place) for span in images
        )

    def _allocate(self, nbytes: int) -> PixelRef | None:
        try:
            return self._pool.allocate(nbytes)
        except ValueError:  # more than there is
            return None

    def _refuse(self, number: int) -> None:
        text = "its images take more memory than this server has for them at once; send fewer"
        error = ErrorInfo(EngineFailed.code, text)
        self._answer(number, Output(self._requests[number].request_id, (), "error", error=error))

    # ----------------------------------------------------------------------- from the replicas

    def deliver(self, outputs: Outputs) -> None:
        """What a step gave, to the servers that had asked."""
        by_server: defaultdict[int, list[Output]] = defaultdict(list)
        done: defaultdict[int, list[OrderDone]] = defaultdict(list)
        for output in outputs.outputs:
            request = self._requests.get(output.request_id)
            if request is None:
                continue
            if not request.is_orphan:
                by_server[request.server].append(self._translated(output, request))
            if output.finish_reason is not None:
                self._close(output.request_id)
        for order in outputs.orders:
            _, server, order_id = self._orders.pop(order.order_id, (0, -1, 0))
            if server >= 0:
                done[server].append(msgspec.structs.replace(order, order_id=order_id))
        servers = range(self._num_servers) if outputs.stats is not None else {*by_server, *done}
        for server in servers:
            its_outputs, its_orders = tuple(by_server[server]), tuple(done[server])
            message = msgspec.structs.replace(outputs, outputs=its_outputs, orders=its_orders)
            self._send_to_server(server, message)
        self._place_waiting()

    def _translated(self, output: Output, request: _Request) -> Output:
        scheduled_s = output.scheduled_s
        if scheduled_s:
            scheduled_s += self.clock_ahead_s or 0.0
        return msgspec.structs.replace(
            output, request_id=request.request_id, scheduled_s=scheduled_s
        )

    def _answer(self, number: int, output: Output) -> None:
        """End a request that never left this machine."""
        request = self._requests[number]
        if not request.is_orphan:
            self._send_to_server(request.server, Outputs((output,), engine=request.replica))
        self._close(number)
        self._place_waiting()

    def _close(self, number: int) -> None:
        request = self._requests.pop(number)
        if self._number_of.get((request.server, request.request_id)) == number:
            del self._number_of[request.server, request.request_id]
        if request.submit is not None and request.submit.images:
            self._waiting.remove(number)
        for lease in request.leases:
            lease.release()

    # ---------------------------------------------------------------------------------- deaths

    def replica_down(self, replica: int) -> None:
        """It is gone with all that it had; who tells the servers is not here."""
        for number, request in list(self._requests.items()):
            if request.replica == replica:
                self._close(number)
        for number, (of, _, _) in list(self._orders.items()):
            if of == replica:
                del self._orders[number]
        self._place_waiting()

    def server_gone(self, server: int) -> None:
        """End all requests of a server that died; `serves` says when that is done."""
        for number, request in list(self._requests.items()):
            if request.server == server and not request.is_orphan:
                request.is_orphan = True
                del self._number_of[server, request.request_id]
                self._abort(number)
        for number, (_, its_server, _) in list(self._orders.items()):
            if its_server == server:
                del self._orders[number]

    def serves(self, server: int) -> bool:
        """Whether anything of this server is still running."""
        return any(request.server == server for request in self._requests.values())

    @property
    def num_open(self) -> int:
        """Requests without their terminal output."""
        return len(self._requests)

    def note_clock(self, there_s: float, here_s: float) -> None:
        """The other machine's clock showed `there_s` a moment before `here_s`, once a second.

        The message that was fastest is truest, but clocks drift.
        """
        ahead_s = here_s - there_s
        if self.clock_ahead_s is not None:
            ahead_s = min(ahead_s, self.clock_ahead_s + MAX_DRIFT)
        self.clock_ahead_s = ahead_s
