"""Constraint: one answer under a grammar: free thoughts first, if any, then what must match.

    OPEN ── <think> ──▶ THINKING ── </think> ──▶ CLOSED ── any token ──▶ WITHIN
      │ └─ line break ─▶ LED ── <think> ──▶ THINKING    (a line break may follow </think>, too)
      └── any token of the grammar ──▶ WITHIN

Where the answer may be something else instead (calls of tools), a token that begins it makes all
that follows FREE. A model that may choose whether to think does so by its first token: `<think>`,
or the beginning of the grammar. An answer cannot end within its thoughts, or before its grammar
accepts.
"""

import enum
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

from glimt.errors import BadGrammar, EngineFailed, GlimtError
from glimt.grammar.matcher import Matcher
from glimt.grammar.vocabulary import Bits, allow, forbid
from glimt.wire import Grammar, ThoughtTokens

# Seconds of the engine's own time that one answer may take at once, and regains by each token. A
# usual token takes 10 to 500 µs; all requests wait for the slowest.
MAX_CREDIT_S = 0.25
CREDIT_PER_TOKEN_S = 0.01

log = logging.getLogger(__name__)

_ALL = np.uint32(0xFFFFFFFF)
_NO_THOUGHTS = ThoughtTokens(begin=-1, end=-1)


class Phase(enum.Enum):
    """Where an answer is; see the module."""

    OPEN = enum.auto()
    LED = enum.auto()
    THINKING = enum.auto()
    CLOSED = enum.auto()
    WITHIN = enum.auto()
    FREE = enum.auto()


_FIRST_PHASE = {
    "undecided": Phase.OPEN,
    "reasoning": Phase.THINKING,
    "content": Phase.WITHIN,
}


class Constraint:
    """Changes only by `advance`, so it outlives a preemption. Raises nothing but GlimtError.

    What it costs is counted on `cpu_clock`, which does not run while the thread stands still.
    """

    def __init__(
        self,
        grammar: Grammar,
        compiled: Matcher,
        eos_token_ids: tuple[int, ...],
        cpu_clock: Callable[[], float] = time.thread_time,
    ) -> None:
        self.phase = _FIRST_PHASE[grammar.channel]
        self._thoughts = grammar.thoughts or _NO_THOUGHTS
        self._instead = grammar.instead
        self._allows_control = grammar.allows_control
        self._eos_token_ids = eos_token_ids
        self._compiled = compiled
        self._matcher = compiled.copy()
        self._is_fresh = True  # nothing but thoughts and line breaks so far
        self._vocabulary = compiled.vocabulary
        self._cpu_clock = cpu_clock
        self._credit_s = MAX_CREDIT_S

    @property
    def num_words(self) -> int:
        """W, of the sets of tokens."""
        return self._vocabulary.num_words

    def fill(self, bits_W: Bits) -> bool:
        """Write the set of tokens that may come next. False: none, the answer is complete.

        Raises BadGrammar if none may come and the answer is not complete, or the cost is too high,
        EngineFailed for what is nobody's fault but ours.
        """
        with self._counted():
            return self._fill(bits_W)

    def advance(self, token_id: int) -> bool:
        """The answer's next token, no end token. True if it completes the answer.

        Raises BadGrammar for a token that may not come, or if the cost is too high; EngineFailed.
        """
        self._credit_s = min(self._credit_s + CREDIT_PER_TOKEN_S, MAX_CREDIT_S)
        with self._counted():
            return self._advance(token_id)

    @contextmanager
    def _counted(self) -> Iterator[None]:
        began_s = self._cpu_clock()
        try:
            yield
        except (GlimtError, KeyboardInterrupt, SystemExit):
            raise
        except BaseException:  # panics of the library are no Exceptions
            log.exception("A grammar failed")
            raise EngineFailed("The engine could not follow the grammar.") from None
        self._credit_s -= self._cpu_clock() - began_s
        if self._credit_s < 0:
            raise BadGrammar("the grammar is too complex: finding out what may come takes too long")

    def _fill(self, bits_W: Bits) -> bool:
        if self.phase in (Phase.FREE, Phase.THINKING):
            bits_W[:] = _ALL
            if self.phase is Phase.THINKING:
                forbid(bits_W, self._eos_token_ids)
                forbid(bits_W, [each for each in self._thoughts.leave if not self._begins(each)])
            return True
        if self.phase is Phase.LED and self._is_fresh:
            bits_W[:] = 0
            allow(bits_W, (self._thoughts.begin,))
            return True
        self._matcher.fill(bits_W)
        if not self._allows_control:
            bits_W &= self._vocabulary.not_control
        forbid(bits_W, self._eos_token_ids)
        if self._is_fresh:
            allow(bits_W, self._instead)
        if self.phase in (Phase.OPEN, Phase.LED):
            allow(bits_W, (self._thoughts.begin,))
        is_accepting = self._matcher.is_accepting
        if not bits_W.any():
            if not is_accepting:
                raise BadGrammar("no token can go on with the answer as the grammar wants it")
            return False
        if is_accepting:
            allow(bits_W, self._eos_token_ids)
        if self.phase in (Phase.OPEN, Phase.CLOSED):
            allow(bits_W, self._thoughts.line_breaks)
        return True

    def _advance(self, token_id: int) -> bool:
        if self.phase is Phase.FREE:
            return False
        if self.phase is Phase.THINKING:
            return self._think(token_id)
        if self.phase in (Phase.OPEN, Phase.LED) and token_id == self._thoughts.begin:
            self._matcher = self._compiled.copy()
            self._is_fresh = True
            self.phase = Phase.THINKING
            return False
        is_break = token_id in self._thoughts.line_breaks
        if is_break and self.phase in (Phase.OPEN, Phase.CLOSED):
            self.phase = Phase.LED if self.phase is Phase.OPEN else Phase.WITHIN
            if not self._matcher.accepts(token_id):
                return False
            self._is_fresh = False
            self._matcher.accept(token_id)
            return self.phase is Phase.WITHIN and self._matcher.is_complete
        return self._begin_or_go_on(token_id)

    def _think(self, token_id: int) -> bool:
        if token_id == self._thoughts.end:
            self.phase = Phase.CLOSED
        elif token_id in self._thoughts.leave:
            return self._begin_or_go_on(token_id)
        return False

    def _begin_or_go_on(self, token_id: int) -> bool:
        if self._is_fresh and token_id in self._instead:
            self.phase = Phase.FREE
            return False
        self.phase = Phase.WITHIN
        self._is_fresh = False
        self._matcher.accept(token_id)
        return self._matcher.is_complete

    def _begins(self, token_id: int) -> bool:
        """Whether what must match, or what may stand in its place, can begin so."""
        if token_id in self._instead:
            return True
        return self._allows_control and self._compiled.accepts(token_id)
