"""PageWatch: how long known pages live, lie idle before they are evicted, and wait between uses.

A sample of the pages is watched from the moment they are taken; what was seen of a page is told
when it is evicted, as only then it is over.
"""

import random
from collections.abc import Callable, Iterable
from itertools import pairwise

from glimt.wire import PageLife

_MAX_LIVES = 1024  # that wait to be told; more of them say nothing new
_MAX_USES = 16  # of one page, the latest


class PageWatch:
    """Belongs to one pool of pages. `share` of the pages are watched, 0 to 1."""

    def __init__(
        self, share: float, clock: Callable[[], float], chance: random.Random | None = None
    ) -> None:
        self._share = share
        self._clock = clock
        self._chance = chance or random.Random()
        self._born_s: dict[int, float] = {}
        self._uses_s: dict[int, list[float]] = {}
        self._lives: list[PageLife] = []

    def take(self, page: int) -> None:
        """A page gets a new owner, and new content."""
        self._born_s.pop(page, None)
        if self._chance.random() < self._share:
            now_s = self._clock()
            self._born_s[page] = now_s
            self._uses_s[page] = [now_s]

    def use(self, pages: Iterable[int]) -> None:
        """One more request finds these pages."""
        for page in pages:
            if page in self._born_s:
                uses = self._uses_s[page]
                uses.append(self._clock())
                del uses[:-_MAX_USES]

    def evict(self, page: int) -> None:
        """What a known page held is gone."""
        born_s = self._born_s.pop(page, None)
        if born_s is None or len(self._lives) == _MAX_LIVES:
            return
        now_s, uses = self._clock(), self._uses_s[page]
        gaps = tuple(after - before for before, after in pairwise(uses))
        self._lives.append(PageLife(now_s - born_s, now_s - uses[-1], gaps))

    def told(self) -> tuple[PageLife, ...]:
        """The lives that ended since the last call."""
        lives, self._lives = tuple(self._lives), []
        return lives
