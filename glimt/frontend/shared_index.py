"""The table of an image cache that several processes share: records in anonymous memory, one lock.

    record   FREE ──allocate──▶ TAKEN by one owner ──keep──▶ KEPT under a key, leases per owner
               └◀─────────── free, evict, or recover the owner's ◀──────┘

The records are all there is: which bytes are free follows from them, so nothing contradicts them.
A process may be killed between any two stores. Therefore a record's other fields are written
before its `state`, which is one aligned store and decides what they mean; and the lock is the
kernel's (flock), which a dead process does not hold.
"""

import contextlib
import fcntl
import mmap
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

FREE, TAKEN, KEPT = 0, 1, 2
KEY_BYTES = 32
MAX_VALUE_BYTES = 32 * 1024  # of what is remembered beside a key; memory is taken as it is touched

_HEADER_BYTES = 64  # one cache line: the clock


class Records:
    """The fields of all records, an array each, so that a search reads one of them in order."""

    def __init__(self, memory: mmap.mmap, num_slots: int, start: int) -> None:
        def field(kind: type, width: int = 1) -> NDArray[Any]:
            nonlocal start
            array: NDArray[Any] = np.frombuffer(memory, kind, num_slots * width, start)
            start += array.nbytes
            return array

        # The 8-byte fields first: all are aligned then.
        self.key = field(np.uint64, KEY_BYTES // 8).reshape(KEY_BYTES // 8, num_slots)
        self.offset = field(np.uint64)
        self.size = field(np.uint64)  # of the range, rounded up
        self.nbytes = field(np.uint64)
        self.used = field(np.uint64)  # the clock when it was last leased or released
        self.value_bytes = field(np.uint64)
        self.state = field(np.uint32)
        self.owner = field(np.uint32)  # of a TAKEN one

    @staticmethod
    def num_bytes(num_slots: int) -> int:
        """Of all fields together."""
        return num_slots * (KEY_BYTES + 5 * 8 + 2 * 4)

    def key_of(self, slot: int) -> bytes:
        """The key of a record."""
        return self.key[:, slot].tobytes()


class SharedIndex:
    """The records, mapped. `records` and `leases[slot, owner]` may be read at any time, and written
    under `locked()`."""

    def __init__(self, fd: int, num_slots: int, num_owners: int) -> None:
        """Map the anonymous file `fd`, which is given its size by whoever comes first. All who map
        it must name the same numbers; zeros are a table of free records."""
        # A description of our own: the lock would be shared with those who inherited the same.
        self._fd = os.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_CLOEXEC)
        leases_at = _HEADER_BYTES + Records.num_bytes(num_slots)
        values_at = -(-(leases_at + num_slots * num_owners * 4) // mmap.PAGESIZE) * mmap.PAGESIZE
        nbytes = values_at + num_slots * MAX_VALUE_BYTES
        with self.locked():
            if os.fstat(self._fd).st_size < nbytes:
                os.ftruncate(self._fd, nbytes)
        self._map = mmap.mmap(self._fd, nbytes)
        self._clock = np.frombuffer(self._map, np.uint64, 1, 0)
        self.records = Records(self._map, num_slots, _HEADER_BYTES)
        flat = np.frombuffer(self._map, np.uint32, num_slots * num_owners, leases_at)
        self.leases = flat.reshape(num_slots, num_owners)
        self._values_at = values_at

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Nobody else writes meanwhile."""
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._fd, fcntl.LOCK_UN)

    def tick(self) -> int:
        """The next time of the clock by which records age. Under the lock."""
        self._clock[0] += np.uint64(1)
        return int(self._clock[0])

    def find(self, key: bytes) -> int | None:
        """The slot that is KEPT under `key`."""
        first = np.frombuffer(key, np.uint64, 1)[0]
        for slot in np.flatnonzero(self.records.key[0] == first):
            if self.records.state[slot] == KEPT and self.records.key_of(int(slot)) == key:
                return int(slot)
        return None

    def write_value(self, slot: int, value: bytes) -> None:
        """Remember at most MAX_VALUE_BYTES beside a record. Under the lock."""
        start = self._values_at + slot * MAX_VALUE_BYTES
        self._map[start : start + len(value)] = value
        self.records.value_bytes[slot] = len(value)

    def read_value(self, slot: int) -> bytes:
        """What is remembered beside a record."""
        start = self._values_at + slot * MAX_VALUE_BYTES
        return bytes(self._map[start : start + int(self.records.value_bytes[slot])])

    def close(self) -> None:
        """Close the descriptor; the mapping goes with its last reader."""
        os.close(self._fd)
