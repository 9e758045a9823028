"""PageWatch: the lives of known pages, told when they end."""

import random

from glimt.engine.page_watch import PageWatch
from glimt.engine.pages import PagePool
from glimt.engine.scheduler import Scheduler
from glimt.wire import PageLife
from tests.engine.test_pages import chain, hold_and_register
from tests.support.engine_rig import Rig
from tests.support.workload import make_limits, make_submit


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_a_life_has_its_length_its_last_rest_and_the_waits_between_uses() -> None:
    clock = Clock()
    watch = PageWatch(1.0, clock)
    pool = PagePool(2, 2, watch=watch)
    tokens = (1, 2)
    pages = hold_and_register(pool, tokens)
    pool.release(pages)
    for wait_s in (3.0, 4.0):
        clock.now_s += wait_s
        found = pool.match(chain(tokens))
        pool.share(found)
        pool.release(found)
    clock.now_s += 5.0
    assert watch.told() == ()
    pool.release(pool.allocate(2) or [])  # takes the free page, and evicts the known one
    assert watch.told() == (PageLife(12.0, 5.0, (3.0, 4.0)),)
    assert watch.told() == ()


def test_pages_that_nobody_can_find_have_no_life_to_tell() -> None:
    watch = PageWatch(1.0, Clock())
    pool = PagePool(2, 2, watch=watch)
    for _ in range(3):
        pool.release(pool.allocate(2) or [])
    pool.reset()
    assert watch.told() == ()


def test_only_a_share_of_the_pages_is_watched() -> None:
    watch = PageWatch(0.25, Clock(), random.Random(1))
    pool = PagePool(400, 2, watch=watch)
    for start in range(400):
        pool.release(hold_and_register(pool, (start, start + 1)))
    pool.reset()
    assert 60 < len(watch.told()) < 140


def test_statistics_tell_each_life_once_and_none_where_nobody_asked() -> None:
    for share, expected in ((1.0, True), (0.0, False)):
        rig = Rig(make_limits(watched_pages=share))
        rig.add(make_submit(1, list(range(2, 40)), max_tokens=1))
        while rig.step() is not None:
            pass
        scheduler: Scheduler = rig.scheduler
        scheduler.reset_caches(prefix=True, images=False)
        assert bool(scheduler.stats().page_lives) is expected
        assert scheduler.stats().page_lives == ()
