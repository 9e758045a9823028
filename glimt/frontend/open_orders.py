"""OpenOrders: what operators have ordered and engines have not answered yet."""

import asyncio
from collections.abc import Collection

from glimt.errors import EngineDied
from glimt.frontend.engine_view import EngineView
from glimt.frontend.generation import error_of
from glimt.wire import ErrorInfo, Order, OrderDone


class OpenOrders:
    """Each order ends with exactly one answer: the engine's own, or one made here when the engine
    is gone. `server`: whom the engines answer. Lives on the event loop.
    """

    def __init__(self, server: int) -> None:
        self._server = server
        self._open: dict[int, tuple[EngineView, asyncio.Future[OrderDone]]] = {}
        self._last_id = 0

    async def give(
        self, engines: Collection[EngineView], kind: str, *, level: int = 0
    ) -> tuple[str, ...]:
        """Have engines carry out an order; their answers. Raises what the first that failed has
        raised, EngineDied where it is gone.
        """
        answers = await asyncio.gather(*[self._send(each, kind, level) for each in engines])
        for answer in answers:
            if answer.error is not None:
                raise error_of(answer.error)
        return tuple(answer.detail for answer in answers)

    def _send(self, engine: EngineView, kind: str, level: int) -> "asyncio.Future[OrderDone]":
        self._last_id += 1
        future = asyncio.get_running_loop().create_future()
        self._open[self._last_id] = engine, future
        order = Order(server=self._server, order_id=self._last_id, kind=kind, level=level)
        if not engine.send(order):
            error = ErrorInfo(EngineDied.code, "the engine takes no orders now")
            self.settle(OrderDone(self._last_id, "", error))
        return future

    def settle(self, done: OrderDone) -> None:
        """Take in an answer. Unknown orders are ignored."""
        _, future = self._open.pop(done.order_id, (None, None))
        if future is not None and not future.done():  # whoever waited may be gone
            future.set_result(done)

    def lose(self, engine: EngineView, error: ErrorInfo) -> None:
        """This engine is gone: its orders end with the error."""
        for order_id, (ordered, _) in list(self._open.items()):
            if ordered is engine:
                self.settle(OrderDone(order_id, "", error))
