"""Who gives out memory for pixels, as the media pool sees it: an arena of one server, or of all."""

from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from glimt.wire import PixelRef

Value = TypeVar("Value")

ALIGNMENT = 4096  # bytes; pages of memory: ranges of different owners share none


def range_bytes(nbytes: int, arena_bytes: int) -> int:
    """The size of a range for `nbytes`, in whole pages. Raises ValueError if there is none."""
    size = -(-nbytes // ALIGNMENT) * ALIGNMENT
    if not 0 < size <= arena_bytes:
        raise ValueError(f"{nbytes} bytes do not fit into an arena of {arena_bytes}")
    return size


class PixelLease(Generic[Value]):
    """A claim on a kept range: `value` is true and the bytes of `place` stay until `release()`."""

    __slots__ = ("_end", "place", "value")

    def __init__(self, place: PixelRef, value: Value, end: Callable[[], None]) -> None:
        """`end` is called once, by the first `release`."""
        self.place = place
        self.value = value
        self._end: Callable[[], None] | None = end

    def release(self) -> None:
        """Give the claim up; doing it again does nothing."""
        end, self._end = self._end, None
        if end is not None:
            end()


class PixelPool(Protocol[Value]):
    """What the media pool needs of an arena."""

    nbytes: int
    on_room: Callable[[], None]

    @property
    def recheck_s(self) -> float | None:
        """How often room may have come without `on_room` being called; None: it is always."""

    @property
    def num_kept(self) -> int:
        """Keys that can be leased."""

    @property
    def num_free_bytes(self) -> int:
        """Bytes that no range holds; cached ranges are not free but can be had."""

    def allocate(self, nbytes: int) -> PixelRef | None:
        """A range of `nbytes` >= 1, evicting cached ones as needed; None = not now.

        Raises ValueError for more than the arena has.
        """

    def free(self, place: PixelRef) -> None:
        """Give an allocated range back that was not kept."""

    def keep(self, key: bytes, place: PixelRef, value: Value) -> PixelLease[Value]:
        """The range is written: remember it under `key`, leased to the caller."""

    def lease(self, key: bytes) -> PixelLease[Value] | None:
        """A claim on what is kept under `key`, if there is something."""

    def forget_unleased(self) -> None:
        """Give back all that is kept and that nobody has a lease on."""
