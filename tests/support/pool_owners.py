"""Server processes that share an image cache, killed at any moment: run as a program.

    python -m tests.support.pool_owners KILLS SEED

Forks owners that allocate, write, keep, lease, read and release without pause, kills one after the
other with SIGKILL, starts its successor, and at the end holds the table to its promises. Prints
what was counted as JSON. A program of its own, because a test's process has threads that forks
would leave half done.
"""

import contextlib
import hashlib
import json
import os
import random
import signal
import sys
import time
from typing import NoReturn

from glimt.arena import SharedArena, anonymous_file
from glimt.frontend.pixel_pool import ALIGNMENT, PixelLease
from glimt.frontend.shared_pool import SharedPool
from glimt.wire import PixelRef

NUM_OWNERS = 3
NUM_PAGES = 48
NUM_IMAGES = 24
STOPPED, WRONG = 0, 7


def key_of(image: int) -> bytes:
    return hashlib.sha256(b"%d" % image).digest()


def pages_of(image: int) -> int:
    return 1 + image % 5


def content(image: int) -> bytes:
    return key_of(image) * (pages_of(image) * ALIGNMENT // 32)


class Owner:
    """One server process: a random life over the shared cache."""

    def __init__(self, arena_fd: int, index_fd: int, owner: int, seed: int) -> None:
        self.arena = SharedArena(arena_fd, 0)
        self.pool = SharedPool(self.arena, index_fd, bytes, owner=owner, num_owners=NUM_OWNERS)
        self.random = random.Random(seed)
        self.leases: list[tuple[int, PixelLease[bytes]]] = []
        self.taken: list[PixelRef] = []

    def live(self, hits: SharedArena) -> NoReturn:
        """Until killed; counts hits where the parent sees them."""
        counter = hits.view(PixelRef(0, 8 * self.pool._owner, 8))
        with contextlib.suppress(Exception):
            while True:
                self.step(counter)
        os._exit(WRONG)

    def step(self, counter: memoryview) -> None:
        image = self.random.randrange(NUM_IMAGES)
        if len(self.leases) > 2 or self.random.random() < 0.3:
            self.release()
        lease = self.pool.lease(key_of(image))
        if lease is not None:
            counter[:] = (int.from_bytes(counter, "little") + 1).to_bytes(8, "little")
        else:
            place = self.pool.allocate(pages_of(image) * ALIGNMENT)
            if place is None:
                self.release()
                return
            self.arena.view(place)[:] = content(image)
            if self.random.random() < 0.1:
                self.pool.free(place)
                return
            lease = self.pool.keep(key_of(image), place, b"%d" % image)
        self.leases.append((image, lease))
        self.read(*self.random.choice(self.leases))

    def read(self, image: int, lease: PixelLease[bytes]) -> None:
        if lease.value != b"%d" % image or bytes(self.arena.view(lease.place)) != content(image):
            os._exit(WRONG)

    def release(self) -> None:
        if self.leases:
            self.leases.pop(self.random.randrange(len(self.leases)))[1].release()


def start(fds: tuple[int, int], owner: int, seed: int, hits: SharedArena) -> int:
    pid = os.fork()
    if pid == 0:
        Owner(*fds, owner, seed).live(hits)
    return pid


def main(kills: int, seed: int) -> None:
    chance = random.Random(seed)
    arena = SharedArena.create(NUM_PAGES * ALIGNMENT, 0)
    hits = SharedArena.create(4096, 0)
    fds = arena.fd, anonymous_file("index")
    pids = [start(fds, owner, chance.random().__hash__(), hits) for owner in range(NUM_OWNERS)]
    for _ in range(kills):
        time.sleep(chance.random() * 0.008)
        victim = chance.randrange(NUM_OWNERS)
        os.kill(pids[victim], signal.SIGKILL)
        _, status = os.waitpid(pids[victim], 0)
        if not os.WIFSIGNALED(status):
            sys.exit("an owner read what it had not written, or failed")
        pids[victim] = start(fds, victim, chance.random().__hash__(), hits)
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        if not os.WIFSIGNALED(status):
            sys.exit("an owner read what it had not written, or failed")
    pools = [
        SharedPool(arena, fds[1], bytes, owner=owner, num_owners=NUM_OWNERS)
        for owner in range(NUM_OWNERS)
    ]
    pools[0].check()
    still_there = pools[0].num_kept
    whole = pools[0].allocate(pools[0].nbytes)
    counts = [
        int.from_bytes(hits.view(PixelRef(0, 8 * owner, 8)), "little")
        for owner in range(NUM_OWNERS)
    ]
    print(json.dumps({"hits": counts, "kept": still_there, "whole": whole is not None}))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
