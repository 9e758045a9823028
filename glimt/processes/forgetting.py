"""Waiting until nobody works any more for a server that died."""

import asyncio
from collections.abc import Sequence

from glimt.processes.children import Child
from glimt.processes.control import ServerGone

FORGET_LIMIT_S = 30.0  # for an engine to end the requests of a server that died


class Forgetting:
    """By dead server: who may still work for it, and the news that nobody does."""

    def __init__(self) -> None:
        self._remembering: dict[int, tuple[set[str], asyncio.Event]] = {}

    async def ask(self, server: int, workers: Sequence[Child]) -> None:
        """Have `workers` end what they do for it; who does not is killed."""
        if not workers:
            return
        names, forgotten = {worker.name for worker in workers}, asyncio.Event()
        self._remembering[server] = names, forgotten
        for worker in workers:
            worker.line.send(ServerGone(server))
        try:
            await asyncio.wait_for(forgotten.wait(), FORGET_LIMIT_S)
        except TimeoutError:
            for worker in workers:
                if worker.name in names:
                    worker.kill()
        del self._remembering[server]

    def has_forgotten(self, worker: str, server: int) -> None:
        """It works no more for a server that died."""
        names, forgotten = self._remembering.get(server, (set(), None))
        names.discard(worker)
        if forgotten is not None and not names:
            forgotten.set()

    def is_dead(self, worker: str) -> None:
        """It works for nobody any more."""
        for server in list(self._remembering):
            self.has_forgotten(worker, server)
