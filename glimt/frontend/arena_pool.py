"""Who owns which range of a shared arena: leased by requests, cached after them, or free.

    allocate ──▶ taken ──keep──▶ kept under a key ──lease──▶ leased ──last release──▶ cached
                   └──free──▶ free ◀────────────── evicted, least recently used first ──┘

First fit over the free ranges, which are merged with their neighbours when they come back. A
range that is leased is never moved or evicted: another process may be reading it.
"""

import bisect
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from glimt.frontend.pixel_pool import ALIGNMENT, PixelLease, range_bytes
from glimt.wire import PixelRef

Value = TypeVar("Value")


class Extent(Protocol):
    """Bytes that can be given out: an arena, or what is known of one elsewhere."""

    index: int
    nbytes: int


@dataclass(slots=True, eq=False)
class _Kept(Generic[Value]):
    place: PixelRef
    value: Value
    num_leases: int = 0


class ArenaPool(Generic[Value]):
    """The ranges of one arena. Keys are unique; `Value` is what the owner wants to remember.

    Not thread-safe. `on_room` is called whenever an allocation may succeed that failed before.
    """

    recheck_s = None

    def __init__(self, arena: Extent) -> None:
        self.index = arena.index
        self.nbytes = arena.nbytes // ALIGNMENT * ALIGNMENT
        self.on_room: Callable[[], None] = lambda: None
        self._free: list[tuple[int, int]] = [(0, self.nbytes)]  # (offset, size), ascending
        self._taken: dict[int, int] = {}  # offset -> size, neither free nor kept
        self._kept: dict[bytes, _Kept[Value]] = {}
        self._unleased: OrderedDict[bytes, None] = OrderedDict()  # least recently used first

    @property
    def num_kept(self) -> int:
        """Keys that can be leased."""
        return len(self._kept)

    @property
    def num_free_bytes(self) -> int:
        """Bytes that no range holds; cached ranges are not free but can be had."""
        return sum(size for _, size in self._free)

    def allocate(self, nbytes: int) -> PixelRef | None:
        """A range of `nbytes` >= 1, evicting cached ones as needed; None = not now.

        Raises ValueError for more than the arena has.
        """
        size = range_bytes(nbytes, self.nbytes)
        while (place := self._first_fit(size)) is None:
            if not self._unleased:
                return None
            self._evict()
        offset, room = self._free[place]
        if room == size:
            del self._free[place]
        else:
            self._free[place] = (offset + size, room - size)
        self._taken[offset] = size
        return PixelRef(self.index, offset, nbytes)

    def free(self, place: PixelRef) -> None:
        """Give an allocated range back that was not kept."""
        self._give_back(place.offset, self._taken.pop(place.offset))
        self.on_room()

    def keep(self, key: bytes, place: PixelRef, value: Value) -> PixelLease[Value]:
        """The allocated range is written: remember it under a new `key`, leased to the caller."""
        if key in self._kept:
            raise ValueError("the key is in use")
        del self._taken[place.offset]
        self._kept[key] = _Kept(place, value)
        self._unleased[key] = None
        return self._begin_lease(key)

    def lease(self, key: bytes) -> PixelLease[Value] | None:
        """A claim on what is kept under `key`, if there is something."""
        return self._begin_lease(key) if key in self._kept else None

    def forget_unleased(self) -> None:
        """Give back all that is kept and that nobody has a lease on."""
        while self._unleased:
            self._evict()
        self.on_room()

    def check(self) -> None:
        """Raise AssertionError unless the ranges tile the arena and the counts are right."""
        spans = [(offset, size, True) for offset, size in self._free]
        spans += [(offset, size, False) for offset, size in self._taken.items()]
        for kept in self._kept.values():
            spans.append((kept.place.offset, range_bytes(kept.place.nbytes, self.nbytes), False))
        end, was_free = 0, False
        for offset, size, is_free in sorted(spans):
            if offset != end or size <= 0 or offset % ALIGNMENT or (is_free and was_free):
                raise AssertionError(f"a gap, an overlap or an unmerged range at {offset}")
            end, was_free = offset + size, is_free
        if end != self.nbytes:
            raise AssertionError(f"the ranges end at {end} of {self.nbytes}")
        unleased = {key for key, kept in self._kept.items() if kept.num_leases == 0}
        if unleased != set(self._unleased) or self._free != sorted(self._free):
            raise AssertionError("the list of evictable or free ranges is wrong")

    def _evict(self) -> None:
        key, _ = self._unleased.popitem(last=False)
        victim = self._kept.pop(key)
        self._give_back(victim.place.offset, range_bytes(victim.place.nbytes, self.nbytes))

    def _begin_lease(self, key: bytes) -> PixelLease[Value]:
        kept = self._kept[key]
        kept.num_leases += 1
        self._unleased.pop(key, None)
        return PixelLease(kept.place, kept.value, lambda: self._end_lease(key))

    def _end_lease(self, key: bytes) -> None:
        kept = self._kept[key]
        kept.num_leases -= 1
        if kept.num_leases == 0:
            self._unleased[key] = None
            self.on_room()

    def _first_fit(self, size: int) -> int | None:
        for place, (_, room) in enumerate(self._free):
            if room >= size:
                return place
        return None

    def _give_back(self, offset: int, size: int) -> None:
        place = bisect.bisect_left(self._free, (offset, 0))
        if place < len(self._free) and self._free[place][0] == offset + size:
            size += self._free.pop(place)[1]
        if place and sum(self._free[place - 1]) == offset:
            before, before_size = self._free.pop(place - 1)
            offset, size, place = before, before_size + size, place - 1
        self._free.insert(place, (offset, size))
