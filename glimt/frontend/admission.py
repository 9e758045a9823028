"""Admission: whether there is room for more, or when it is worth another try."""

from collections.abc import Callable, Collection

from glimt.board import Board
from glimt.errors import EngineDied, Overloaded
from glimt.frontend.engine_view import EngineView
from glimt.frontend.pace import Pace

NONE_READY = "no engine is ready; one is being started"
_KV_OVERCOMMIT = 4  # prompt tokens that may wait, in sizes of the KV cache


class Admission:
    """Bounds what all servers on `board` hold together.

    `max_waiting` bounds the requests beyond those that the engines run at once.
    """

    def __init__(self, board: Board, clock: Callable[[], float], max_waiting: int) -> None:
        self._board = board
        self._max_waiting = max_waiting
        self._pace = Pace(clock)

    def count_end(self) -> None:
        """A request is over."""
        self._pace.count()

    def check(self, engines: Collection[EngineView], n: int, num_prompt_tokens: int) -> None:
        """Raise EngineDied if none of the engines takes requests, Overloaded if there is no room
        for `n` more, with prompts of so many tokens.
        """
        takers = [each for each in engines if not each.is_leaving]
        if not takers and engines:
            raise EngineDied("the engines that are left finish what they have and end")
        if not takers:
            raise EngineDied(NONE_READY)
        seats = sum(engine.info.max_num_seqs for engine in takers)
        held = self._board.num_held
        if held + n > seats + self._max_waiting:
            raise Overloaded(
                f"{held} requests run or wait, as many as this server takes; try again later",
                retry_after_s=self._seconds_for(held + n - seats),
            )
        info = takers[0].info
        limit = _KV_OVERCOMMIT * info.num_pages * info.page_size * len(takers)
        waiting = sum(self._board.waiting_tokens(engine.index) for engine in takers)
        if waiting and waiting + num_prompt_tokens > limit:
            raise Overloaded(
                f"prompts of {waiting} tokens wait, as many as this server takes; try again later",
                retry_after_s=self._seconds_for(held + n),
            )

    def _seconds_for(self, num_ends: int) -> float:
        """Until so many requests are over, of all servers."""
        return self._pace.seconds_for(num_ends // self._board.num_servers)
