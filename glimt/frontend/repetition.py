"""Notices an answer that has begun to go round in circles."""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RepetitionRule:
    """A pattern of `min_size` to `max_size` tokens, `min_count` times on end, is a loop."""

    min_size: int
    max_size: int
    min_count: int


class RepetitionDetector:
    """Watches one answer. Time per token is linear in the number of pattern sizes."""

    def __init__(self, rule: RepetitionRule) -> None:
        self._rule = rule
        self._tokens: list[int] = []
        self._runs = [0] * (rule.max_size + 1)  # [p]: for so long each token equals the one p ago

    def push(self, token_ids: Iterable[int]) -> int | None:
        """How many of these tokens it took until a loop was there; None if none is."""
        rule, tokens, runs = self._rule, self._tokens, self._runs
        for num_read, token_id in enumerate(token_ids, 1):
            tokens.append(token_id)
            last = len(tokens) - 1
            is_loop = False
            for size in range(rule.min_size, min(rule.max_size, last) + 1):
                if tokens[last - size] == token_id:
                    runs[size] += 1
                    is_loop = is_loop or runs[size] >= size * (rule.min_count - 1)
                else:
                    runs[size] = 0
            if is_loop:
                return num_read
        return None
