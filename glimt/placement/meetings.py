"""Where the ranks of a copy of several machines meet: the place with the first ranks says it, and
those of the others wait for it.
"""

import threading
from collections.abc import Hashable
from typing import Any

from glimt.placement.orders import Address


class Meetings:
    """Of `num_copies`; places are threads, known by their actors."""

    def __init__(self, num_copies: int) -> None:
        self._changed = threading.Condition()
        self._points: list[tuple[Hashable, Address] | None] = [None] * num_copies
        self._joined: list[list[Any]] = [[] for _ in range(num_copies)]

    def is_at(self, copy: int, machine: Hashable) -> bool:
        """Whether it meets on that machine already."""
        with self._changed:
            point = self._points[copy]
            return point is not None and point[0] == machine

    def move(self, copy: int, machine: Hashable, address: Address) -> list[Any]:
        """It meets there from now on. Gives who was told another address, to be started again."""
        with self._changed:
            self._points[copy] = (machine, address)
            late, self._joined[copy] = self._joined[copy], []
            self._changed.notify_all()
            return late

    def join(self, copy: int, who: Any) -> Address:
        """Where to meet, once that is known."""
        with self._changed:
            while (point := self._points[copy]) is None:
                self._changed.wait()
            if who is not None:
                self._joined[copy].append(who)
            return point[1]

    def leave(self, copy: int, who: Any) -> None:
        """It has ended."""
        with self._changed:
            self._joined[copy] = [each for each in self._joined[copy] if each is not who]
