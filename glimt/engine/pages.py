"""PagePool: who holds which page of KV memory, and which full pages can be found again.

A page is in exactly one of three states:

    free      in no table, content unknown
    held      in the page table of one or more requests
    cached    held by nobody, but full, immutable and known by its hash: found again, or evicted

A held page may be known by its hash too; only then may a second request hold it. Hashes form
chains (`prefix.py`). A page is registered only when its parent in the chain is the very page
before it in the same table, so whoever holds a page holds all its ancestors: a cached page has
no held descendant, and the least recently released cached page is always a leaf.

Physical content is the executor's business. Steps run in order on the device, so a page may be
given to a new owner while the last step of the old one still runs.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence

from glimt.engine.page_watch import PageWatch

_NO_PAGE = -1


class PagePool:
    """Page allocation, sharing, prefix index, eviction. All methods take constant time a page."""

    def __init__(
        self,
        num_pages: int,
        page_size: int,
        *,
        prefix_caching: bool = True,
        watch: PageWatch | None = None,
    ) -> None:
        self.num_pages = num_pages
        self.page_size = page_size
        self.prefix_caching = prefix_caching
        self._watch = watch
        self._free = list(range(num_pages - 1, -1, -1))  # a stack: low numbers first
        self._num_holders = [0] * num_pages
        self._cached: OrderedDict[int, None] = OrderedDict()  # least recently released first
        self._index: dict[bytes, int] = {}  # parents always before their children
        self._hashes: list[bytes | None] = [None] * num_pages
        self._parents = [_NO_PAGE] * num_pages

    @property
    def num_available(self) -> int:
        """Pages that `allocate` could give: free, or cached and evictable."""
        return len(self._free) + len(self._cached)

    @property
    def num_used(self) -> int:
        """Pages held by requests."""
        return self.num_pages - self.num_available

    def allocate(self, num_pages: int) -> list[int] | None:
        """`num_pages` private pages, or None if there are not so many (then nothing changes)."""
        if num_pages > self.num_available:
            return None
        pages = []
        for _ in range(num_pages):
            page = self._free.pop() if self._free else self._evict()
            self._num_holders[page] = 1
            if self._watch is not None:
                self._watch.take(page)
            pages.append(page)
        return pages

    def match(self, hashes: Iterable[bytes]) -> list[int]:
        """The pages of the longest known prefix of a hash chain, not yet held."""
        pages: list[int] = []
        for page_hash in hashes:
            page = self._index.get(page_hash)
            if page is None:
                break
            pages.append(page)
        return pages

    def num_unheld(self, pages: Iterable[int]) -> int:
        """How many of `pages` nobody holds: sharing these makes fewer pages available."""
        return sum(self._num_holders[page] == 0 for page in pages)

    def share(self, pages: Sequence[int]) -> None:
        """One more request holds `pages`, as `match` gave them."""
        if self._watch is not None:
            self._watch.use(pages)
        for page in pages:
            if self._num_holders[page] == 0:
                del self._cached[page]
            self._num_holders[page] += 1

    def release(self, pages: Sequence[int]) -> None:
        """A request gives up its whole table; pages that nobody holds become cached or free."""
        for page in reversed(pages):  # leaves first: this keeps the order of eviction leaf-first
            self._num_holders[page] -= 1
            if self._num_holders[page] == 0:
                if self._hashes[page] is None:
                    self._free.append(page)
                else:
                    self._cached[page] = None

    def register(self, table: Sequence[int], place: int, hashes: Sequence[bytes]) -> bool:
        """Make page number `place` of a table findable; it is full and its KV is computed.

        False if it is not: the cache is off, or the table does not hold the registered pages of
        its prefix (another request computed the same at the same time, or they were forgotten).
        """
        if not self.prefix_caching:
            return False
        page, page_hash = table[place], hashes[place]
        parent = table[place - 1] if place else _NO_PAGE
        if place and self._index.get(hashes[place - 1]) != parent:
            return False
        if page_hash in self._index:
            return False
        self._index[page_hash] = page
        self._hashes[page] = page_hash
        self._parents[page] = parent
        return True

    def forget(self, pages: Iterable[int]) -> None:
        """Make `pages` and all that follow them in a chain unfindable; holders keep them."""
        doomed = {page for page in pages if self._hashes[page] is not None}
        if not doomed:
            return
        for page in self._index.values():  # in order: parents before children
            if self._parents[page] in doomed:
                doomed.add(page)
        for page in doomed:
            self._unregister(page)
            if page in self._cached:
                del self._cached[page]
                self._free.append(page)

    def reset(self) -> None:
        """Forget every page that nobody holds."""
        while self._cached:
            self._free.append(self._evict())

    def hash_of(self, page: int) -> bytes | None:
        """The hash that `page` is known by, None if it cannot be found."""
        return self._hashes[page]

    def check(self, tables: Sequence[tuple[Sequence[int], int]] = ()) -> list[str]:
        """Violations of the pool's invariants; empty if all is well.

        `tables`: (pages, number of full computed pages) of every request that holds pages.
        """
        return [
            *self._check_counts(tables),
            *self._check_index(),
            *self._check_writers(tables),
        ]

    def _evict(self) -> int:
        page, _ = self._cached.popitem(last=False)
        self._unregister(page)
        if self._watch is not None:
            self._watch.evict(page)
        return page

    def _unregister(self, page: int) -> None:
        page_hash = self._hashes[page]
        if page_hash is not None:
            del self._index[page_hash]
        self._hashes[page] = None
        self._parents[page] = _NO_PAGE

    def _check_counts(self, tables: Sequence[tuple[Sequence[int], int]]) -> list[str]:
        found: list[str] = []
        free, cached = set(self._free), set(self._cached)
        held = {page for page in range(self.num_pages) if self._num_holders[page] > 0}
        if len(free) != len(self._free) or free & cached or free & held or cached & held:
            found.append("a page is in two states")
        if len(free) + len(cached) + len(held) != self.num_pages:
            found.append(f"{len(free)} free + {len(cached)} cached + {len(held)} held pages")
        holders = [0] * self.num_pages
        for pages, _ in tables:
            if len(set(pages)) != len(pages):
                found.append("a table holds a page twice")
            for page in pages:
                holders[page] += 1
        if holders != self._num_holders:
            wrong = [p for p in range(self.num_pages) if holders[p] != self._num_holders[p]]
            found.append(f"holders of pages {wrong} are miscounted")
        found += [f"free page {page} has a hash" for page in free if self._hashes[page]]
        found += [f"cached page {page} has no hash" for page in cached if not self._hashes[page]]
        return found

    def _check_index(self) -> list[str]:
        found: list[str] = []
        known = {page: page_hash for page, page_hash in enumerate(self._hashes) if page_hash}
        if {page_hash: page for page, page_hash in known.items()} != self._index:
            found.append("index and pages disagree")
        seen: set[int] = set()
        for page in self._index.values():
            parent = self._parents[page]
            if parent != _NO_PAGE and parent not in seen:
                found.append(f"page {page} is indexed before its parent {parent}")
            if parent != _NO_PAGE and self._num_holders[parent] < self._num_holders[page]:
                found.append(f"page {page} has more holders than its parent {parent}")
            seen.add(page)
        gone: set[int] = set()
        for page in self._cached:  # in order of eviction
            if self._parents[page] in gone:
                found.append(f"page {page} would be evicted after its parent")
            gone.add(page)
        return found

    def _check_writers(self, tables: Sequence[tuple[Sequence[int], int]]) -> list[str]:
        found: list[str] = []
        for pages, num_full in tables:
            for page in pages[num_full:]:
                if self._num_holders[page] != 1:
                    found.append(f"writable page {page} is shared")
                if self._hashes[page] is not None:
                    found.append(f"writable page {page} is in the index")
        return found
