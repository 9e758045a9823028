"""The terminal: what it can show, the few escape sequences used of it, and where lines go."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TextIO

from glimt.chat.text import harmless, one_line

Colours = Literal["none", "basic", "256", "true"]  # basic: too few for pictures

RESET = "\x1b[0m"
ERASE_LINE = "\r\x1b[2K"


@dataclass(frozen=True, slots=True)
class Look:
    """What may be written to one stream."""

    is_terminal: bool = False
    can_erase: bool = False  # the line of the cursor
    colours: Colours = "none"
    has_blocks: bool = False  # half blocks can be encoded

    def dim(self, text: str) -> str:
        """For what is not the answer."""
        return self._styled("2", text)

    def bold(self, text: str) -> str:
        """For what should be found again."""
        return self._styled("1", text)

    def red(self, text: str) -> str:
        """For what went wrong."""
        return self._styled("31", text)

    def _styled(self, code: str, text: str) -> str:
        return text if self.colours == "none" else f"\x1b[{code}m{text}{RESET}"


@dataclass(frozen=True)
class Screen:
    """Where answers go, where everything else goes, and what may be shown there.

    Where `look` is not a terminal's, only answers and complaints are written.
    """

    out: TextIO
    notes: TextIO
    look: Look
    with_preview: bool = True

    def say(self, text: str) -> None:
        """Something beside the answers; it may hold what a server or file says."""
        if self.look.is_terminal:
            self.notes.write(f"{self.look.dim(harmless(text))}\n")
            self.notes.flush()

    def complain(self, text: str) -> None:
        """Something went wrong; it may hold what a server or file says."""
        self.notes.write(f"{self.look.red('glimt:')} {harmless(text)}\n")
        self.notes.flush()

    def draw(self, lines: Sequence[str]) -> None:
        """Lines of our own making, with their escape sequences."""
        if self.look.has_blocks:
            self.notes.writelines(f"{line}\n" for line in lines)

    def status(self, text: str) -> None:
        """What is being waited for, on the line of the cursor; "" removes it."""
        if self.look.can_erase:
            shown = one_line(text, screen_size()[0] - 1)
            self.notes.write(f"{ERASE_LINE}{self.look.dim(shown) if shown else ''}")
            self.notes.flush()


def look_of(stream: TextIO, environment: Mapping[str, str]) -> Look:
    """What `stream` can show, by the conventions of COLORTERM, TERM and NO_COLOR."""
    if not stream.isatty():
        return Look()
    terminal = environment.get("TERM", "")
    if terminal in ("", "dumb"):
        return Look(is_terminal=True)
    if environment.get("NO_COLOR"):
        return Look(is_terminal=True, can_erase=True)
    colours: Colours = "basic"
    if environment.get("COLORTERM", "").lower() in ("truecolor", "24bit"):
        colours = "true"
    elif "256color" in terminal:
        colours = "256"
    has_blocks = (stream.encoding or "").lower().replace("-", "") == "utf8"
    return Look(True, True, colours, has_blocks)


def screen_size() -> tuple[int, int]:
    """(columns, rows) of the terminal now."""
    size = shutil.get_terminal_size()
    return max(size.columns, 20), max(size.lines, 8)
