"""What each server process has open, and what operators want of all: a row of numbers for each.

The rows lie in anonymous shared memory, so that limits hold for all servers together and a request
goes to the replica that has the least to do for all of them. Each server writes its own row only
(but for the pause, which any of them may begin and end), a word at a time; nobody waits for
anybody, and a server that is stopped holds nothing up. What two servers admit in the same moment
may exceed a limit by one request each.

The row of a dead server stays until engines have forgotten it; then the supervisor clears it.
"""

import mmap

_ROW_BYTES = 4096
_WORDS = _ROW_BYTES // 8
_STARTED, _PAUSED, _QUIET, _OPEN, _PREPARING, _ENGINES = range(6)
MAX_ENGINES = (_WORDS - _ENGINES) // 2


class Board:
    """All rows, and the pen for the row of one server. Without a descriptor: for one server."""

    def __init__(self, fd: int = -1, server: int = 0, num_servers: int = 1) -> None:
        """`fd`: of an anonymous file of `nbytes(num_servers)`."""
        self.num_servers = num_servers
        self._words = memoryview(mmap.mmap(fd, self.nbytes(num_servers))).cast("q")
        self._row = server * _WORDS
        self._rows = range(0, num_servers * _WORDS, _WORDS)

    @staticmethod
    def nbytes(num_servers: int) -> int:
        """Size of the file."""
        return num_servers * _ROW_BYTES

    def note_started(self) -> None:
        """This server takes requests; stays true while its successor starts."""
        self._words[self._row + _STARTED] = 1

    def note_quiet(self, wants_quiet: bool) -> None:
        """This server is about to put the engines to sleep, or done with that."""
        self._words[self._row + _QUIET] = wants_quiet

    @property
    def wants_quiet(self) -> bool:
        """A server is about to put the engines to sleep."""
        return any(self._words[row + _QUIET] for row in self._rows)

    @property
    def is_paused(self) -> bool:
        """An operator has paused all servers; outlives them."""
        return bool(self._words[_PAUSED])

    @is_paused.setter
    def is_paused(self, value: bool) -> None:
        self._words[_PAUSED] = value

    def note_requests(self, num_open: int, num_preparing: int) -> None:
        """What this server has open, and what it is preparing."""
        self._words[self._row + _OPEN] = num_open
        self._words[self._row + _PREPARING] = num_preparing

    def note_engine(self, index: int, outstanding_tokens: int, waiting_tokens: int) -> None:
        """What engine `index` still has to do for this server."""
        at = self._row + _ENGINES + 2 * index
        self._words[at] = outstanding_tokens
        self._words[at + 1] = waiting_tokens

    def clear(self, server: int) -> None:
        """That server is dead, and nothing of it runs any more."""
        row = server * _WORDS
        for at in range(row + _QUIET, row + _WORDS):
            self._words[at] = 0

    @property
    def all_started(self) -> bool:
        """Every server has taken requests once."""
        return all(self._words[row + _STARTED] for row in self._rows)

    @property
    def num_held(self) -> int:
        """Requests that all servers together have open or prepare."""
        return sum(self._words[row + _OPEN] + self._words[row + _PREPARING] for row in self._rows)

    @property
    def num_preparing_elsewhere(self) -> int:
        """Requests that the other servers prepare."""
        return sum(self._words[row + _PREPARING] for row in self._rows if row != self._row)

    def outstanding_tokens(self, index: int) -> int:
        """What engine `index` still has to do for all servers."""
        return sum(self._words[row + _ENGINES + 2 * index] for row in self._rows)

    def waiting_tokens(self, index: int) -> int:
        """Of prompts of all servers that engine `index` has given no output for."""
        return sum(self._words[row + _ENGINES + 2 * index + 1] for row in self._rows)
