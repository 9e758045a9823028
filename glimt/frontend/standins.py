"""Stand-ins: characters that take the place of `<`, `|` and the like in everything a client wrote.

A template mixes its own text with the client's in one string. Every control token holds at least
one guarded character, and none of those is left in the client's strings while the template runs, so
a control token found in its output can only have been written by the template. Each guarded
character is replaced by one private-use character that occurs nowhere in the request; letters and
whitespace stay, so `strip`, `tojson`, `==` and the like do what they always do. What a template
sees differently is a guarded character itself: after a client's text that ends in `/nothink` it
appends its own `/nothink` all the same, and it never finds a client's `</think>` (which
`messages.py` has taken apart before, as the template would have).

Two things are left to the template's author, who is trusted: marks assembled around client text
(`'<|' + message.role + '|>'`, for which roles are checked against a fixed list) and HTML escaping,
which no longer finds the characters it escapes.
"""

from collections.abc import Iterable, Iterator
from itertools import chain, islice
from typing import Any

from glimt.errors import BadCheckpoint, InvalidRequest

_GUARDED = "<>|[]/"
_MAX_DEPTH = 100  # of nested lists and mappings; far below what the interpreter's stack holds


class StandIns:
    """The characters chosen for one request, and the way there and back."""

    def __init__(self, guarded: str, texts: Iterable[str]) -> None:
        """Choose a stand-in for each guarded character, in order the first that no text holds.

        Raises InvalidRequest if the texts hold all private-use characters, so none is free.
        """
        used: set[str] = set().union(*texts)
        free = (character for character in _private_characters() if character not in used)
        self._pairs = tuple(zip(guarded, islice(free, len(guarded)), strict=False))
        if len(self._pairs) < len(guarded):
            raise InvalidRequest("the messages use too many different private-use characters")

    def hide(self, value: Any) -> Any:
        """A copy of a JSON value whose strings, keys included, hold stand-ins."""
        if isinstance(value, str):
            for character, stand_in in self._pairs:
                value = value.replace(character, stand_in)
            return value
        if isinstance(value, dict):
            return {self.hide(key): self.hide(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.hide(item) for item in value]
        return value

    def show(self, text: str) -> str:
        """The text that a text with stand-ins stands for."""
        for character, stand_in in self._pairs:
            text = text.replace(stand_in, character)
        return text


def guarded_characters(control_tokens: Iterable[str]) -> str:
    """Characters to guard so that each control token holds at least one of them.

    Raises BadCheckpoint for a control token of whitespace only: guarding whitespace would blind
    the template's `strip`.
    """
    guarded = _GUARDED
    for token in sorted(control_tokens):
        if not token.strip():
            raise BadCheckpoint(f"the tokenizer adds a token of whitespace only, {token!r}")
        if not any(character in guarded for character in token):
            signs = [c for c in token if not c.isalnum() and not c.isspace()]
            guarded += (signs or [token.strip()])[0][0]
    return guarded


def strings_in(value: Any, depth: int = 0) -> Iterator[str]:
    """All strings of a JSON value, keys included. Raises InvalidRequest if nested too deep."""
    if depth > _MAX_DEPTH:
        raise InvalidRequest(f"the messages or tools are nested more than {_MAX_DEPTH} levels deep")
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from strings_in(item, depth + 1)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from strings_in(item, depth + 1)


def _private_characters() -> Iterator[str]:
    """Unicode's three private-use areas."""
    areas = (range(0xE000, 0xF900), range(0xF0000, 0xFFFFE), range(0x100000, 0x10FFFE))
    return map(chr, chain(*areas))
