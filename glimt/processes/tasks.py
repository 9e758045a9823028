"""The tasks of a process that lives until it is told to end, or until one of them fails."""

import asyncio
from collections.abc import Coroutine
from typing import Any


class Tasks:
    """Those of the loop that runs now. One that raises ends all: the supervisor starts another
    process.
    """

    def __init__(self) -> None:
        self._running: set[asyncio.Task[None]] = set()
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def have_ended(self) -> bool:
        """`end` was called, or one has raised."""
        return self._ended.done()

    def spawn(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run it beside the others."""
        task = asyncio.get_running_loop().create_task(coroutine)
        self._running.add(task)
        task.add_done_callback(self._on_task_end)
        return task

    def _on_task_end(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None and not self._ended.done():
            self._ended.set_exception(error)

    def end(self) -> None:
        """`wait` returns. Further calls do nothing."""
        if not self._ended.done():
            self._ended.set_result(None)

    async def wait(self) -> None:
        """Until `end`. Raises what the first task that failed has raised."""
        await self._ended

    async def cancel(self) -> None:
        """End those that still run, and wait until they have."""
        running = list(self._running)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
