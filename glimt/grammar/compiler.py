"""GrammarCompiler: texts of grammars to matchers, in a thread, within limits, from a bounded cache.

The server compiles a grammar before it submits a request, so that a bad one is refused; the engine
compiles it again for itself, off its loop. Texts are those that `glimt.grammar.source` writes.
"""

import logging
from collections import OrderedDict
from concurrent.futures import Executor, Future, ThreadPoolExecutor

import numpy as np
from llguidance import LLMatcher, LLParserLimits

from glimt.errors import BadGrammar, GlimtError
from glimt.grammar.matcher import Matcher
from glimt.grammar.vocabulary import Vocabulary

log = logging.getLogger(__name__)

MAX_CACHED = 64  # grammars
MAX_CACHED_CHARS = 8 * 2**20  # of their texts
_MAX_REASON_CHARS = 500
_NON_VERBOSE = "<non-verbose/>"


def limits() -> LLParserLimits:
    """What compiling and each token may cost, in the library's units of work: the same grammar
    is refused on every machine, or on none. The last two bound memory."""
    return LLParserLimits(
        max_items_in_row=2_500,
        initial_lexer_fuel=1_000_000,
        step_lexer_fuel=200_000,
        step_max_items=400_000,
        max_lexer_states=20_000,
        max_grammar_size=200_000,
        verbose_errors=False,
    )


class GrammarCompiler:
    """Owned by one thread; compiling happens in another, which starts when it is first needed."""

    def __init__(self, vocabulary: Vocabulary, pool: Executor | None = None) -> None:
        self._pool = pool or ThreadPoolExecutor(1, thread_name_prefix="glimt-grammar")
        self._vocabulary = vocabulary
        self._limits = limits()
        self._cache: OrderedDict[str, Future[Matcher]] = OrderedDict()
        self._num_chars = 0

    @property
    def num_cached(self) -> int:
        """Grammars in the cache, refused ones included."""
        return len(self._cache)

    def start(self, text: str) -> "Future[Matcher]":
        """Compile, or find what was compiled. The future raises BadGrammar for a bad grammar.

        Its matcher is shared: copy it. Do not cancel the future, others may wait for it.
        """
        known = self._cache.get(text)
        if known is not None:
            self._cache.move_to_end(text)
            return known
        future = self._pool.submit(self._compile, text)
        self._cache[text] = future
        self._num_chars += len(text)
        while len(self._cache) > MAX_CACHED or self._num_chars > MAX_CACHED_CHARS:
            old, _ = self._cache.popitem(last=False)
            self._num_chars -= len(old)
        return future

    def close(self) -> None:
        """End the thread."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _compile(self, text: str) -> Matcher:
        vocabulary = self._vocabulary
        try:
            library = LLMatcher(vocabulary.library, text, log_level=0, limits=self._limits)
            if library.is_error():
                raise BadGrammar(_reason(library.get_error()))
            matcher = Matcher(library, vocabulary)
            # Much is computed at the first mask. What comes of it is shared by all copies.
            matcher.copy().fill(np.empty(vocabulary.num_words, np.uint32))
        except GlimtError:
            raise
        except BaseException:  # panics of the library are no Exceptions
            log.exception("A grammar could not be compiled")
            raise BadGrammar("the grammar library failed on it") from None
        return matcher


def _reason(error: str) -> str:
    """The library's own words: they name the place. They quote nothing but the grammar."""
    return error.replace(_NON_VERBOSE, "").strip()[:_MAX_REASON_CHARS]
