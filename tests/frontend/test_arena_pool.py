"""Ranges of the arena: never two owners, never lost, leased ones never evicted.

The same for both kinds of pool: one server's own, and one owner's part in the shared one.
"""

import itertools
import os
from collections.abc import Iterator

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from glimt.arena import SharedArena, anonymous_file
from glimt.frontend.arena_pool import ArenaPool
from glimt.frontend.pixel_pool import ALIGNMENT, PixelLease
from glimt.frontend.shared_pool import SharedPool
from glimt.wire import PixelRef

NUM_PAGES = 16

Pool = ArenaPool[bytes] | SharedPool[bytes]


def make_pool(*, shared: bool = False) -> Pool:
    arena = SharedArena.create(NUM_PAGES * ALIGNMENT, index=3)
    index_fd = anonymous_file("index")
    try:
        if shared:
            return SharedPool(arena, index_fd, bytes, owner=1, num_owners=2)
        return ArenaPool(arena)
    finally:
        arena.close()
        os.close(index_fd)


@pytest.fixture(params=["own", "shared"])
def pool(request: pytest.FixtureRequest) -> Iterator[Pool]:
    pool = make_pool(shared=request.param == "shared")
    yield pool
    pool.check()


def key_of(name: bytes) -> bytes:
    return name.ljust(32, b"-")


def kept(pool: Pool, name: bytes, num_pages: int) -> PixelLease[bytes]:
    place = pool.allocate(num_pages * ALIGNMENT)
    assert place is not None
    return pool.keep(key_of(name), place, name)


def test_ranges_have_the_asked_length_and_do_not_touch(pool: Pool) -> None:
    places = [pool.allocate(1), pool.allocate(ALIGNMENT + 1), pool.allocate(ALIGNMENT)]
    assert places == [
        PixelRef(3, 0, 1),
        PixelRef(3, ALIGNMENT, ALIGNMENT + 1),
        PixelRef(3, 3 * ALIGNMENT, ALIGNMENT),
    ]


def test_what_can_never_fit_is_said_so(pool: Pool) -> None:
    with pytest.raises(ValueError, match="do not fit"):
        pool.allocate(NUM_PAGES * ALIGNMENT + 1)


def test_the_least_recently_used_range_is_evicted_first(pool: Pool) -> None:
    for key in (b"a", b"b", b"c", b"d"):
        kept(pool, key, 4).release()
    again = pool.lease(key_of(b"a"))
    assert again is not None
    again.release()
    assert pool.allocate(4 * ALIGNMENT) is not None
    assert pool.lease(key_of(b"b")) is None
    assert all(pool.lease(key_of(name)) is not None for name in (b"a", b"c", b"d"))


def test_leased_ranges_are_never_evicted(pool: Pool) -> None:
    held = kept(pool, b"held", 8)
    kept(pool, b"cached", 8).release()
    assert pool.allocate(9 * ALIGNMENT) is None
    assert pool.lease(key_of(b"held")) is not None
    assert held.value == b"held"


def test_a_second_release_does_nothing(pool: Pool) -> None:
    first = kept(pool, b"a", 16)
    second = pool.lease(key_of(b"a"))
    first.release()
    first.release()
    assert pool.allocate(ALIGNMENT) is None, "the second lease still holds the arena"
    assert second is not None
    second.release()
    assert pool.allocate(ALIGNMENT) is not None


def test_room_is_announced(pool: Pool) -> None:
    calls: list[int] = []
    pool.on_room = lambda: calls.append(1)
    lease = kept(pool, b"a", 16)
    assert not calls
    lease.release()
    assert len(calls) == 1
    place = pool.allocate(1)
    assert place is not None
    pool.free(place)
    assert len(calls) == 2


class Ranges(RuleBasedStateMachine):
    """Random owners against a model: a dictionary of what each holds."""

    shared = False

    def __init__(self) -> None:
        super().__init__()
        self.pool = make_pool(shared=self.shared)
        self.taken: list[PixelRef] = []
        self.leases: list[tuple[bytes, PixelLease[bytes]]] = []
        self.places: dict[bytes, PixelRef] = {}
        self.num_keys = 0

    @rule(nbytes=st.integers(1, 9 * ALIGNMENT))
    def allocate(self, nbytes: int) -> None:
        place = self.pool.allocate(nbytes)
        if place is not None:
            assert place.nbytes == nbytes
            self.taken.append(place)

    @precondition(lambda self: self.taken)
    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        self.pool.free(self.taken.pop(data.draw(st.integers(0, len(self.taken) - 1))))

    @precondition(lambda self: self.taken)
    @rule(data=st.data())
    def keep(self, data: st.DataObject) -> None:
        place = self.taken.pop(data.draw(st.integers(0, len(self.taken) - 1)))
        self.num_keys += 1
        key = key_of(b"%d" % self.num_keys)
        self.places[key] = place
        self.leases.append((key, self.pool.keep(key, place, key)))

    @precondition(lambda self: self.places)
    @rule(data=st.data())
    def lease(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.places)))
        lease = self.pool.lease(key)
        if lease is None:
            assert key not in {held for held, _ in self.leases}, "a leased range was evicted"
            del self.places[key]
        else:
            assert (lease.place, lease.value) == (self.places[key], key)
            self.leases.append((key, lease))

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        _, lease = self.leases.pop(data.draw(st.integers(0, len(self.leases) - 1)))
        lease.release()

    @rule()
    def forget(self) -> None:
        self.pool.forget_unleased()
        held = {key for key, _ in self.leases}
        assert self.pool.num_kept == len(held)
        self.places = {key: place for key, place in self.places.items() if key in held}

    @invariant()
    def the_pool_is_sound(self) -> None:
        self.pool.check()

    @invariant()
    def no_two_owners_share_a_byte(self) -> None:
        held = {self.places[key].offset: self.places[key] for key, _ in self.leases}
        owned = sorted([*self.taken, *held.values()], key=lambda place: place.offset)
        for place, following in itertools.pairwise(owned):
            assert place.offset + place.nbytes <= following.offset


class SharedRanges(Ranges):
    """The same, in the table that servers share."""

    shared = True


TestRanges = Ranges.TestCase
TestSharedRanges = SharedRanges.TestCase
