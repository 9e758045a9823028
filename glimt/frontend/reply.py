"""One reply from tokens to text: thoughts, content and calls apart, trimmed, ended by stop strings.

    tokens ─tool_calls.py▶ calls, and the rest ─reasoning.py▶ pieces of a channel
           ─detokenize.py▶ text ─▶ deltas

Deltas do not depend on how the tokens came: put together they are the same reply.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal

import msgspec

from glimt.frontend.boxes import BoxReader, BoxTokens
from glimt.frontend.detokenize import Detokenizer, TextDelta
from glimt.frontend.prompt import IntArray
from glimt.frontend.reasoning import Channel, Piece, ReasoningSplitter, ReasoningTokens
from glimt.frontend.tokenizer import Tokenizer
from glimt.frontend.tool_calls import CallDelta, CallPiece, CallReader, CallRules, merge_calls


class ReplyDelta(msgspec.Struct, frozen=True, gc=False):
    """New text of a reply: thoughts, then content, then calls."""

    reasoning: str = ""
    content: str = ""
    stopped: str | None = None  # the stop string that ended the reply
    calls: tuple[CallDelta, ...] = ()  # each call at most once
    ends_with_call: bool = False  # the rules allow one call, and that is whole
    boxes: tuple[str, ...] = ()  # texts of boxes in the content


def fold(deltas: Iterable[ReplyDelta]) -> ReplyDelta:
    """Consecutive deltas as one: a whole reply from all of them."""
    reasoning: list[str] = []
    content: list[str] = []
    calls: list[CallDelta] = []
    boxes: list[str] = []
    stopped = None
    ends_with_call = False
    for delta in deltas:
        reasoning.append(delta.reasoning)
        content.append(delta.content)
        calls += delta.calls
        boxes += delta.boxes
        stopped = stopped or delta.stopped
        ends_with_call = ends_with_call or delta.ends_with_call
    texts = "".join(reasoning), "".join(content)
    return ReplyDelta(*texts, stopped, merge_calls(calls), ends_with_call, tuple(boxes))


def in_order(deltas: Iterable[ReplyDelta]) -> list[ReplyDelta]:
    """Consecutive deltas as the fewest that keep the order in which things were said; one at
    least."""
    groups: list[list[ReplyDelta]] = []
    has_content = has_calls = True  # nothing to go on with
    for delta in deltas:
        is_text = bool(delta.content or delta.boxes)
        goes_back = has_calls and (is_text or delta.reasoning)
        if not groups or goes_back or (has_content and delta.reasoning):
            groups.append([])
            has_content = has_calls = False
        groups[-1].append(delta)
        has_content, has_calls = has_content or is_text, has_calls or bool(delta.calls)
    return [group[0] if len(group) == 1 else fold(group) for group in groups or [[]]]


class ReplyReader:
    """Reads the tokens of one reply."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        reasoning: ReasoningTokens | None,
        prompt_ids: IntArray,
        *,
        calls: CallRules | None = None,
        boxes: BoxTokens | None = None,
        skip_ids: frozenset[int] = frozenset(),
        stop: Sequence[str] = (),
        include_stop: bool = False,
        min_tokens: int = 0,
    ) -> None:
        """`reasoning` None: everything is content, its marks are text; the same with `calls`.
        `boxes`: those in the content are told apart, and their marks give no text anywhere.

        `skip_ids` give no text. Stop strings (see `Detokenizer`) count within the thoughts and
        within the content, never in calls, once more than `min_tokens` tokens are there.
        """
        self._boxes = BoxReader(boxes, tokenizer, skip_ids) if boxes else None
        skip_ids |= boxes.ids if boxes else frozenset()
        self._calls = CallReader(calls, tokenizer, skip_ids) if calls else None
        self._splitter = ReasoningSplitter(reasoning, prompt_ids) if reasoning else None
        self._channel: Channel = self._splitter.channel if self._splitter else "content"
        self._new_text: Callable[[], Detokenizer] = lambda: Detokenizer(
            tokenizer, skip_ids, stop, include_stop
        )
        self._text = self._new_text()
        self._trim = self._trim_for(self._channel, is_start=self._channel == "reasoning")
        self._min_tokens = min_tokens
        self._num_tokens = 0
        self._is_in_call = False  # nothing has come since a call
        self._is_over = False

    @property
    def num_reasoning_tokens(self) -> int:
        """Tokens of thought so far, without the marks."""
        return self._splitter.num_reasoning_tokens if self._splitter else 0

    @property
    def num_calls(self) -> int:
        """Calls that have begun."""
        return self._calls.num_calls if self._calls else 0

    def push(self, token_ids: Sequence[int]) -> ReplyDelta:
        """The text that these tokens add for certain; none after a stop string."""
        if self._is_plain(token_ids):
            self._num_tokens += len(token_ids)
            self._is_in_call = False
            new = self._text.push(token_ids)
            if new.stopped is None:
                shown = self._trim.push(new.text)
                is_thought = self._channel == "reasoning"
                return ReplyDelta(shown) if is_thought else ReplyDelta("", shown)
            return fold(self._delta(new))
        if self._calls is not None and not self._is_over:
            calls = self._calls.read_string(token_ids)
            if calls is not None:
                self._num_tokens += len(token_ids)
                return ReplyDelta(calls=calls)
        early = max(0, self._min_tokens - self._num_tokens)
        deltas: list[ReplyDelta] = []
        for part, may_stop in ((token_ids[:early], False), (token_ids[early:], True)):
            self._num_tokens += len(part)
            for piece in self._pieces(part):
                if isinstance(piece, CallPiece):
                    deltas += self._read_call(piece, may_stop)
                else:
                    deltas += self._read(piece, may_stop)
        return fold(deltas)

    def finish(self, *, is_cut: bool = False) -> ReplyDelta:
        """What was held back, at the end of the tokens. `is_cut`: the model had not ended."""
        may_stop = self._num_tokens > self._min_tokens
        deltas: list[ReplyDelta] = []
        if self._calls is not None and not self._is_over:
            for piece in self._calls.finish(is_cut=is_cut):
                deltas += self._read_call(piece, may_stop)
        deltas += self._end_channel(may_stop)
        if self._boxes is not None and not self._is_over:
            deltas.append(ReplyDelta(boxes=self._boxes.finish()))
        if not self._is_over:
            self._is_over = True
            deltas += self._shown(self._trim.finish())
        return fold(deltas)

    def _is_plain(self, token_ids: Sequence[int]) -> bool:
        """Nearly all pushes are: neither marks nor a boundary in them, text and nothing else."""
        if self._is_over or self._num_tokens < self._min_tokens:
            return False
        if self._calls is not None and not self._calls.is_plain(token_ids):
            return False
        if self._boxes is not None and not self._boxes.is_plain(token_ids):
            return False
        return self._splitter is None or self._splitter.pass_plain(token_ids)

    def _pieces(self, token_ids: Sequence[int]) -> Iterator[Piece | CallPiece]:
        """To be read one by one: what a piece is may depend on those before it."""
        if not token_ids or self._is_over:
            return
        for some in self._calls.read(token_ids) if self._calls else (token_ids,):
            if isinstance(some, CallPiece):
                yield some
            elif self._splitter is None:
                yield Piece("content", some)
            else:
                yield from self._splitter.push(some)

    def _read_call(self, piece: CallPiece, may_stop: bool) -> Iterator[ReplyDelta]:
        """A call is an end of all thoughts, and of the text before it."""
        if not self._is_in_call:
            yield from self._end_channel(may_stop)
            if self._channel == "reasoning":
                self._trim = self._trim_for("content", is_start=True)
            self._channel, self._text, self._is_in_call = "content", self._new_text(), True
            if self._splitter is not None:
                self._splitter.end_thoughts()
        if self._is_over:
            return
        if any(delta.name for delta in piece.calls):
            self._trim.note_call()
        yield from self._shown(self._trim.push(piece.text))
        self._is_over = piece.is_last
        if piece.calls or piece.is_last:
            yield ReplyDelta(calls=piece.calls, ends_with_call=piece.is_last)

    def _read(self, piece: Piece, may_stop: bool) -> Iterator[ReplyDelta]:
        self._is_in_call = False
        if piece.channel != self._channel:
            yield from self._end_channel(may_stop)
            if piece.is_stray and not self._is_over:
                yield from self._shown(self._trim.finish())
            self._channel, self._text = piece.channel, self._new_text()
        if piece.is_start:
            self._trim = self._trim_for(piece.channel, is_start=True)
        if not self._is_over:
            yield from self._delta(self._text.push(piece.token_ids, may_stop=may_stop))
        if self._boxes is not None and piece.channel != "reasoning" and not self._is_over:
            yield ReplyDelta(boxes=self._boxes.read(piece.token_ids))

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

    def _trim_for(self, channel: Channel, *, is_start: bool) -> "_Trim":
        """Thoughts are trimmed at both ends, content after a mark at its start. Whitespace before a
        decision waits for it: a <think> makes it meaningless, and so does a call behind it."""
        if channel == "reasoning":
            return _Trim("drop", "drop")
        tail: _Fate = "hold" if self._calls else "keep"
        if is_start:
            return _Trim("drop", tail)
        return _Trim("hold" if channel == "undecided" else "keep", tail)


_Fate = Literal["keep", "hold", "drop"]


class _Trim:
    """Trims a text as it comes: `lead` and `tail` say what becomes of whitespace at its start and
    end. What is held is shown once it is certain that it means something."""

    def __init__(self, lead: _Fate, tail: _Fate) -> None:
        self._lead = lead
        self._tail = tail
        self._held: list[str] = []  # whitespace that is only shown if text follows
        self._is_at_call = False

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
        shown = text if self._tail == "keep" else text.rstrip()
        if not shown:
            self._held += [text] if text else []
            return ""
        held, self._held = "".join(self._held), [text[len(shown) :]]
        self._is_at_call = False
        return held + shown

    def note_call(self) -> None:
        """A call stands here. Whitespace around it means nothing, unless it parts two texts."""
        self._is_at_call = True
        if self._lead != "keep":
            self._lead, self._held = "drop", []

    def finish(self) -> str:
        """The whitespace of a text that turned out to have nothing else, or to end in it."""
        held, self._held = "".join(self._held), []
        means_something = self._lead == "hold" or self._tail == "hold"
        return held if means_something and not self._is_at_call else ""
