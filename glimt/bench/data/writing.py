"""Texts of a wanted number of tokens, of real words in the scripts that users write."""

from importlib import resources

import numpy as np

from glimt.bench.data.tokens import Tokens

# Two thirds of VisionArena's conversations are English, the rest comes in 137 other languages.
_SHARES = {
    "en": 0.66,
    "zh": 0.08,
    "ru": 0.07,
    "es": 0.04,
    "de": 0.03,
    "fr": 0.03,
    "ja": 0.03,
    "ko": 0.02,
    "pt": 0.02,
    "vi": 0.01,
    "ar": 0.01,
}
_UNSPACED = {"zh", "ja"}
_FILLERS = (" a", " I", " 1", " x", "a", "1")
_MAX_REPAIRS = 64


class Writer:
    """Writes texts; without a tokenizer a word counts as one token."""

    def __init__(self, tokens: Tokens | None) -> None:
        self._tokens = tokens
        lines = resources.files(__package__).joinpath("words.txt").read_text("utf-8").splitlines()
        self._words = {
            language: words.split()
            for language, _, words in (line.partition(" ") for line in lines)
        }
        self._costs: dict[str, int] = {}

    def write(self, num_tokens: int, random: np.random.Generator) -> str:
        """A text of `num_tokens` tokens (at least one)."""
        language = str(random.choice(list(_SHARES), p=np.array(list(_SHARES.values()))))
        words, gap = self._words[language], "" if language in _UNSPACED else " "
        pieces: list[str] = []
        total = 0
        while total < num_tokens:
            for index in random.integers(len(words), size=max(8, num_tokens // 2)):
                pieces.append(gap + words[index] if pieces else words[index])
                total += self._cost(pieces[-1])
                if total >= num_tokens:
                    break
        return self._repair(pieces, num_tokens)

    def _cost(self, piece: str) -> int:
        if self._tokens is None:
            return 1
        if piece not in self._costs:
            self._costs[piece] = self._tokens.count(piece)
        return self._costs[piece]

    def _repair(self, pieces: list[str], num_tokens: int) -> str:
        """Drop words from the end and add one-token fillers until the count is right."""
        if self._tokens is None:
            return "".join(pieces)
        filler = next((each for each in _FILLERS if self._cost(each) == 1), " a")
        for _ in range(_MAX_REPAIRS):
            text = "".join(pieces)
            excess = self._tokens.count(text) - num_tokens
            if excess == 0:
                break
            if excess < 0:
                pieces += [filler] * -excess
            elif len(pieces) > 1:
                pieces.pop()
            else:
                pieces = [filler.strip() or filler]
        return "".join(pieces)
