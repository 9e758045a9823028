"""PagePool: sharing, eviction and the invariants of its index, against a model of its content."""

from __future__ import annotations

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from glimt.engine.pages import PagePool
from glimt.engine.prefix import page_hash, root_hash
from tests.support.spans import image_span

PAGE_SIZE = 2


def chain(tokens: tuple[int, ...], salt: bytes = b"") -> list[bytes]:
    hashes = []
    parent = root_hash(salt)
    for start in range(0, len(tokens) - PAGE_SIZE + 1, PAGE_SIZE):
        ids = np.array(tokens[start : start + PAGE_SIZE], dtype=np.int32)
        parent = page_hash(parent, ids, start)
        hashes.append(parent)
    return hashes


def hold_and_register(pool: PagePool, tokens: tuple[int, ...]) -> list[int]:
    pages = pool.allocate(-(-len(tokens) // PAGE_SIZE))
    assert pages is not None
    hashes = chain(tokens)
    for place in range(len(hashes)):
        pool.register(pages, place, hashes)
    return pages


def test_allocation_is_all_or_nothing() -> None:
    pool = PagePool(3, PAGE_SIZE)
    assert pool.allocate(4) is None
    assert pool.num_available == 3
    assert pool.allocate(3) == [0, 1, 2]
    assert pool.allocate(1) is None
    assert pool.allocate(0) == []


def test_a_released_full_page_is_found_again_by_its_content() -> None:
    pool = PagePool(4, PAGE_SIZE)
    pages = hold_and_register(pool, (1, 2, 3, 4, 5))
    pool.release(pages)
    assert pool.num_used == 0
    assert pool.match(chain((1, 2, 3, 4, 9, 9))) == pages[:2]
    assert pool.match(chain((1, 2, 9, 9))) == pages[:1]
    assert pool.match(chain((9, 9, 3, 4))) == []


def test_the_least_recently_released_leaf_is_evicted_first() -> None:
    pool = PagePool(4, PAGE_SIZE)
    old = hold_and_register(pool, (1, 1, 2, 2))
    new = hold_and_register(pool, (3, 3, 4, 4))
    pool.release(old)
    pool.release(new)
    assert pool.allocate(1) == [old[1]]
    assert pool.match(chain((1, 1, 2, 2))) == [old[0]]
    assert pool.allocate(2) == [old[0], new[1]]
    assert pool.match(chain((3, 3, 4, 4))) == [new[0]]


def test_a_shared_page_is_not_evicted_until_its_last_holder_leaves() -> None:
    pool = PagePool(1, PAGE_SIZE)
    pages = hold_and_register(pool, (1, 1))
    pool.share(pages)
    pool.release(pages)
    assert pool.allocate(1) is None
    pool.release(pages)
    assert pool.allocate(1) == pages


def test_equal_content_computed_twice_is_known_once_and_its_continuation_stays_private() -> None:
    pool = PagePool(4, PAGE_SIZE)
    first = hold_and_register(pool, (1, 1))
    second = hold_and_register(pool, (1, 1, 2, 2))
    assert pool.match(chain((1, 1, 2, 2))) == first
    pool.release(first)
    pool.release(second)
    assert pool.check() == []
    assert pool.num_available == 4


def test_forgetting_a_page_forgets_what_was_built_on_it_and_leaves_holders_alone() -> None:
    pool = PagePool(4, PAGE_SIZE)
    pages = hold_and_register(pool, (1, 1, 2, 2, 3, 3))
    pool.forget(pages[1:2])
    assert pool.match(chain((1, 1, 2, 2, 3, 3))) == pages[:1]
    assert pool.num_used == 3
    assert not pool.register(pages, 2, chain((1, 1, 2, 2, 3, 3)))
    pool.release(pages)
    assert pool.check() == []


def test_without_prefix_caching_nothing_is_ever_found() -> None:
    pool = PagePool(2, PAGE_SIZE, prefix_caching=False)
    pages = hold_and_register(pool, (1, 1, 2, 2))
    pool.release(pages)
    assert pool.match(chain((1, 1, 2, 2))) == []


def test_a_page_hash_depends_on_salt_parent_tokens_images_offsets_and_positions() -> None:
    ids = np.array([7, 7, 7, 7], dtype=np.int32)
    plain = np.broadcast_to(np.arange(4, 8, dtype=np.int32), (3, 4))
    moved = plain - 1
    one, other = root_hash(b""), root_hash(b"tenant")
    hashes = [
        page_hash(one, ids, 4),
        page_hash(other, ids, 4),
        page_hash(one, ids + 1, 4),
        page_hash(one, ids[:2], 4),
        page_hash(one, ids, 4, (image_span(1, 4, 4),)),
        page_hash(one, ids, 4, (image_span(2, 4, 4),)),
        page_hash(one, ids, 4, (image_span(1, 3, 4),)),
        page_hash(one, ids, 4, (image_span(1, 4, 2),)),
        page_hash(one, ids, 4, (image_span(1, 4, 2), image_span(1, 6, 2))),
        page_hash(one, ids, 4, (), moved),
        page_hash(one, ids, 4, (), moved - 1),
    ]
    assert len(set(hashes)) == len(hashes)
    outside = (image_span(1, 0, 4), image_span(2, 8, 4))
    assert page_hash(one, ids, 4, outside, plain) == hashes[0]


class Table:
    def __init__(self, tokens: tuple[int, ...], pages: list[int], num_computed: int) -> None:
        self.tokens = tokens
        self.pages = pages
        self.num_computed = num_computed
        self.num_registered = num_computed // PAGE_SIZE


class PoolMachine(RuleBasedStateMachine):
    """Requests come, compute, share and go; `kv` says what each physical page really holds."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = PagePool(8, PAGE_SIZE)
        self.tables: list[Table] = []
        self.kv: dict[int, tuple[int, ...]] = {}  # page -> all tokens up to its end

    @rule(tokens=st.lists(st.integers(0, 1), min_size=1, max_size=10).map(tuple))
    def admit(self, tokens: tuple[int, ...]) -> None:
        hits = self.pool.match(chain(tokens)[: (len(tokens) - 1) // PAGE_SIZE])
        for place, page in enumerate(hits):
            assert self.kv[page] == tokens[: (place + 1) * PAGE_SIZE]
        num_new = -(-len(tokens) // PAGE_SIZE) - len(hits)
        fits = num_new + self.pool.num_unheld(hits) <= self.pool.num_available
        self.pool.share(hits)
        pages = self.pool.allocate(num_new)
        assert (pages is not None) == fits
        if pages is None:
            if hits:
                self.pool.release(hits)
        else:
            self.tables.append(Table(tokens, hits + pages, len(hits) * PAGE_SIZE))

    @precondition(lambda self: self.tables)
    @rule(data=st.data(), num_tokens=st.integers(1, 4))
    def compute(self, data: st.DataObject, num_tokens: int) -> None:
        table = data.draw(st.sampled_from(self.tables))
        table.num_computed = min(table.num_computed + num_tokens, len(table.tokens))
        hashes = chain(table.tokens)
        for place in range(table.num_registered, table.num_computed // PAGE_SIZE):
            self.kv[table.pages[place]] = table.tokens[: (place + 1) * PAGE_SIZE]
            self.pool.register(table.pages, place, hashes)
        table.num_registered = table.num_computed // PAGE_SIZE

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        table = data.draw(st.sampled_from(self.tables))
        self.tables.remove(table)
        self.pool.release(table.pages)

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def forget(self, data: st.DataObject) -> None:
        table = data.draw(st.sampled_from(self.tables))
        self.pool.forget(table.pages)
        assert all(self.pool.hash_of(page) is None for page in table.pages)

    @rule()
    def reset(self) -> None:
        self.pool.reset()

    @invariant()
    def holds_its_invariants(self) -> None:
        tables = [(table.pages, table.num_registered) for table in self.tables]
        assert self.pool.check(tables) == []

    def teardown(self) -> None:
        for table in self.tables:
            self.pool.release(table.pages)
        assert self.pool.check() == []
        assert self.pool.num_used == 0


PoolMachine.TestCase.settings = settings(max_examples=80, stateful_step_count=30, deadline=None)
TestPoolMachine = PoolMachine.TestCase


def test_check_finds_what_is_broken_on_purpose() -> None:
    pool = PagePool(4, PAGE_SIZE)
    pages = hold_and_register(pool, (1, 1, 2, 2))
    assert pool.check([(pages, 2)]) == []
    assert pool.check() != []  # held by nobody that says so
    assert pool.check([(pages, 1)]) != []  # a findable page is writable
    assert pool.check([(pages, 2), (pages, 2)]) != []  # one holder too many
    assert pool.check([([pages[0], pages[0]], 2)]) != []
