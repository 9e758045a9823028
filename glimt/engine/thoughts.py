"""ThoughtLimit: closes the thoughts of an answer once they have had their tokens.

    OPEN ── <think> ──▶ THINKING ── </think>, or a call ──▶ OVER
      └── anything but a line break ──▶ OVER      │ ▲
                                       tokens spent: the closing is forced, token by token

Forcing is a mask of one token. It depends on the token before, so a step that may have to force
waits for it (`may_force`); a step that cannot costs nothing.
"""

import enum

from glimt.wire import ThinkingBudget


class _Phase(enum.Enum):
    OPEN = enum.auto()
    THINKING = enum.auto()
    OVER = enum.auto()


class ThoughtLimit:
    """Changes only by `advance`, so it outlives a preemption."""

    def __init__(self, budget: ThinkingBudget) -> None:
        thoughts = budget.thoughts
        self._begin = thoughts.begin
        self._ends = {thoughts.end, *thoughts.leave}
        self._line_breaks = thoughts.line_breaks
        self._closing = budget.closing
        self._num_left = budget.max_tokens
        self._num_closing = 0  # tokens of the closing that are there
        self._phase = _Phase.THINKING if budget.channel == "reasoning" else _Phase.OPEN

    def may_force(self, num_unknown: int) -> bool:
        """Whether the token after the next `num_unknown`, which are not known yet, can be one that
        has to be forced."""
        if self._phase is _Phase.THINKING:
            return self._num_left <= num_unknown
        return self._phase is _Phase.OPEN and self._num_left < num_unknown

    @property
    def forced(self) -> int | None:
        """The token that has to come next; None: any."""
        if self._phase is not _Phase.THINKING or self._num_left > 0:
            return None
        return self._closing[self._num_closing]

    def advance(self, token_id: int) -> None:
        """The answer's next token."""
        if self._phase is _Phase.OPEN:
            if token_id == self._begin:
                self._phase = _Phase.THINKING
            elif token_id not in self._line_breaks:
                self._phase = _Phase.OVER
        elif self._phase is _Phase.THINKING:
            if token_id in self._ends:
                self._phase = _Phase.OVER
            elif self._num_left > 0:
                self._num_left -= 1
            else:
                self._num_closing += 1
