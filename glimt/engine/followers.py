"""Followers: waiting requests that are better off after others have computed what they begin with.

Pages can be found only once they are computed, so requests that come at once and begin with the
same would each compute it. Instead the first goes ahead and leads; the others keep their places in
the queue until they find its pages. Whether someone follows is asked anew in each step, of what is
then so, and nothing is remembered but where to look first: if the leader ends, fails or is
preempted, its followers go on at once.

    leads      a running request whose next pages will be findable, if it has work on the way
    follows    whoever would begin with at least `follow_tokens` of the same, and ranks behind it

A request has finitely many better ranks than its own, and each of those that run advances in every
step or waits for images (which its followers need as well, or they would not follow), so nobody
follows for ever. Others may pass, but not into the rows and pages that followers would have had.
"""

from glimt.engine.limits import SchedulerLimits
from glimt.engine.request import Request, RequestState
from glimt.engine.roster import Roster


class Followers:
    """Who follows whom in one step, and the room that is kept for those who follow."""

    def __init__(self, limits: SchedulerLimits, roster: Roster) -> None:
        self.num_rows = 0
        self.num_pages = 0
        self._limits = limits
        self._roster = roster
        self._page_size = limits.page_size
        self._num_shared = limits.num_pages_for(limits.follow_tokens)  # pages, at least
        self._by_next_page: dict[bytes, Request] = {}
        for request in roster.running.requests:
            self.note_running(request)

    def note_running(self, request: Request) -> None:
        """A request runs: it may lead. Of several with the same next page the first makes it."""
        if self._num_shared and self._shared_end(request) <= request.num_known_tokens:
            place = request.next_page_end // self._page_size - 1
            self._by_next_page.setdefault(request.page_hash(place, self._page_size), request)

    def hits(self, request: Request) -> list[int] | None:
        """The known pages that a waiting request would begin behind; None if it follows, and so
        should not run yet: then as much room is kept for it as if it ran already.
        """
        leader, request.leader = request.leader, None
        if leader is None or not self._lead(leader, request):
            hits = self._roster.hits(request)
            leader = self._find(request, len(hits))
            if leader is None:
                return hits
        request.leader = leader
        self.num_rows += 1
        self.num_pages += self._limits.num_pages_for(request.num_tokens) + 1  # one to grow
        return None

    def _find(self, request: Request, num_hits: int) -> Request | None:
        """Whom a request follows of which so many pages can be found."""
        if not self._by_next_page or num_hits + self._num_shared > self._num_to_find(request):
            return None
        leader = self._by_next_page.get(request.page_hash(num_hits, self._page_size))
        return leader if leader is not None and self._lead(leader, request) else None

    def _lead(self, leader: Request, request: Request) -> bool:
        size = self._page_size
        end = self._shared_end(leader)
        if leader.state is not RequestState.RUNNING or end > leader.num_known_tokens:
            return False
        place, last = leader.next_page_end // size - 1, end // size - 1
        return (
            leader.rank < request.rank
            and last < self._num_to_find(request)
            # The hash of a page is one of all before it, too.
            and leader.page_hash(last, size) == request.page_hash(last, size)
            and not self._roster.pool.match((leader.page_hash(place, size),))  # by another's work
            and self._agree_on_images(leader, request)
        )

    def _shared_end(self, leader: Request) -> int:
        """Up to this token at least a follower must begin as the leader does."""
        return leader.next_page_end + (self._num_shared - 1) * self._page_size

    def _num_to_find(self, request: Request) -> int:
        """Its pages that another could have computed; see `Roster.hits`."""
        if request.lacks_prompt_logprobs:
            return 0
        return (request.num_tokens - 1) // self._page_size

    def _agree_on_images(self, leader: Request, request: Request) -> bool:
        """Neither waits for an image that the other does without: not the leader while it computes
        nothing, nor the follower, whose own images could be encoded in the meantime.
        """
        of_leader = {span.content_hash for span in leader.images}
        of_request = {span.content_hash for span in request.images}
        find = self._roster.images.find
        if any(find(content_hash) is None for content_hash in of_request - of_leader):
            return False
        if leader.num_in_flight:
            return True
        missing = of_leader - of_request
        return all((image := find(each)) is not None and image.is_ready for each in missing)
