"""Shows one answer while it comes: thoughts dimmed, text as it is, and what it took."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TextIO

from glimt.chat.conversation import Reply
from glimt.chat.screen import ERASE_LINE, RESET, Look
from glimt.chat.server import Delta, Usage
from glimt.chat.text import harmless

_PATIENCE_S = 1.0  # of a user, before something must move
_DIM = "\x1b[2m"


class AnswerView:
    """The answer to one question on one stream. Feed it deltas, then `end` it, whatever happened.

    Where the look is not a terminal's, only the answer itself is written, for programs.
    """

    def __init__(
        self, out: TextIO, look: Look, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._out = out
        self._look = look
        self._clock = clock
        self._started_s = clock()
        self._first_s: float | None = None
        self._last_s = self._started_s
        self._reasoning: list[str] = []
        self._content: list[str] = []
        self._section = ""  # "thinking" or "answer", once something was shown
        self._is_section_blank = True
        self._ends_with_newline = True
        self._is_status_shown = False
        self._num_deltas = 0
        self._finish_reason: str | None = None
        self._usage: Usage | None = None

    @property
    def reply(self) -> Reply:
        """What came so far, exactly as it came."""
        return Reply("".join(self._content), "".join(self._reasoning), self._finish_reason)

    def add(self, delta: Delta) -> None:
        """Show and remember what came."""
        self._finish_reason = delta.finish_reason or self._finish_reason
        self._usage = delta.usage or self._usage
        if not (delta.reasoning or delta.content):
            return
        self._last_s = self._clock()
        if self._first_s is None:
            self._first_s = self._last_s
        self._num_deltas += 1
        if delta.reasoning:
            self._reasoning.append(delta.reasoning)
            if self._look.is_terminal:
                self._write("thinking", delta.reasoning)
        if delta.content:
            self._content.append(delta.content)
            self._write("answer", delta.content)

    @asynccontextmanager
    async def waiting(self) -> AsyncIterator[None]:
        """Shows that time passes until the first delta."""
        if not self._look.can_erase:
            yield
            return
        ticker = asyncio.create_task(self._tick())
        try:
            yield
        finally:
            ticker.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await ticker
            self._erase_status()

    def end(self) -> None:
        """Leave the screen as text expects it: own styles off, at the beginning of a line."""
        if self._look.colours != "none" and self._section == "thinking":
            self._out.write(RESET)
        if not self._ends_with_newline:
            self._out.write("\n")
        self._ends_with_newline = True
        self._out.flush()

    def summary(self) -> str:
        """What it took, on one line: tokens, time to the first, and the pace after it."""
        usage = self._usage or Usage()
        num_tokens = usage.completion_tokens
        parts = [
            f"about {self._num_deltas} tokens" if num_tokens is None else f"{num_tokens} tokens"
        ]
        count = self._num_deltas if num_tokens is None else num_tokens
        if self._first_s is not None:
            parts.append(f"first after {self._first_s - self._started_s:.2f} s")
            seconds = self._last_s - self._first_s
            if count > 1 and seconds > 0:
                parts.append(f"{(count - 1) / seconds:.1f} tokens/s")
        if usage.prompt_tokens is not None:
            details = usage.prompt_tokens_details
            cached = details.cached_tokens if details else None
            parts.append(
                f"prompt {usage.prompt_tokens}" + (f" ({cached} cached)" if cached else "")
            )
        if self._finish_reason == "length":
            parts.append("cut at the token limit")
        elif self._finish_reason not in ("stop", None):
            parts.append(f"ended by {harmless(self._finish_reason or '')}")
        return " · ".join(parts)

    def _write(self, section: str, text: str) -> None:
        if section != self._section:
            self._begin(section)
        if self._is_section_blank:
            text = text.lstrip("\n")  # templates leave line feeds between thoughts and answer
        shown = harmless(text)
        if shown:
            self._is_section_blank = False
            self._ends_with_newline = shown.endswith("\n")
            self._out.write(shown)
            self._out.flush()

    def _begin(self, section: str) -> None:
        self._erase_status()
        has_styles = self._look.colours != "none"
        if has_styles and self._section == "thinking":
            self._out.write(RESET)
        if self._section:
            self._out.write("\n" if self._ends_with_newline else "\n\n")
        if has_styles and section == "thinking":
            self._out.write(_DIM)
        elif self._look.is_terminal and not has_styles and (section == "thinking" or self._section):
            self._out.write(f"({section})\n")
        self._section = section
        self._is_section_blank = self._ends_with_newline = True

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(_PATIENCE_S)
            if self._section:
                return
            seconds = self._clock() - self._started_s
            self._out.write(f"{ERASE_LINE}{self._look.dim(f'waiting {seconds:.0f} s')}")
            self._out.flush()
            self._is_status_shown = True

    def _erase_status(self) -> None:
        if self._is_status_shown:
            self._out.write(ERASE_LINE)
            self._is_status_shown = False
