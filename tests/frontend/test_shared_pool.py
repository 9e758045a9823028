"""An image cache of several servers: found by all, bounded for all, and no death breaks it."""

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from glimt.arena import SharedArena, anonymous_file
from glimt.frontend.pixel_pool import ALIGNMENT
from glimt.frontend.shared_index import MAX_VALUE_BYTES, SharedIndex
from glimt.frontend.shared_pool import SharedPool
from glimt.wire import PixelRef


class Shared:
    """One arena and its table, and servers that use them."""

    def __init__(self, num_pages: int = 16) -> None:
        self.arena = SharedArena.create(num_pages * ALIGNMENT, index=0)
        self.index_fd = anonymous_file("index")

    def server(self, owner: int) -> SharedPool[bytes]:
        return SharedPool(self.arena, self.index_fd, bytes, owner=owner, num_owners=4)


@pytest.fixture
def shared() -> Iterator[Shared]:
    made = Shared()
    yield made
    made.server(3).check()
    made.arena.close()
    os.close(made.index_fd)


def key(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()


def place(pool: SharedPool[bytes], num_pages: int = 1) -> PixelRef:
    found = pool.allocate(num_pages * ALIGNMENT)
    assert found is not None
    return found


def test_what_one_server_prepared_all_find(shared: Shared) -> None:
    one, two = shared.server(0), shared.server(1)
    written = place(one)
    shared.arena.view(written)[:4] = b"cat!"
    mine = one.keep(key("cat"), written, b"a cat")
    theirs = two.lease(key("cat"))
    assert theirs is not None
    assert (theirs.place, theirs.value) == (mine.place, b"a cat")
    assert bytes(shared.arena.view(theirs.place)[:4]) == b"cat!"
    assert two.lease(key("dog")) is None


def test_all_servers_together_have_the_bytes_of_one_arena(shared: Shared) -> None:
    one, two = shared.server(0), shared.server(1)
    held = one.keep(key("a"), place(one, 10), b"")
    assert two.allocate(7 * ALIGNMENT) is None
    two.keep(key("b"), place(two, 6), b"").release()
    assert one.num_free_bytes == two.num_free_bytes == 0
    assert one.allocate(6 * ALIGNMENT) is not None, "the other's image makes room"
    assert two.lease(key("b")) is None
    held.release()
    assert two.allocate(10 * ALIGNMENT) is not None


def test_a_range_that_any_server_leases_is_not_evicted(shared: Shared) -> None:
    one, two = shared.server(0), shared.server(1)
    mine = one.keep(key("a"), place(one, 16), b"")
    theirs = two.lease(key("a"))
    mine.release()
    assert one.allocate(ALIGNMENT) is None
    assert theirs is not None
    theirs.release()
    assert one.allocate(ALIGNMENT) is not None


def test_of_two_who_prepare_the_same_image_the_first_keeps_it(shared: Shared) -> None:
    one, two = shared.server(0), shared.server(1)
    first, second = place(one), place(two)
    mine = one.keep(key("a"), first, b"first")
    theirs = two.keep(key("a"), second, b"second")
    assert theirs.place == mine.place
    assert theirs.value == b"first"
    assert one.num_kept == 1
    assert one.num_free_bytes == 15 * ALIGNMENT


def test_a_successor_frees_what_the_dead_held_and_finds_what_it_cached(shared: Shared) -> None:
    dead, other = shared.server(0), shared.server(1)
    place(dead, 4)  # taken, and never written
    dead.keep(key("leased"), place(dead, 4), b"1")
    dead.keep(key("cached"), place(dead, 4), b"2").release()
    successor = shared.server(0)
    again = successor.lease(key("leased"))
    assert again is not None
    assert again.value == b"1"
    again.release()
    assert other.num_kept == 2
    assert other.allocate(16 * ALIGNMENT) is not None


def test_what_the_dead_held_stays_until_its_successor_comes(shared: Shared) -> None:
    """An engine may still read it."""
    dead, other = shared.server(0), shared.server(1)
    dead.keep(key("leased"), place(dead, 8), b"")
    assert other.allocate(9 * ALIGNMENT) is None
    shared.server(0)
    assert other.allocate(9 * ALIGNMENT) is not None


def test_a_server_that_dies_with_the_lock_does_not_stop_the_others(shared: Shared) -> None:
    code = (
        "import sys, signal; from glimt.frontend.shared_index import SharedIndex\n"
        "index = SharedIndex(int(sys.argv[1]), 64, 4)\n"
        "with index.locked():\n"
        "    index.records.offset[5] = 7\n"  # half a record
        "    print('locked', flush=True); signal.pause()\n"
    )
    words = [sys.executable, "-c", code, str(shared.index_fd)]
    one = shared.server(0)
    child = subprocess.Popen(words, pass_fds=[shared.index_fd], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "locked\n"
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    assert one.allocate(16 * ALIGNMENT) is not None
    one.check()


def test_servers_die_at_any_moment_and_the_cache_stays_sound() -> None:
    words = [sys.executable, "-m", "tests.support.pool_owners", "150", "20261127"]
    found = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert found.returncode == 0, found.stdout + found.stderr
    counted = json.loads(found.stdout)
    assert all(hits > 20 for hits in counted["hits"]), "servers find each other's images"
    assert counted["whole"], "something is leased or taken by a dead server"
    assert counted["kept"] > 0


def test_many_small_images_are_bounded_by_the_table(shared: Shared) -> None:
    """The table of a small arena has 64 records: the oldest makes room."""
    large = Shared(num_pages=200)
    pool = large.server(0)
    for number in range(100):
        pool.keep(key(str(number)), place(pool), b"").release()
    assert pool.num_kept == 64
    assert pool.lease(key("35")) is None
    assert pool.lease(key("36")) is not None
    pool.check()
    large.arena.close()
    os.close(large.index_fd)


def test_what_the_table_cannot_hold_is_refused(shared: Shared) -> None:
    pool = shared.server(0)
    taken = place(pool)
    with pytest.raises(ValueError, match="beside a key"):
        pool.keep(key("a"), taken, bytes(MAX_VALUE_BYTES + 1))
    with pytest.raises(ValueError, match="32 bytes"):
        pool.lease(b"short")
    pool.free(taken)
    assert pool.num_free_bytes == 16 * ALIGNMENT


def test_the_table_takes_memory_only_as_it_is_used(shared: Shared) -> None:
    index = SharedIndex(shared.index_fd, 4096, 4)
    status = os.fstat(shared.index_fd)
    assert status.st_size > 100e6
    assert status.st_blocks * 512 < 2e6
    index.close()
