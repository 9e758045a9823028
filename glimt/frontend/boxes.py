"""Boxes of a reply: what stands between GLM's box marks, as the reply comes.

    <|begin_of_box|>[[120,45,480,900]]<|end_of_box|>

The marks surround short answers and places in pictures, whose coordinates run from 0 to 1000 over
a picture's width and height. They are told apart by token ids.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from glimt.frontend.detokenize import Detokenizer
from glimt.frontend.tokenizer import Tokenizer

# keep: the marks are text. strip: they give no text. structured: the same, and boxes come apart.
BoxMode = Literal["keep", "strip", "structured"]

_NUMBER = r"[-+]?\d+(?:\.\d+)?"
# Models vary the brackets.
_PLACE = re.compile(rf"[\[(<{{]\s*({_NUMBER}(?:\s*,\s*{_NUMBER})+)\s*[\])>}}]")


@dataclass(frozen=True)
class BoxTokens:
    """The ids of the marks."""

    begin: int
    end: int

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> "BoxTokens | None":
        """Looked up by text; None if the tokenizer lacks one."""
        begin = tokenizer.token_id("<|begin_of_box|>")
        end = tokenizer.token_id("<|end_of_box|>")
        return None if begin is None or end is None else cls(begin, end)

    @property
    def ids(self) -> frozenset[int]:
        """Both."""
        return frozenset((self.begin, self.end))


class BoxReader:
    """Reads the boxes of one reply's content. They do not depend on how the tokens are cut."""

    def __init__(self, tokens: BoxTokens, tokenizer: Tokenizer, skip_ids: frozenset[int]) -> None:
        """`skip_ids` give no text."""
        self._tokens = tokens
        self._tokenizer = tokenizer
        self._skip_ids = skip_ids | tokens.ids
        self._text: Detokenizer | None = None  # of the open box
        self._parts: list[str] = []

    def is_plain(self, token_ids: Sequence[int]) -> bool:
        """None of these tokens has anything to do with a box."""
        return self._text is None and self._tokens.begin not in token_ids

    def read(self, token_ids: Sequence[int]) -> tuple[str, ...]:
        """The texts of the boxes that these tokens complete. A box that begins within another
        ends it; an end without a beginning is nothing."""
        boxes: list[str] = []
        for token_id in token_ids:
            if token_id == self._tokens.begin:
                boxes += self.finish()
                self._text = Detokenizer(self._tokenizer, self._skip_ids)
            elif self._text is not None:
                self._parts.append(self._text.push((token_id,)).text)
                if token_id == self._tokens.end:
                    boxes += self.finish()
        return tuple(boxes)

    def finish(self) -> tuple[str, ...]:
        """The box that is open at the reply's end."""
        if self._text is None:
            return ()
        text = "".join((*self._parts, self._text.finish().text))
        self._text, self._parts = None, []
        return (text,)


def coordinates(text: str) -> list[list[float]]:
    """The lists of numbers in a box's text: [x1, y1, x2, y2], or [x, y] of a point."""
    return [
        [float(number) if "." in number else int(number) for number in place.split(",")]
        for place in _PLACE.findall(text)
    ]
