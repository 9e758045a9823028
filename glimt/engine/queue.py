"""RequestQueue: requests in the order in which they are served."""

from bisect import bisect_left, insort
from operator import attrgetter

from glimt.engine.request import Rank, Request

_rank = attrgetter("rank")


class RequestQueue:
    """Sorted by rank, best first; a rank is unique and does not change while queued."""

    def __init__(self) -> None:
        self.requests: list[Request] = []  # to read; changed only here

    def __len__(self) -> int:
        return len(self.requests)

    def add(self, request: Request) -> None:
        """Put a request in its place."""
        insort(self.requests, request, key=_rank)

    def remove(self, request: Request) -> None:
        """Take a request out. Raises ValueError if it is not here."""
        rank: Rank = request.rank
        place = bisect_left(self.requests, rank, key=_rank)
        if place == len(self.requests) or self.requests[place] is not request:
            raise ValueError(f"request {request.key} is not in this queue")
        del self.requests[place]
