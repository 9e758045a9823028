"""Matcher: where one text stands in its grammar, and which tokens may follow."""

from llguidance import LLMatcher

from glimt.errors import BadGrammar
from glimt.grammar.vocabulary import Bits, Vocabulary, forbid


class Matcher:
    """A compiled grammar and the tokens it has read. Copies share what was compiled."""

    def __init__(self, library: LLMatcher, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self._library = library

    def copy(self) -> "Matcher":
        """Another text that stands at the same place; costs microseconds."""
        return Matcher(self._library.deep_copy(), self.vocabulary)

    def fill(self, bits_W: Bits) -> None:
        """Write the set of tokens that may come next; the end is not among them.

        Raises BadGrammar if finding out costs too much.
        """
        self._library.unsafe_compute_mask_ptr(bits_W.ctypes.data, bits_W.nbytes)
        if self._library.is_error():
            raise self._error()
        forbid(bits_W, (self.vocabulary.end_id,))

    def accepts(self, token_id: int) -> bool:
        """Whether this token may come next."""
        return token_id != self.vocabulary.end_id and (
            self._library.validate_tokens([token_id]) == 1
        )

    def accept(self, token_id: int) -> None:
        """Read a token. Raises BadGrammar if it may not come, or costs too much."""
        if not self._library.consume_token(token_id):
            raise self._error()

    @property
    def is_accepting(self) -> bool:
        """The text so far is whole."""
        return self._library.is_accepting()

    @property
    def is_complete(self) -> bool:
        """The text is whole, and nothing can follow."""
        return self._library.is_stopped() and self._library.is_accepting()

    def _error(self) -> BadGrammar:
        reason = self._library.get_error().partition("\n")[0] or "no token can follow"
        return BadGrammar(f"the grammar is too complex, or cannot be met: {reason[:200]}")
