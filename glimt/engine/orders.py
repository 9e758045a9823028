"""OrderDesk: what operators have an engine do between its steps: sleep, wake, record, count.

    Order ──put──▶ waiting ──turn (of the loop)──▶ begun ──▶ done ──turn──▶ OrderDone

One at a time, in the order they came. What takes long happens in a thread, so that the loop goes
on answering; a profiler is started and stopped in the loop's own thread, which it watches.
"""

import logging
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol, TypeVar

from glimt.errors import EngineFailed, GlimtError, Unsupported
from glimt.wire import ErrorInfo, Order, OrderDone

Result = TypeVar("Result")

log = logging.getLogger(__name__)


class Machine(Protocol):
    """What carries plans out, as far as it can do more than that. Everything may raise GlimtError
    and then leaves things as they were."""

    @property
    def sleep_level(self) -> int:
        """0 awake, 1 without KV cache and with the weights in host memory, 2 without weights."""
        ...

    @property
    def is_profiling(self) -> bool:
        """Between `start_profile` and `stop_profile`."""
        ...

    def sleep(self, level: int) -> None:
        """Give memory back; no plan may be launched until `wake`."""
        ...

    def wake(self) -> None:
        """Take memory again. Of what it computed before nothing is known."""
        ...

    def start_profile(self) -> str:
        """Record from now on; gives the folder for the recording."""
        ...

    def stop_profile(self) -> Callable[[], str]:
        """Record no more; gives what writes the recording and tells its file."""
        ...

    def expert_load(self) -> str:
        """How often tokens chose each expert since the start, as JSON of `ExpertLoad`."""
        ...


class OrderDesk:
    """Belongs to the loop's thread. Without a machine every order is refused."""

    def __init__(self, machine: Machine | None) -> None:
        self._machine = machine
        self._waiting: deque[Order] = deque()
        self._begun: tuple[Order, Future[str]] | None = None
        self._thread: ThreadPoolExecutor | None = None

    @property
    def sleep_level(self) -> int:
        """The machine's; 0 without one."""
        return 0 if self._machine is None else self._machine.sleep_level

    @property
    def is_profiling(self) -> bool:
        """The machine records a profile."""
        return self._machine is not None and self._machine.is_profiling

    @property
    def is_busy(self) -> bool:
        """An order waits or is being carried out: `turn` will have something to do."""
        return self._begun is not None or bool(self._waiting)

    @property
    def is_awake(self) -> bool:
        """Plans may be launched: it neither sleeps nor is on its way there or back."""
        changes = self._begun is not None and self._begun[0].kind in ("sleep", "wake")
        return self.sleep_level == 0 and not changes

    @property
    def wants_quiet(self) -> bool:
        """The next order to begin is one to sleep: requests must have ended by then."""
        return self._begun is None and bool(self._waiting) and self._waiting[0].kind == "sleep"

    def put(self, order: Order) -> None:
        """Have an order carried out in its turn."""
        self._waiting.append(order)

    def turn(self) -> list[tuple[int, OrderDone]]:
        """Begin the next order, if none is under way; (server, answer) of one that is done."""
        if self._begun is None and self._waiting:
            order = self._waiting.popleft()
            self._begun = order, self._begin(order)
        if self._begun is None or not self._begun[1].done():
            return []
        (order, future), self._begun = self._begun, None
        return [(order.server, _answer(order, future))]

    def close(self) -> None:
        """Wait for the order under way; those that wait are dropped."""
        self._waiting.clear()
        if self._thread is not None:
            self._thread.shutdown()

    def _begin(self, order: Order) -> "Future[str]":
        machine = self._machine
        if machine is None:
            return _done(_refuse)
        match order.kind:
            case "sleep":
                return self._in_thread(lambda: _quietly(lambda: machine.sleep(order.level)))
            case "wake":
                return self._in_thread(lambda: _quietly(machine.wake))
            case "start_profile":
                return _done(machine.start_profile)
            case "stop_profile":
                stopped = _done(machine.stop_profile)
                if stopped.exception() is None:
                    return self._in_thread(stopped.result())
                return _done(lambda: stopped.result()())
            case "expert_load":
                return _done(machine.expert_load)
            case _:
                return _done(_refuse)

    def _in_thread(self, work: Callable[[], str]) -> "Future[str]":
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="orders")
        return self._thread.submit(work)


def _refuse() -> str:
    raise Unsupported("this engine can do nothing but answer requests")


def _quietly(work: Callable[[], None]) -> str:
    work()
    return ""


def _done(work: Callable[[], Result]) -> "Future[Result]":
    """A future of what is done at once."""
    future: Future[Result] = Future()
    try:
        future.set_result(work())
    except Exception as error:
        future.set_exception(error)
    return future


def _answer(order: Order, future: "Future[str]") -> OrderDone:
    error = future.exception()
    if error is None:
        return OrderDone(order.order_id, future.result())
    if isinstance(error, GlimtError):
        return OrderDone(order.order_id, "", ErrorInfo(error.code, error.message))
    log.error("The order to %s failed", order.kind, exc_info=error)
    text = f"The engine could not {order.kind.replace('_', ' a ')}; its log has more."
    return OrderDone(order.order_id, "", ErrorInfo(EngineFailed.code, text))
