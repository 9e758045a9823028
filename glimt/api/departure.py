"""Notices that a client has left, or takes nothing any more, and ends what is done for it."""

import asyncio
from collections.abc import Callable
from types import TracebackType

from starlette.types import Receive, Send

from glimt.api.errors import ClientLeft

_LOOKS = 12  # at the reader, in the time it may take nothing


class Departure:
    """Cancels the code inside `async with` when the client is gone; ClientLeft comes out of it.

    The body must have been read before: from here on the connection has only its end to tell. A
    client that takes nothing of what `send` gives it for `max_stalled_s` counts as gone.
    """

    def __init__(
        self, receive: Receive, send: Send, clock: Callable[[], float], max_stalled_s: float
    ) -> None:
        self._receive = receive
        self._send = send
        self._clock = clock
        self._max_stalled_s = max_stalled_s
        self._sending_since_s: float | None = None
        self._has_left = False

    async def __aenter__(self) -> "Departure":
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a Departure needs a task that it can cancel")
        self._task = task
        self._num_cancels = task.cancelling()
        self._watch = asyncio.create_task(self._watch_client())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._watch.cancel()
        # As asyncio.timeout does it: somebody else's cancellation goes on as it is.
        is_ours = self._has_left and self._task.uncancel() <= self._num_cancels
        if is_ours and kind is asyncio.CancelledError:
            raise ClientLeft("the client closed the connection") from error

    async def start(self, headers: list[tuple[bytes, bytes]]) -> None:
        """Send the answer's head, with status 200."""
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})

    async def send(self, body: bytes, *, is_last: bool = False) -> None:
        """Send a piece of the answer's body. The last one waits for the client like any other."""
        self._sending_since_s = self._clock()
        await self._send({"type": "http.response.body", "body": body, "more_body": not is_last})
        self._sending_since_s = None

    async def _watch_client(self) -> None:
        while not await self._is_gone():
            pass
        self._has_left = True
        self._task.cancel()

    async def _is_gone(self) -> bool:
        try:
            async with asyncio.timeout(self._max_stalled_s / _LOOKS):
                return bool((await self._receive())["type"] == "http.disconnect")
        except TimeoutError:
            since_s = self._sending_since_s
            return since_s is not None and self._clock() - since_s > self._max_stalled_s
