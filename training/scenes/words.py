"""Strings for pictures and for tools: words and codes, some kept for the evaluation."""

import random
import zlib

# O and 0, I and 1, l and 1 look alike in many faces, so codes do without them.
CODE_LETTERS = "ABCDEFGHJKLMNPQRSTUVWXYZ"
CODE_DIGITS = "23456789"
_VOWELS, _CONSONANTS = "aeiou", "bdfghklmnprstvz"
_PRINTED = (
    "stop open exit push pull sale taxi hotel bank park cafe milk bread fish water fire north "
    "south east west left right start end hello yes next page news open free sun moon tree "
    "house road bus train gate shop menu tea cake rice salt book game play music radio photo "
    "print copy save edit file home back help test code data time date year week day night "
    "light dark hot cold slow fast high low big small new old good best first last star gold "
    "blue red green one two three four five six seven eight nine ten max min go up down in "
    "out on off"
).split()


def is_held_out(text: str) -> bool:
    """Whether this word is kept for the evaluation: one in ten, the same ones for ever."""
    return zlib.crc32(text.lower().encode()) % 10 == 0


def printed(rng: random.Random, held_out: bool) -> str:
    """One to eight characters to print in a picture."""
    for _ in range(50):
        text = _printed(rng)
        if is_held_out(text) == held_out:
            return text
    return text


def _printed(rng: random.Random) -> str:
    kind = rng.random()
    if kind < 0.38:
        length = rng.choice((1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 7, 8))
        return "".join(rng.choice(CODE_LETTERS + CODE_DIGITS) for _ in range(length))
    if kind < 0.52:
        length = rng.choice((2, 3, 3, 4, 4, 5, 6, 7, 8))
        return "".join(rng.choice("0123456789") for _ in range(length))
    word = rng.choice(_PRINTED) if kind < 0.76 else pseudo_word(rng, 8)
    if len(word) < 3:
        return word.upper()
    return rng.choice((word.upper(), word.capitalize(), word.lower()))


def pseudo_word(rng: random.Random, longest: int) -> str:
    """A word that could be one, of three letters or more."""
    length = rng.randint(3, longest)
    start = rng.random() < 0.3
    letters = [rng.choice(_VOWELS if (i + start) % 2 else _CONSONANTS) for i in range(length)]
    return "".join(letters)
