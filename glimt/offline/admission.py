"""Lets requests in as far as there is room, and makes the others wait instead of failing."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from glimt.errors import Overloaded

Started = TypeVar("Started")


class Admission:
    """Counts the requests of one event loop from their start to their end.

    A server answers 429 when queues or shared memory are full; a batch that a program hands over
    is meant to be larger than that.
    """

    def __init__(self) -> None:
        self._num_inside = 0
        self._ended = asyncio.Event()
        self._gate = asyncio.Lock()  # held by the one that waits for room; nobody overtakes it

    async def enter(self, start: Callable[[], Awaitable[Started]]) -> Started:
        """What `start` gives; after Overloaded it is tried again when others have ended.

        Whoever enters calls `leave` later. Raises what `start` raises; Overloaded only where
        nobody else holds room.
        """
        async with self._gate:
            pass
        try:
            return await self._try(start)
        except Overloaded:
            pass
        async with self._gate:
            while True:
                self._ended.clear()
                is_alone = self._num_inside == 0
                try:
                    return await self._try(start)
                except Overloaded:
                    if is_alone:
                        raise
                if self._num_inside:
                    await self._ended.wait()

    def leave(self) -> None:
        """A request has ended."""
        self._num_inside -= 1
        self._ended.set()

    async def _try(self, start: Callable[[], Awaitable[Started]]) -> Started:
        self._num_inside += 1
        try:
            return await start()
        except BaseException:
            self.leave()
            raise
