"""`Replay`: micro-batches stay on the device and are used again, so that it need not wait for data.

Drawing a scene costs a CPU more than learning from it costs a GPU. Each micro-batch may be used
`max_reuse` times, never twice in one step; fresh ones come first.
"""

import random
from collections.abc import Sequence
from typing import Generic, Protocol, TypeVar


class Sized(Protocol):
    """Whatever takes memory."""

    @property
    def nbytes(self) -> int:
        """How much."""
        ...


T = TypeVar("T", bound=Sized)


class Replay(Generic[T]):
    """At most `max_bytes` of entries, each with the number of its uses; `nbytes` they have now."""

    def __init__(self, max_bytes: int, max_reuse: int, seed: int = 0) -> None:
        if max_reuse < 1:
            raise ValueError("max_reuse must be at least 1")
        self._max_bytes = max_bytes
        self._max_reuse = max_reuse
        self._fresh: list[T] = []
        self._used: list[tuple[T, int]] = []
        self._random = random.Random(seed)
        self.nbytes = 0

    def add(self, entry: T) -> None:
        """A fresh entry. The most used, then the oldest ones make room for it."""
        self._fresh.append(entry)
        self.nbytes += entry.nbytes
        while self.nbytes > self._max_bytes and len(self) > 1:
            if self._used:
                most = max(range(len(self._used)), key=lambda index: self._used[index][1])
                gone, _ = self._used.pop(most)
            else:
                gone = self._fresh.pop(0)
            self.nbytes -= gone.nbytes

    def draw(self, count: int) -> tuple[Sequence[T], int]:
        """(`count` different entries, how many of them are fresh). Counts as a use of each.

        Raises ValueError if there are fewer: ask `len` first.
        """
        if count > len(self):
            raise ValueError(f"{count} entries wanted, {len(self)} there")
        fresh, self._fresh = self._fresh[:count], self._fresh[count:]
        again = self._random.sample(range(len(self._used)), count - len(fresh))
        drawn = [*((entry, 0) for entry in fresh), *(self._used[index] for index in again)]
        for index in sorted(again, reverse=True):
            self._used.pop(index)
        for entry, uses in drawn:
            if uses + 1 < self._max_reuse:
                self._used.append((entry, uses + 1))
            else:
                self.nbytes -= entry.nbytes
        return [entry for entry, _ in drawn], len(fresh)

    @property
    def num_fresh(self) -> int:
        """Entries that were never used."""
        return len(self._fresh)

    def __len__(self) -> int:
        """Entries that can be drawn."""
        return len(self._fresh) + len(self._used)
