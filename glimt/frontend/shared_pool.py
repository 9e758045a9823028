"""Who owns which range of an arena that several servers share: `ArenaPool` across processes.

The same life of a range as in `arena_pool.py`, with one table for all (`shared_index.py`): an image
that one server has prepared is leased by the others, and all of them together have the bytes of
one arena. Every server is an owner with a number. When it dies, what it had taken and leased stays
until its successor of the same number comes; by then the supervisor has seen to it that nobody
reads or writes for the dead one any more. What was cached stays cached.
"""

from collections.abc import Callable
from typing import Generic, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from glimt.arena import SharedArena
from glimt.frontend.pixel_pool import ALIGNMENT, PixelLease, range_bytes
from glimt.frontend.shared_index import FREE, KEPT, KEY_BYTES, MAX_VALUE_BYTES, TAKEN, SharedIndex
from glimt.wire import PixelRef

Value = TypeVar("Value")

_BYTES_PER_SLOT = 256 * 1024  # most images are larger; who has only small ones caches fewer
_MIN_SLOTS, _MAX_SLOTS = 64, 16_384


class SharedPool(Generic[Value]):
    """The ranges of one arena, as owner number `owner` of `num_owners`. Keys have 32 bytes.

    Not thread-safe. `on_room` is called when this owner gives something back; for what others give
    back, try again every `recheck_s`.
    """

    recheck_s = 0.02

    def __init__(
        self,
        arena: SharedArena,
        index_fd: int,
        value_type: type[Value],
        *,
        owner: int = 0,
        num_owners: int = 1,
    ) -> None:
        """Take over what a dead owner of the same number has left."""
        self.index = arena.index
        self.nbytes = arena.nbytes // ALIGNMENT * ALIGNMENT
        self.on_room: Callable[[], None] = lambda: None
        self._owner = owner
        self._decoder = msgspec.msgpack.Decoder(value_type)
        num_slots = max(_MIN_SLOTS, min(_MAX_SLOTS, self.nbytes // _BYTES_PER_SLOT))
        self._table = SharedIndex(index_fd, num_slots, num_owners)
        self._records, self._leases = self._table.records, self._table.leases
        with self._table.locked():
            self._leases[:, owner] = 0
            mine = (self._records.state == TAKEN) & (self._records.owner == owner)
            self._records.state[mine] = FREE

    @property
    def num_kept(self) -> int:
        """Keys that can be leased, by any owner."""
        return int(np.count_nonzero(self._records.state == KEPT))

    @property
    def num_free_bytes(self) -> int:
        """Bytes that no range holds; cached ranges are not free but can be had."""
        used = self._records.state != FREE
        return self.nbytes - int(self._records.size[used].sum())

    def allocate(self, nbytes: int) -> PixelRef | None:
        """A range of `nbytes` >= 1, evicting cached ones as needed; None = not now.

        Raises ValueError for more than the arena has.
        """
        size = range_bytes(nbytes, self.nbytes)
        with self._table.locked():
            while True:
                offset, slot = self._first_fit(size), self._free_slot()
                if offset is not None and slot is not None:
                    break
                if not self._evict():
                    return None
            records = self._records
            self._leases[slot] = 0
            records.offset[slot], records.size[slot] = offset, size
            records.nbytes[slot], records.owner[slot] = nbytes, self._owner
            records.state[slot] = TAKEN
        return PixelRef(self.index, offset, nbytes)

    def free(self, place: PixelRef) -> None:
        """Give an allocated range back that was not kept."""
        with self._table.locked():
            self._records.state[self._taken(place)] = FREE
        self.on_room()

    def keep(self, key: bytes, place: PixelRef, value: Value) -> PixelLease[Value]:
        """The allocated range is written: remember it under `key`, leased to the caller.

        If another owner was quicker, the lease is on its range, and this one is given back. Raises
        ValueError, with the range still allocated, for a value that the table cannot hold.
        """
        _check_key(key)
        encoded = msgspec.msgpack.encode(value)
        if len(encoded) > MAX_VALUE_BYTES:
            raise ValueError(f"{len(encoded)} bytes beside a key, {MAX_VALUE_BYTES} are possible")
        with self._table.locked():
            slot = self._taken(place)
            if (other := self._table.find(key)) is not None:
                self._records.state[slot] = FREE
                return self._begin_lease(other)
            self._table.write_value(slot, encoded)
            self._records.key[:, slot] = np.frombuffer(key, np.uint64)
            self._leases[slot] = 0
            lease = self._begin_lease(slot, value)
            self._records.state[slot] = KEPT
        return lease

    def lease(self, key: bytes) -> PixelLease[Value] | None:
        """A claim on what is kept under `key`, if there is something."""
        _check_key(key)
        with self._table.locked():
            slot = self._table.find(key)
            return None if slot is None else self._begin_lease(slot)

    def forget_unleased(self) -> None:
        """Give back all that is kept and that nobody has a lease on."""
        with self._table.locked():
            self._records.state[self._unleased()] = FREE
        self.on_room()

    def check(self) -> None:
        """Raise AssertionError unless the ranges lie apart inside the arena, under one key each."""
        records = self._records
        with self._table.locked():
            used = np.flatnonzero(records.state != FREE)
            used = used[np.argsort(records.offset[used])]
            starts, sizes = (
                column[used].astype(np.int64) for column in (records.offset, records.size)
            )
            is_short = np.any(records.nbytes[used] > records.size[used])
            keys = [records.key_of(int(slot)) for slot in np.flatnonzero(records.state == KEPT)]
        ends = starts + sizes
        if np.any(starts % ALIGNMENT) or np.any(sizes % ALIGNMENT) or np.any(sizes <= 0):
            raise AssertionError("a range that is not made of whole pages")
        if np.any(ends[:-1] > starts[1:]) or np.any(ends > self.nbytes):
            raise AssertionError("ranges overlap, or lie outside the arena")
        if is_short:
            raise AssertionError("a range that is shorter than its bytes")
        if len(set(keys)) != len(keys):
            raise AssertionError("a key is kept twice")

    # ------------------------------------------------------------------------- under the lock

    def _begin_lease(self, slot: int, value: Value | None = None) -> PixelLease[Value]:
        if value is None:
            value = self._decoder.decode(self._table.read_value(slot))
        self._leases[slot, self._owner] += 1
        self._records.used[slot] = self._table.tick()
        place = PixelRef(
            self.index, int(self._records.offset[slot]), int(self._records.nbytes[slot])
        )
        return PixelLease(place, value, lambda: self._end_lease(slot))

    def _end_lease(self, slot: int) -> None:
        with self._table.locked():
            self._leases[slot, self._owner] -= 1
            self._records.used[slot] = self._table.tick()
            is_last = not self._leases[slot].any()
        if is_last:
            self.on_room()

    def _unleased(self) -> NDArray[np.intp]:
        kept = self._records.state == KEPT
        return np.flatnonzero(kept & ~self._leases.any(axis=1))

    def _evict(self) -> bool:
        """Forget what was used least recently and nobody leases. False if there is nothing."""
        slots = self._unleased()
        if not len(slots):
            return False
        victim = slots[np.argmin(self._records.used[slots])]
        self._records.state[victim] = FREE
        return True

    def _free_slot(self) -> int | None:
        free = np.flatnonzero(self._records.state == FREE)
        return int(free[0]) if len(free) else None

    def _first_fit(self, size: int) -> int | None:
        """Where the first gap of `size` bytes between the ranges begins."""
        used = self._records.state != FREE
        starts = self._records.offset[used].astype(np.int64)
        ends = starts + self._records.size[used].astype(np.int64)
        order = np.argsort(starts)
        gap_starts = np.concatenate(([0], ends[order]))
        gap_ends = np.concatenate((starts[order], [self.nbytes]))
        fitting = np.flatnonzero(gap_ends - gap_starts >= size)
        return int(gap_starts[fitting[0]]) if len(fitting) else None

    def _taken(self, place: PixelRef) -> int:
        mine = (self._records.state == TAKEN) & (self._records.owner == self._owner)
        (slot,) = np.flatnonzero(mine & (self._records.offset == place.offset))
        return int(slot)


def _check_key(key: bytes) -> None:
    if len(key) != KEY_BYTES:
        raise ValueError(f"a key has {KEY_BYTES} bytes, not {len(key)}")
