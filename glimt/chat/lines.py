"""Where the user's lines come from: a terminal with editing and history, or a pipe."""

import contextlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol, TextIO

from glimt.chat.commands import complete

try:
    import readline
except ImportError:  # some builds of Python lack it: lines can be typed, not edited
    _HAS_READLINE = False
else:
    _HAS_READLINE = True

_MAX_HISTORY = 1000
_PROMPT, _CONTINUATION = "> ", "… "


class Lines(Protocol):
    """A source of questions and commands."""

    is_typed: bool  # by somebody who is there

    @property
    def was_typing(self) -> bool:
        """Whether something stood on the line that Ctrl-C has ended."""

    def read(self) -> str | None:
        """The next one, continuation lines joined by line feeds; None at the end.

        Raises KeyboardInterrupt for Ctrl-C.
        """

    def close(self) -> None:
        """Keep what has to be kept."""


def state_folder(environment: Mapping[str, str]) -> Path:
    """Where a user's programs keep what is neither configuration nor data (XDG)."""
    wanted = environment.get("XDG_STATE_HOME", "")
    base = Path(wanted) if Path(wanted).is_absolute() else Path.home() / ".local" / "state"
    return base / "glimt"


def join_continued(first: str | None, read_more: Callable[[], str | None]) -> str | None:
    """`first`, and while a line ends with a backslash, the next one below it."""
    lines: list[str] = []
    line = first
    while line is not None and line.endswith("\\"):
        lines.append(line[:-1])
        line = read_more()
    if line is None and not lines:
        return None
    return "\n".join([*lines, *([] if line is None else [line])])


class PipedLines:
    """Lines of a file or another program."""

    is_typed = False
    was_typing = False

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def read(self) -> str | None:
        """The next line."""
        return join_continued(self._line(), self._line)

    def close(self) -> None:
        """Nothing to do."""

    def _line(self) -> str | None:
        line = self._stream.readline()
        return line.rstrip("\r\n") if line else None


class TypedLines:
    """Lines typed at a terminal, with the editing of readline and a history in a file."""

    is_typed = True

    def __init__(self, history: Path, *, bold_prompt: bool) -> None:
        self._history = history
        self._num_old = 0
        # readline has to know which characters of a prompt take no room.
        self._prompt = f"\x01\x1b[1m\x02{_PROMPT}\x01\x1b[0m\x02" if bold_prompt else _PROMPT
        if not _HAS_READLINE:
            self._prompt = _PROMPT
            return
        with contextlib.suppress(OSError):
            readline.read_history_file(history)
        self._num_old = readline.get_current_history_length()
        readline.set_completer(_completion)
        readline.set_completer_delims(" \t\n")
        is_libedit = "libedit" in (readline.__doc__ or "")
        readline.parse_and_bind("bind ^I rl_complete" if is_libedit else "tab: complete")

    @property
    def was_typing(self) -> bool:
        """Whether something stood on the line that Ctrl-C has ended."""
        return _HAS_READLINE and bool(readline.get_line_buffer().strip())

    def read(self) -> str | None:
        """The next line."""
        return join_continued(_typed(self._prompt), lambda: _typed(_CONTINUATION))

    def close(self) -> None:
        """Add this session's lines to the history, which several chats may share."""
        if not _HAS_READLINE:
            return
        num_new = readline.get_current_history_length() - self._num_old
        if num_new <= 0:
            return
        with contextlib.suppress(OSError):  # a history that cannot be kept is no reason to fail
            self._history.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            os.close(os.open(self._history, os.O_CREAT | os.O_WRONLY, 0o600))
            readline.set_history_length(_MAX_HISTORY)
            readline.append_history_file(num_new, self._history)


def _typed(prompt: str) -> str | None:
    try:
        return input(prompt)
    except EOFError:
        return None


def _completion(_word: str, index: int) -> str | None:
    found = complete(readline.get_line_buffer()[: readline.get_endidx()])
    return found[index] if index < len(found) else None
