"""Roster: who is here, in which queue, and with which row, pages and image embeddings.

All moves of a request are here, so that what it holds is taken and given up in one place; whether
and when to move is the scheduler's business.
"""

from collections.abc import Sequence

from glimt.engine.audit import audit
from glimt.engine.image_cache import ImageCache
from glimt.engine.limits import SchedulerLimits
from glimt.engine.page_watch import PageWatch
from glimt.engine.pages import PagePool
from glimt.engine.queue import RequestQueue
from glimt.engine.request import NO_ROW, Request, RequestState

_NEVER = 2**62


class Roster:
    """The unfinished requests of one engine and everything they share."""

    def __init__(self, limits: SchedulerLimits, watch: PageWatch | None = None) -> None:
        self.limits = limits
        self.pool = PagePool(
            limits.num_pages,
            limits.page_size,
            prefix_caching=limits.prefix_caching,
            watch=watch,
        )
        self.images = ImageCache(limits.image_cache_tokens)
        self.running = RequestQueue()
        self.waiting = RequestQueue()
        self._by_key: dict[tuple[int, int], Request] = {}
        self._free_rows = list(range(limits.max_num_seqs - 1, -1, -1))
        self._freed_rows: list[int] = []  # the executor does not know yet

    def __len__(self) -> int:
        return len(self._by_key)

    @property
    def num_free_rows(self) -> int:
        """So many more requests may run."""
        return len(self._free_rows)

    def find(self, key: tuple[int, int]) -> Request | None:
        """The unfinished request of this key."""
        return self._by_key.get(key)

    def all(self) -> list[Request]:
        """Every unfinished request, in the order of arrival of their keys."""
        return list(self._by_key.values())

    def enlist(self, request: Request) -> None:
        """A new request waits, at first for its grammar if it has one."""
        self._by_key[request.key] = request
        if request.state is RequestState.WAITING:
            self.waiting.add(request)

    def hits(self, request: Request) -> list[int]:
        """Known pages of a waiting request's tokens, the page of its last token left out.

        That one is always computed: its logits are what the request came for.
        """
        if not self.limits.prefix_caching or request.lacks_prompt_logprobs:
            return []
        page_size = self.limits.page_size
        num_pages = (request.num_tokens - 1) // page_size
        return self.pool.match(request.page_hash(place, page_size) for place in range(num_pages))

    def has_room(self, request: Request, hits: Sequence[int], num_kept_pages: int) -> bool:
        """Whether a waiting request could run behind these hits, and these pages stay available.

        A protected one must also be able to run to its end beside all others that are.
        """
        num_pages_for = self.limits.num_pages_for
        num_needed = num_pages_for(request.num_tokens) - len(hits) + self.pool.num_unheld(hits)
        # A page to grow for each that runs, or the next step would have to preempt.
        num_kept_pages += len(self.running)
        if num_needed + num_kept_pages > self.pool.num_available:
            return False
        if not request.is_protected:
            return True
        protected = [other for other in self.running.requests if other.is_protected]
        promised = [num_pages_for(r.max_num_tokens) for r in (request, *protected)]
        return sum(promised) <= self.limits.num_pages

    def seat(self, request: Request, hits: Sequence[int]) -> None:
        """A waiting request runs, with pages for all its tokens.

        Raises RuntimeError if there is no row or are not so many pages; ask before.
        """
        self.pool.share(hits)
        num_new_pages = self.limits.num_pages_for(request.num_tokens) - len(hits)
        new_pages = self.pool.allocate(num_new_pages)
        if new_pages is None or not self._free_rows:
            raise RuntimeError(f"request {request.key} was seated without room")
        page_size = self.limits.page_size
        num_cached = len(hits) * page_size
        next_page_end = num_cached + page_size if self.limits.prefix_caching else _NEVER
        self.waiting.remove(request)
        request.admit(self._free_rows.pop(), [*hits], new_pages, num_cached, next_page_end)
        self.running.add(request)

    def preempt(self, request: Request, *, counts: bool = True) -> None:
        """A running request gives up everything and waits."""
        self.running.remove(request)
        self._give_up(request)
        request.preempt(counts=counts)
        self.waiting.add(request)

    def dismiss(self, request: Request) -> None:
        """A request is finished and holds nothing any more."""
        if request.state is RequestState.RUNNING:
            self.running.remove(request)
            self._give_up(request)
        elif request.state is RequestState.WAITING:
            self.waiting.remove(request)
        request.finish()
        del self._by_key[request.key]

    def register_pages(self, request: Request, num_computed_tokens: int) -> None:
        """KV of a running request is computed so far: full pages become findable."""
        page_size = self.limits.page_size
        num_full = num_computed_tokens // page_size
        for place in range(request.next_page_end // page_size - 1, num_full):
            request.page_hash(place, page_size)
            if not self.pool.register(request.page_ids, place, request.page_hashes):
                request.next_page_end = _NEVER
                return
        request.next_page_end = (num_full + 1) * page_size

    def take_freed_rows(self) -> tuple[int, ...]:
        """Rows that the executor must be told to free, once."""
        freed = tuple(self._freed_rows)
        self._freed_rows.clear()
        return freed

    def check(self) -> list[str]:
        """Violations of any invariant of the engine's state; empty if all is well."""
        return audit(
            self.limits, self.pool, self.images, self.running, self.waiting, self._free_rows
        )

    def _give_up(self, request: Request) -> None:
        self.pool.release(request.page_ids)
        for image in request.held_images.values():
            self.images.release(image)
        request.held_images.clear()
        self._free_rows.append(request.row)
        self._freed_rows.append(request.row)
        request.row = NO_ROW
