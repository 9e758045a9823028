"""One reply from tokens to text: thoughts and content apart, trimmed, ended by stop strings.

    tokens ─reasoning.py▶ pieces of a channel ─detokenize.py▶ text ─▶ deltas

Deltas do not depend on how the tokens came: put together they are the same reply.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal

import msgspec

from glimt.frontend.detokenize import Detokenizer, TextDelta
from glimt.frontend.prompt import IntArray
from glimt.frontend.reasoning import Channel, Piece, ReasoningSplitter, ReasoningTokens
from glimt.frontend.tokenizer import Tokenizer


class ReplyDelta(msgspec.Struct, frozen=True, gc=False):
    """New text of a reply: thoughts, then content.

    `was_reasoning`: all content before this delta turned out to be thought. A stream has already
    sent it and lets it be; `fold` puts it right.
    """

    reasoning: str = ""
    content: str = ""
    stopped: str | None = None  # the stop string that ended the reply
    was_reasoning: bool = False


def fold(deltas: Iterable[ReplyDelta]) -> ReplyDelta:
    """A whole reply from all its deltas."""
    whole = merge(deltas)
    # What was content at first has not been trimmed as thought.
    thought = whole.reasoning.strip() if whole.was_reasoning else whole.reasoning
    return ReplyDelta(thought, whole.content, whole.stopped)


def merge(deltas: Iterable[ReplyDelta]) -> ReplyDelta:
    """Consecutive deltas as one."""
    reasoning: list[str] = []
    content: list[str] = []
    stopped = None
    was_reasoning = False
    for delta in deltas:
        if delta.was_reasoning:
            reasoning, content, was_reasoning = reasoning + content, [], True
        reasoning.append(delta.reasoning)
        content.append(delta.content)
        stopped = stopped or delta.stopped
    return ReplyDelta("".join(reasoning), "".join(content), stopped, was_reasoning)


class ReplyReader:
    """Reads the tokens of one reply."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        reasoning: ReasoningTokens | None,
        prompt_ids: IntArray,
        *,
        skip_ids: frozenset[int] = frozenset(),
        stop: Sequence[str] = (),
        include_stop: bool = False,
        min_tokens: int = 0,
    ) -> None:
        """`reasoning` None: everything is content, its marks are text.

        `skip_ids` give no text. Stop strings (see `Detokenizer`) count within the thoughts and
        within the content, once more than `min_tokens` tokens are there.
        """
        self._splitter = ReasoningSplitter(reasoning, prompt_ids) if reasoning else None
        self._channel: Channel = self._splitter.channel if self._splitter else "content"
        self._new_text: Callable[[], Detokenizer] = lambda: Detokenizer(
            tokenizer, skip_ids, stop, include_stop
        )
        self._text = self._new_text()
        self._trim = _trim_for(self._channel, is_start=self._channel == "reasoning")
        self._min_tokens = min_tokens
        self._num_tokens = 0
        self._is_over = False

    @property
    def num_reasoning_tokens(self) -> int:
        """Tokens of thought so far, without the marks."""
        return self._splitter.num_reasoning_tokens if self._splitter else 0

    def push(self, token_ids: Sequence[int]) -> ReplyDelta:
        """The text that these tokens add for certain; none after a stop string."""
        if self._is_plain(token_ids):
            self._num_tokens += len(token_ids)
            new = self._text.push(token_ids)
            if new.stopped is None:
                shown = self._trim.push(new.text)
                is_thought = self._channel == "reasoning"
                return ReplyDelta(shown) if is_thought else ReplyDelta("", shown)
            return merge(self._delta(new))
        early = max(0, self._min_tokens - self._num_tokens)
        deltas: list[ReplyDelta] = []
        for part, may_stop in ((token_ids[:early], False), (token_ids[early:], True)):
            self._num_tokens += len(part)
            for piece in self._pieces(part):
                deltas += self._read(piece, may_stop)
        return merge(deltas)

    def finish(self) -> ReplyDelta:
        """What was held back, at the end of the tokens."""
        deltas = list(self._end_channel(self._num_tokens > self._min_tokens))
        if not self._is_over:
            self._is_over = True
            deltas += self._shown(self._trim.finish())
        return merge(deltas)

    def _is_plain(self, token_ids: Sequence[int]) -> bool:
        """Nearly all pushes are: neither marks nor a boundary in them, text and nothing else."""
        if self._is_over or self._num_tokens < self._min_tokens:
            return False
        return self._splitter is None or self._splitter.pass_plain(token_ids)

    def _pieces(self, token_ids: Sequence[int]) -> Iterable[Piece]:
        if not token_ids or self._is_over:
            return ()
        if self._splitter is None:
            return (Piece("content", token_ids),)
        return self._splitter.push(token_ids)

    def _read(self, piece: Piece, may_stop: bool) -> Iterator[ReplyDelta]:
        if piece.channel != self._channel:
            yield from self._end_channel(may_stop)
            if piece.was_reasoning and not self._is_over:
                yield from self._shown(self._trim.finish())
                yield ReplyDelta(was_reasoning=True)
            self._channel, self._text = piece.channel, self._new_text()
        if piece.is_start:
            self._trim = _trim_for(piece.channel, is_start=True)
        if not self._is_over:
            yield from self._delta(self._text.push(piece.token_ids, may_stop=may_stop))

    def _end_channel(self, may_stop: bool) -> Iterator[ReplyDelta]:
        if not self._is_over:
            yield from self._delta(self._text.finish(may_stop=may_stop))

    def _delta(self, delta: TextDelta) -> Iterator[ReplyDelta]:
        yield from self._shown(self._trim.push(delta.text))
        if delta.stopped is not None:
            self._is_over = True
            yield from self._shown(self._trim.finish())
            yield ReplyDelta(stopped=delta.stopped)

    def _shown(self, text: str) -> Iterator[ReplyDelta]:
        if text and self._channel == "reasoning":
            yield ReplyDelta(reasoning=text)
        elif text:
            yield ReplyDelta(content=text)


class _Trim:
    """Trims a text as it comes: `lead` says what becomes of whitespace at its start, `cuts_tail`
    that whitespace at its end is dropped."""

    def __init__(self, lead: Literal["keep", "hold", "drop"], cuts_tail: bool) -> None:
        self._lead = lead
        self._cuts_tail = cuts_tail
        self._held: list[str] = []  # whitespace that is only shown if text follows

    def push(self, text: str) -> str:
        """What of the text so far can be shown now."""
        if self._lead != "keep":
            body = text.lstrip()
            if not body:
                if self._lead == "hold":
                    self._held.append(text)
                return ""
            text = body if self._lead == "drop" else text
            self._lead = "keep"
        shown = text.rstrip() if self._cuts_tail else text
        if not shown:
            self._held += [text] if text else []
            return ""
        held, self._held = "".join(self._held), [text[len(shown) :]]
        return held + shown

    def finish(self) -> str:
        """The whitespace of a text that turned out to be nothing else."""
        held, self._held = "".join(self._held), []
        return held if self._lead == "hold" else ""


def _trim_for(channel: Channel, *, is_start: bool) -> _Trim:
    """Thoughts are trimmed at both ends, content after a mark at its start. Whitespace before a
    decision waits for it: a <think> makes it meaningless."""
    if channel == "reasoning":
        return _Trim("drop", cuts_tail=True)
    if is_start:
        return _Trim("drop", cuts_tail=False)
    return _Trim("hold" if channel == "undecided" else "keep", cuts_tail=False)
