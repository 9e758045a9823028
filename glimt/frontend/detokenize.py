"""Tokens to text as they come: never half a character, never a stop string.

Whatever the tokens and however they are cut into pushes, the increments put together are the text
of the whole (up to the stop string). What could still change its meaning is held back and no more:
at most three bytes of an unfinished character, and an ending that may become a stop string. Time is
linear in the text.
"""

import codecs
from collections.abc import Iterable, Sequence

import msgspec

from glimt.frontend.tokenizer import Tokenizer


class TextDelta(msgspec.Struct, frozen=True, gc=False):
    """New text; `stopped` is the stop string that ended it, and nothing follows then."""

    text: str
    stopped: str | None = None


class Detokenizer:
    """The text of one token sequence."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        skip_ids: frozenset[int] = frozenset(),
        stop: Sequence[str] = (),
        include_stop: bool = False,
    ) -> None:
        """`skip_ids` give no text. `stop`: non-empty strings, of which the first to be complete
        ends the text (the longest of those that are complete at once), and is part of it only with
        `include_stop`."""
        self._tokenizer = tokenizer
        self._skip_ids = skip_ids
        self._include_stop = include_stop
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        # The longest first, so that it wins over others that end in the same place.
        self._matchers = [_Matcher(text) for text in sorted(set(stop), key=_longest_first)]
        self._held = ""  # ends in what may become a stop string
        self._is_over = False

    def push(self, token_ids: Iterable[int], *, may_stop: bool = True) -> TextDelta:
        """The text that these tokens add for certain. After a stop string it is always empty.

        Without `may_stop` (before min_tokens) stop strings that these tokens complete are text.
        """
        token_bytes, skip_ids = self._tokenizer.token_bytes, self._skip_ids
        parts = [token_bytes(token_id) for token_id in token_ids if token_id not in skip_ids]
        text = self._decoder.decode(parts[0] if len(parts) == 1 else b"".join(parts))
        return self._add(text, may_stop)

    def finish(self, *, may_stop: bool = True) -> TextDelta:
        """The rest: what was held back; an unfinished character becomes U+FFFD."""
        delta = self._add(self._decoder.decode(b"", True), may_stop)
        rest, self._held, self._is_over = self._held, "", True
        return TextDelta(delta.text + rest, delta.stopped)

    def _add(self, text: str, may_stop: bool) -> TextDelta:
        if self._is_over or not text:
            return TextDelta("")
        if not self._matchers:
            return TextDelta(text)
        text, start = self._held + text, len(self._held)
        for position in range(start, len(text)):
            complete = [m.text for m in self._matchers if m.advance(text[position])]
            if complete and may_stop:
                self._held, self._is_over = "", True
                end = position + 1 - (0 if self._include_stop else len(complete[0]))
                return TextDelta(text[:end], complete[0])
        certain = len(text) - max(matcher.num_matched for matcher in self._matchers)
        self._held = text[certain:]
        return TextDelta(text[:certain])


class _Matcher:
    """How much of one string the text so far ends in (Knuth, Morris and Pratt)."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.num_matched = 0  # characters; less than the whole string between calls
        self._fallback = [0] * len(text)  # [i]: longest border of text[: i + 1], shorter than it
        matched = 0
        for i in range(1, len(text)):
            while matched and text[i] != text[matched]:
                matched = self._fallback[matched - 1]
            matched += text[i] == text[matched]
            self._fallback[i] = matched

    def advance(self, character: str) -> bool:
        """Take one more character; True if the text now ends in the whole string."""
        matched = self.num_matched
        while matched and self.text[matched] != character:
            matched = self._fallback[matched - 1]
        matched += self.text[matched] == character
        is_complete = matched == len(self.text)
        self.num_matched = self._fallback[-1] if is_complete else matched
        return is_complete


def _longest_first(text: str) -> tuple[int, str]:
    return -len(text), text
