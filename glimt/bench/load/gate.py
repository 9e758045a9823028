"""How many requests may be in flight: no limit, or a limit in this process."""

import asyncio
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
