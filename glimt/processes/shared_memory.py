"""The memory that server processes share with others, and that outlives them; all anonymous."""

import os

from glimt.arena import SharedArena, anonymous_file
from glimt.board import Board
from glimt.metric_sum import Ledger


class SharedMemory:
    """Owned by the supervisor.

    Pixels lie in an arena of each server, or in one for all with a table beside it
    (`shares_images`). Several servers have a board (what each has open) and a ledger (what each
    has counted); a single one keeps both to itself, as -1 says.
    """

    def __init__(self, arena_bytes: int, num_servers: int, *, shares_images: bool) -> None:
        """`arena_bytes`: of each arena. Raises OSError if the kernel refuses the size."""
        num_arenas = 1 if shares_images else num_servers
        self._arenas = [SharedArena.create(arena_bytes, index) for index in range(num_arenas)]
        self.arena_fds = tuple(arena.fd for arena in self._arenas)
        self.index_fd = anonymous_file("glimt-images") if shares_images else -1
        self.board_fd = self.ledger_fd = -1
        self._board: Board | None = None
        if num_servers > 1:
            self.board_fd = anonymous_file("glimt-board")
            os.ftruncate(self.board_fd, Board.nbytes(num_servers))
            self._board = Board(self.board_fd, 0, num_servers)
            self.ledger_fd = anonymous_file("glimt-metrics")
            os.ftruncate(self.ledger_fd, Ledger.nbytes(num_servers))

    def arena_of(self, server: int) -> SharedArena:
        """Where that server keeps pixels."""
        return self._arenas[server % len(self._arenas)]

    def fds_of(self, server: int) -> tuple[int, ...]:
        """The descriptors that it needs."""
        fds = (self.arena_of(server).fd, self.index_fd, self.board_fd, self.ledger_fd)
        return tuple(fd for fd in fds if fd >= 0)

    def forget_server(self, server: int) -> None:
        """That server is dead, and engines have forgotten it."""
        if self._board is not None:
            self._board.clear(server)

    def close(self) -> None:
        """Close all; the memory is freed when the last process has done so."""
        for arena in self._arenas:
            arena.close()
        for fd in (self.index_fd, self.board_fd, self.ledger_fd):
            if fd >= 0:
                os.close(fd)
