"""Deltas of one choice -> blocks: stretches of thought, of text, and calls, one after the other.

The shape of /v1/messages and /v1/responses, streamed or whole: both are written from the same
changes.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from msgspec.structs import replace

from glimt.frontend.answer import Delta
from glimt.frontend.tool_calls import CallDelta
from glimt.wire import TokenLogprobs

Kind = Literal["thinking", "text", "call"]


@dataclass(slots=True, eq=False)
class Block:
    """One stretch. Of a call, `text` is its arguments' JSON."""

    index: int
    kind: Kind
    text: str = ""
    id: str = ""  # of a call
    name: str = ""  # of the function called
    logprobs: list[TokenLogprobs] = field(default_factory=list)  # of text
    boxes: list[str] = field(default_factory=list)  # texts of those that ended in this text


class Change(NamedTuple):
    """What happens to a block: it begins, it grows by `text`, or it ends."""

    what: Literal["begin", "grow", "end"]
    block: Block
    text: str = ""
    logprobs: tuple[TokenLogprobs, ...] = ()
    finish_reason: str | None = None  # of the answer, which ends with this block


class BlockReader:
    """Reads one choice. All `blocks` but the last are whole."""

    def __init__(self) -> None:
        self.blocks: list[Block] = []
        self._open: Block | None = None

    def read(self, delta: Delta) -> Iterator[Change]:
        """The changes that a delta makes, in order; take all of them."""
        calls = delta.calls
        if calls and not calls[0].name:
            # What goes on with the open call came before any text, which ends it.
            yield from self._call(calls[0])
            calls = calls[1:]
        if delta.reasoning:
            yield from self._grow("thinking", delta.reasoning)
        if delta.content:
            # With thoughts or calls in the same delta nobody could tell whose tokens they are.
            is_pure = not (delta.reasoning or delta.calls)
            yield from self._grow("text", delta.content, delta.logprobs if is_pure else ())
        if delta.boxes:
            yield from self._open_if_not("text")
            self.blocks[-1].boxes += delta.boxes
        for call in calls:
            yield from self._call(call)
        if delta.finish_reason is not None:
            yield from self._end(delta.finish_reason)

    def _grow(
        self, kind: Kind, text: str, logprobs: tuple[TokenLogprobs, ...] = ()
    ) -> Iterator[Change]:
        yield from self._open_if_not(kind)
        block = self.blocks[-1]
        block.text += text
        block.logprobs += logprobs
        yield Change("grow", block, text, logprobs)

    def _open_if_not(self, kind: Kind) -> Iterator[Change]:
        if self._open is None or self._open.kind != kind:
            yield from self._end()
            yield self._begin(Block(len(self.blocks), kind))

    def _call(self, call: CallDelta) -> Iterator[Change]:
        if call.name:
            yield from self._end()
            yield self._begin(Block(len(self.blocks), "call", id=call.id, name=call.name))
        if call.arguments and self._open is not None:
            self._open.text += call.arguments
            yield Change("grow", self._open, call.arguments)

    def _begin(self, block: Block) -> Change:
        self.blocks.append(block)
        self._open = block
        return Change("begin", block)

    def _end(self, finish_reason: str | None = None) -> Iterator[Change]:
        block, self._open = self._open, None
        if block is not None:
            yield Change("end", block, finish_reason=finish_reason)


def whole_blocks(deltas: Iterable[Delta], *, with_thoughts: bool = True) -> list[Block]:
    """The blocks of a whole answer."""
    reader = BlockReader()
    for delta in deltas:
        list(reader.read(delta if with_thoughts else replace(delta, reasoning="")))
    return reader.blocks
