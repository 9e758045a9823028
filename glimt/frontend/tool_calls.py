"""Reads tool calls out of a reply, by token ids, as the reply comes (glm45, glm47).

    call := "<tool_call>" name { "<arg_key>" key "</arg_key>" "<arg_value>" value "</arg_value>" }
            "</tool_call>"

Between marks whitespace is free, and a literal backslash and n counts as whitespace: glm45 writes
line ends there and glm47 nothing, which is all in which they differ. The marks are control tokens:
text that looks like one is text. Within a value all but `</arg_value>` is text, marks included.

A call begins for the client when its name is known and declared. From then on its arguments are
JSON in the making: what has been told is the beginning of one JSON object at any moment. What does
not follow the grammar is handed back as text, nothing is lost:

    an undeclared name          the whole call is text, up to its </tool_call>
    a breach after the name     the arguments end before it, the rest is text up to </tool_call>
    the reply ends in a call    the end that is missing is implied, as is that of a value
    max_tokens ends it          the arguments stay open: half a value is not to be acted upon

Decision 0016 says why. Time is linear in the reply. Pieces put together do not depend on how
tokens are cut into pushes.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from glimt.frontend.argument_types import ArgumentTypes, dump, escape, streams_as_text
from glimt.frontend.detokenize import Detokenizer
from glimt.frontend.tokenizer import Tokenizer

_State = Literal[
    "outside", "name", "key", "after key", "value", "after value", "broken", "broken value"
]


@dataclass(frozen=True)
class CallTokens:
    """The ids of the marks."""

    begin: int  # <tool_call>
    end: int  # </tool_call>
    key_begin: int  # <arg_key>
    key_end: int  # </arg_key>
    value_begin: int  # <arg_value>
    value_end: int  # </arg_value>

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> "CallTokens | None":
        """Looked up by text; None if the tokenizer lacks one of them (GLM-4.1V's has none)."""
        names = ("tool_call", "arg_key", "arg_value")
        marks = [tokenizer.token_id(f"<{slash}{name}>") for name in names for slash in ("", "/")]
        known = [mark for mark in marks if mark is not None]
        return cls(*known) if len(known) == len(marks) else None

    @property
    def all(self) -> frozenset[int]:
        """All marks."""
        keys = (self.key_begin, self.key_end)
        return frozenset((self.begin, self.end, *keys, self.value_begin, self.value_end))


class CallDelta(msgspec.Struct, frozen=True, gc=False):
    """What is new in one call: first its id and name, then fragments of its arguments' JSON."""

    index: int  # of the call within the reply
    arguments: str = ""
    id: str = ""  # and the name: of the first delta
    name: str = ""


def merge_calls(deltas: Sequence[CallDelta]) -> tuple[CallDelta, ...]:
    """One delta for each call: its pieces put together, in the order of the calls."""
    if len(deltas) < 2:
        return tuple(deltas)
    pieces: dict[int, list[str]] = {}
    firsts: dict[int, CallDelta] = {}
    for delta in deltas:
        pieces.setdefault(delta.index, []).append(delta.arguments)
        firsts.setdefault(delta.index, delta)
    return tuple(
        CallDelta(index, "".join(pieces[index]), first.id, first.name)
        for index, first in firsts.items()
    )


@dataclass(frozen=True, slots=True)
class CallPiece:
    """What some tokens of a call turned out to be: calls, or text that is none."""

    calls: tuple[CallDelta, ...] = ()
    text: str = ""
    is_last: bool = False  # the reply is to end here


@dataclass(frozen=True, slots=True, kw_only=True)
class CallRules:
    """What one request says about calls."""

    tokens: CallTokens
    tools: Mapping[str, ArgumentTypes]  # by name
    new_id: Callable[[], str]
    only_one: bool = False  # the reply ends with its first call


class ArgumentsWriter:
    """Keys and values as they come -> the JSON of one arguments object, in fragments."""

    def __init__(self, types: ArgumentTypes) -> None:
        self._types = types
        self._keys: set[str] = set()
        self._schema: Any = None
        self._may_be_text: Callable[[str], bool] | None = None
        self._held: list[str] = []  # the value so far, while it cannot be told whether it is text
        self._is_text = False
        self._has_values = False

    def take_key(self, key: str) -> bool:
        """Whether a value may come under this key: it has a name, and has none yet."""
        if not key or key in self._keys:
            return False
        self._keys.add(key)
        self._key = key
        return True

    @property
    def is_text(self) -> bool:
        """What comes now is part of a string."""
        return self._is_text

    def begin_value(self) -> str:
        """The value of the key that was taken begins."""
        self._schema = self._types.schema_of(self._key)
        self._may_be_text = streams_as_text(self._types.types_of(self._schema))
        self._held, self._is_text = [], False
        return self.add("")

    def add(self, text: str) -> str:
        """More of the value. Strings go on at once, all else waits for its end."""
        if self._is_text:
            return escape(text)
        self._held.append(text)
        if self._may_be_text is None:
            return ""
        whole = "".join(self._held)  # short: what is longer than a word may be text
        if not self._may_be_text(whole):
            return ""
        self._is_text, self._held = True, []
        return f'{self._head()}"{escape(whole)}'

    def end_value(self) -> str:
        """The value is whole."""
        if self._is_text:
            return '"'
        return self._head() + self._types.to_json("".join(self._held), self._schema)

    def end(self) -> str:
        """The object is whole."""
        return "}" if self._has_values else "{}"

    def _head(self) -> str:
        sign = ", " if self._has_values else "{"
        self._has_values = True
        return f"{sign}{dump(self._key)}: "


class CallReader:
    """Takes the calls out of the tokens of one reply."""

    def __init__(
        self, rules: CallRules, tokenizer: Tokenizer, skip_ids: frozenset[int] = frozenset()
    ) -> None:
        """`skip_ids` give no text."""
        self._rules = rules
        self._tokens = rules.tokens
        self._marks = rules.tokens.all
        self._text_of = {mark: tokenizer.token_text(mark) for mark in self._marks}
        self._new_text: Callable[[], Detokenizer] = lambda: Detokenizer(tokenizer, skip_ids)
        self._state: _State = "outside"
        self._text = self._new_text()  # of the tokens since the last mark
        self._raw: list[str] = []  # what has been read and is not told yet
        self._num_marks = 0  # of the parts of `_raw`, those at its start that are no free text
        self._held_end = ""  # a </tool_call> within a value: text, unless nothing follows
        self._arguments: ArgumentsWriter | None = None  # None: no call has begun
        self._is_over = False
        self.num_calls = 0

    def is_plain(self, token_ids: Sequence[int]) -> bool:
        """None of these tokens has anything to do with a call."""
        return self._state == "outside" and self._tokens.begin not in token_ids

    def read_string(self, token_ids: Sequence[int]) -> tuple[CallDelta, ...] | None:
        """`read` for tokens that are all within a string value, in a fraction of the time.

        None: they may be something else, and nothing was done.
        """
        if self._state != "value" or self._held_end or not self._marks.isdisjoint(token_ids):
            return None
        if self._arguments is None or not self._arguments.is_text:
            return None
        text = self._text.push(token_ids).text
        return (CallDelta(self.num_calls - 1, escape(text)),) if text else ()

    def read(self, token_ids: Sequence[int]) -> Iterator[Sequence[int] | CallPiece]:
        """In order: tokens that belong to no call, as they are, and pieces of calls.

        Exhaust it before the next push. Nothing comes after a piece that is the last.
        """
        first = 0
        for index, token_id in enumerate(token_ids):
            if self._is_over:
                return
            if self._is_mark(token_id):
                yield from self._take_run(token_ids[first:index])
                yield from self._take_text(self._text.finish().text)
                self._text = self._new_text()
                yield from self._take_mark(token_id)
                first = index + 1
        if not self._is_over:
            yield from self._take_run(token_ids[first:])

    def finish(self, *, is_cut: bool) -> Iterator[CallPiece]:
        """The rest. `is_cut`: the reply had not come to its end."""
        if self._is_over:
            return
        yield from self._take_text(self._text.finish().text)
        state = self._state
        if is_cut:
            if state == "name":
                yield CallPiece(text=self._untold())
        elif state == "name":
            yield from self._take_name(None)
        elif state == "value":
            yield from self._end_value()
            yield from self._end_call()
        elif state == "after value" and self._is_gap():
            yield from self._end_call()
        elif state != "outside":
            yield from self._break_off(None)
        self._state = "outside"

    def _is_mark(self, token_id: int) -> bool:
        if token_id not in self._marks:
            return False
        tokens = self._tokens
        if self._state == "outside":
            return token_id == tokens.begin
        if self._state == "value":
            return token_id in (tokens.value_end, tokens.end)
        return self._state != "broken value" or token_id == tokens.value_end

    def _take_run(self, token_ids: Sequence[int]) -> Iterator[Sequence[int] | CallPiece]:
        """Tokens between two marks."""
        if not token_ids:
            return
        if self._state == "outside":
            yield token_ids
        else:
            yield from self._take_text(self._text.push(token_ids).text)

    def _take_text(self, text: str) -> Iterator[CallPiece]:
        if not text:
            return
        if self._state in ("broken", "broken value"):
            yield CallPiece(text=text)
        elif self._state == "value":
            yield from self._add_to_value(text)
        elif self._state != "outside":
            self._raw.append(text)

    def _take_mark(self, mark: int) -> Iterator[CallPiece]:
        tokens, state = self._tokens, self._state
        goes_on = mark in (tokens.key_begin, tokens.end, tokens.begin)
        if state == "outside":
            self._open("name", mark)
        elif state == "name" and goes_on:
            yield from self._take_name(mark)
        elif state == "key" and mark == tokens.key_end and self._take_key():
            self._state = "after key"
        elif state == "after key" and mark == tokens.value_begin and self._is_gap():
            yield from self._begin_value()
        elif state == "value" and mark == tokens.end:
            yield from self._add_to_value("")
            self._held_end = self._text_of[mark]
        elif state == "value":
            yield from self._add_to_value("")
            yield from self._end_value()
        elif state == "after value" and goes_on and self._is_gap():
            yield from self._go_on(mark)
        else:
            yield from self._break_off(mark)

    def _open(self, state: _State, mark: int) -> None:
        self._state, self._raw, self._num_marks = state, [self._text_of[mark]], 1

    def _take_name(self, mark: int | None) -> Iterator[CallPiece]:
        """A call begins if it has the name of a tool. `mark` None: the end of the reply."""
        name = self._free_text().replace("\\n", "\n").strip()
        types = self._rules.tools.get(name)
        if types is None:
            yield from self._break_off(mark)
            return
        self._arguments = ArgumentsWriter(types)
        yield CallPiece((CallDelta(self.num_calls, "", self._rules.new_id(), name),))
        self.num_calls += 1
        yield from self._go_on(mark)

    def _go_on(self, mark: int | None) -> Iterator[CallPiece]:
        """With another argument, the end, or another call, which implies the end."""
        if mark == self._tokens.key_begin:
            self._open("key", mark)
            return
        yield from self._end_call()
        if mark == self._tokens.begin:
            self._open("name", mark)

    def _take_key(self) -> bool:
        if self._arguments is None or not self._arguments.take_key(self._free_text().strip()):
            return False
        self._raw.append(self._text_of[self._tokens.key_end])
        self._num_marks = len(self._raw)
        return True

    def _begin_value(self) -> Iterator[CallPiece]:
        self._state, self._raw, self._num_marks = "value", [], 0
        if self._arguments is not None:
            yield from self._told(self._arguments.begin_value())

    def _add_to_value(self, text: str) -> Iterator[CallPiece]:
        text, self._held_end = self._held_end + text, ""
        if text and self._arguments is not None:
            yield from self._told(self._arguments.add(text))

    def _end_value(self) -> Iterator[CallPiece]:
        self._state, self._held_end = "after value", ""
        if self._arguments is not None:
            yield from self._told(self._arguments.end_value())

    def _end_call(self) -> Iterator[CallPiece]:
        self._state, self._raw = "outside", []
        if self._arguments is not None:
            self._is_over = self._rules.only_one
            yield from self._told(self._arguments.end())
            self._arguments = None

    def _told(self, fragment: str) -> Iterator[CallPiece]:
        if fragment:
            delta = CallDelta(self.num_calls - 1, fragment)
            yield CallPiece((delta,), is_last=self._is_over)

    def _break_off(self, mark: int | None) -> Iterator[CallPiece]:
        """The grammar is broken here: what is not told yet is text, up to the call's end."""
        tokens, text = self._tokens, self._untold()
        if mark not in (None, tokens.begin):
            text += self._text_of[mark]
        if text:
            yield CallPiece(text=text)
        yield from self._end_call()
        if mark == tokens.begin:
            self._open("name", mark)
        elif mark not in (None, tokens.end):
            self._state = "broken value" if mark == tokens.value_begin else "broken"

    def _free_text(self) -> str:
        """The text since the last mark."""
        return "".join(self._raw[self._num_marks :])

    def _is_gap(self) -> bool:
        return not self._free_text().replace("\\n", "").strip()

    def _untold(self) -> str:
        text, self._raw, self._num_marks = "".join(self._raw), [], 0
        return text
