"""How many requests may be in flight: no limit, a limit here, or one that processes share."""

import asyncio
import os
from collections import deque
from typing import Protocol


class Gate(Protocol):
    """Lets requests through, first come first served."""

    async def acquire(self) -> None:
        """Returns when one more request may be in flight."""

    def release(self) -> None:
        """A request has ended."""


class OpenGate:
    """No limit."""

    async def acquire(self) -> None:
        """Returns at once."""

    def release(self) -> None:
        """Nothing to do."""


class LocalGate:
    """A limit for this process alone."""

    def __init__(self, limit: int) -> None:
        self._free = asyncio.Semaphore(limit)

    async def acquire(self) -> None:
        """Waits in the order of arrival."""
        await self._free.acquire()

    def release(self) -> None:
        """Lets the next one pass."""
        self._free.release()


class SharedGate:
    """A limit for all worker processes: one byte in a pipe for each request that may start.

    (GNU make shares its job limit between processes in the same way.) A limit divided among the
    workers would not be the same: one could be full while another has nothing to do.
    """

    def __init__(self, read_fd: int, write_fd: int) -> None:
        os.set_blocking(read_fd, False)
        self._read_fd = read_fd
        self._write_fd = write_fd
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def acquire(self) -> None:
        """Waits for a byte."""
        if not self._waiting and self._take():
            return
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[None] = loop.create_future()
        self._waiting.append(waiter)
        if len(self._waiting) == 1:
            loop.add_reader(self._read_fd, self._wake)
        await waiter

    def release(self) -> None:
        """Puts a byte back."""
        os.write(self._write_fd, b"+")

    def _take(self) -> bool:
        try:
            return bool(os.read(self._read_fd, 1))
        except BlockingIOError:
            return False

    def _wake(self) -> None:
        while self._waiting and self._take():
            waiter = self._waiting.popleft()
            if waiter.cancelled():
                self.release()
            else:
                waiter.set_result(None)
        if not self._waiting:
            asyncio.get_running_loop().remove_reader(self._read_fd)
