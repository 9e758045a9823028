"""What a server sends, made harmless for a terminal: nothing in it can steer the screen."""

import unicodedata

_REPLACEMENT = "\ufffd"
# Control characters become their pictures (ESC is ␛), so that a reader sees what was there.
_PICTURES: dict[int, str | None] = {code: chr(0x2400 + code) for code in range(0x20)}
_PICTURES |= {ord("\n"): "\n", ord("\t"): "\t", ord("\r"): None, 0x7F: "\u2421"}
_PICTURES |= dict.fromkeys(range(0x80, 0xA0), _REPLACEMENT)  # C1: one byte starts a sequence
# Embeddings, overrides and isolates show text in another order than it has.
_PICTURES |= dict.fromkeys((*range(0x202A, 0x202F), *range(0x2066, 0x206A)), _REPLACEMENT)
_PICTURES |= dict.fromkeys(range(0xD800, 0xE000), _REPLACEMENT)  # halves of pairs cannot be printed


def harmless(text: str) -> str:
    """The text without escape sequences, control characters and bidirectional overrides.

    Line feeds and tabs stay, carriage returns go. Each character is judged alone, so that a text
    may come in pieces.
    """
    return text.translate(_PICTURES)


def one_line(text: str, width: int) -> str:
    """The harmless text on one line of at most `width` columns."""
    words = " ".join(harmless(text).split())
    if columns(words) <= width:
        return words
    shown, used = [], 1
    for character in words:
        used += columns(character)
        if used > width:
            break
        shown.append(character)
    return "".join(shown) + "…"


def columns(text: str) -> int:
    """How many columns of a terminal a line takes; East Asian wide characters take two."""
    return sum(
        0 if unicodedata.combining(each) else 1 + (unicodedata.east_asian_width(each) in "WF")
        for each in text
    )
