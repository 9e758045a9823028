"""Deltas of an answer -> server-sent events or one body, in the shape of /v1/messages."""

import base64
import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import msgspec

from glimt.api.answering import Readable
from glimt.api.anthropic_schema import (
    MessagesAnswer,
    MessagesUsage,
    OutputDetails,
    TextOut,
    ThinkingOut,
    ToolUseOut,
)
from glimt.api.blocks import Block, BlockReader, Change, whole_blocks
from glimt.api.errors import anthropic_body_of
from glimt.api.stream import shown_boxes
from glimt.frontend.answer import Delta, UsageCounts

_encode = msgspec.json.Encoder().encode
_DELTAS = {
    "text": ("text_delta", "text"),
    "thinking": ("thinking_delta", "thinking"),
    "call": ("input_json_delta", "partial_json"),
}
_STOP_REASONS = {
    "stop": "end_turn",
    "repetition": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class MessagesForm:
    """What the answer to one request looks like."""

    id: str
    model: str
    max_tokens: int  # as asked for
    with_reasoning: bool = True
    with_boxes: bool = False  # a list of them, which may be empty
    cached_tokens: bool = True  # told apart in the usage


class MessagesWriter:
    """Writes one answer. Feed it deltas in order."""

    def __init__(self, form: MessagesForm) -> None:
        self._form = form
        self._reader = BlockReader()
        self._is_new = True
        self._last: Delta | None = None

    def events(self, deltas: Iterable[Delta], answer: Readable) -> bytes:
        """The events of the next deltas."""
        events: list[bytes] = []
        if self._is_new:
            self._is_new = False
            start = self._answer([], None, answer.usage._replace(completion_tokens=0))
            events.append(_event("message_start", message=start))
        for delta in deltas:
            self._last = delta
            for change in self._reader.read(delta):
                events += self._change(change)
        return b"".join(events)

    def end(self, usage: UsageCounts) -> bytes:
        """The reason of the end with the final counts, and the end itself."""
        reason, sequence = self._end_of(self._last, usage)
        delta = {"stop_reason": reason, "stop_sequence": sequence}
        counts = msgspec.to_builtins(self._usage(usage))
        return _event("message_delta", delta=delta, usage=counts) + _event("message_stop")

    def failure(self, error: Exception, request_id: str) -> bytes:
        """An error event; nothing comes after it."""
        return b"event: error\ndata: " + _encode(anthropic_body_of(error, request_id)) + b"\n\n"

    def whole(self, deltas: Iterable[Delta], answer: Readable) -> MessagesAnswer:
        """The unstreamed answer."""
        deltas = list(deltas)
        blocks = whole_blocks(deltas, with_thoughts=self._form.with_reasoning)
        content = [_content(block, with_boxes=self._form.with_boxes) for block in blocks]
        return self._answer(content, deltas[-1] if deltas else None, answer.usage)

    def _answer(
        self,
        content: list[TextOut | ThinkingOut | ToolUseOut],
        last: Delta | None,
        usage: UsageCounts,
    ) -> MessagesAnswer:
        reason, sequence = self._end_of(last, usage)
        return MessagesAnswer(
            id=self._form.id,
            model=self._form.model,
            content=content,
            stop_reason=reason,
            stop_sequence=sequence,
            usage=self._usage(usage),
        )

    def _end_of(self, last: Delta | None, usage: UsageCounts) -> tuple[str | None, str | None]:
        """(stop_reason, stop_sequence)."""
        if last is None or last.finish_reason is None:
            return None, None
        if last.finish_reason == "stop" and isinstance(last.stop_reason, str):
            return "stop_sequence", last.stop_reason
        # Where the context ends before max_tokens do, that is said.
        if last.finish_reason == "length" and usage.completion_tokens < self._form.max_tokens:
            return "model_context_window_exceeded", None
        return _STOP_REASONS[last.finish_reason], None

    def _usage(self, counts: UsageCounts) -> MessagesUsage:
        cached = counts.cached_tokens if self._form.cached_tokens else 0
        return MessagesUsage(
            input_tokens=counts.prompt_tokens - cached,
            cache_read_input_tokens=cached,
            output_tokens=counts.completion_tokens,
            output_tokens_details=OutputDetails(thinking_tokens=counts.reasoning_tokens),
        )

    def _change(self, change: Change) -> Iterator[bytes]:
        block = change.block
        if change.what == "begin":
            yield _event("content_block_start", index=block.index, content_block=_begun(block))
        elif change.what == "grow":
            kind, field = _DELTAS[block.kind]
            yield _event(
                "content_block_delta", index=block.index, delta={"type": kind, field: change.text}
            )
        else:
            if block.kind == "thinking":
                signed = {"type": "signature_delta", "signature": _signature(block.text)}
                yield _event("content_block_delta", index=block.index, delta=signed)
            # An event that every client knows: one of a kind of our own might not be let pass.
            has_boxes = self._form.with_boxes and block.kind == "text"
            own = {"boxes": shown_boxes(block.boxes)} if has_boxes else {}
            yield _event("content_block_stop", index=block.index, **own)


def _begun(block: Block) -> dict[str, Any]:
    if block.kind == "text":
        return {"type": "text", "text": "", "citations": None}
    if block.kind == "thinking":
        return {"type": "thinking", "thinking": "", "signature": ""}
    return {"type": "tool_use", "id": block.id, "name": block.name, "input": {}}


def _content(block: Block, *, with_boxes: bool) -> TextOut | ThinkingOut | ToolUseOut:
    if block.kind == "text":
        boxes = shown_boxes(block.boxes) if with_boxes else msgspec.UNSET
        return TextOut(text=block.text, boxes=boxes)
    if block.kind == "thinking":
        return ThinkingOut(thinking=block.text, signature=_signature(block.text))
    try:
        arguments = msgspec.json.decode(block.text or "{}", type=dict[str, Any])
    except msgspec.DecodeError:
        arguments = {}  # max_tokens cut it: half of it is not to be acted upon
    return ToolUseOut(id=block.id, name=block.name, input=arguments)


def _signature(thinking: str) -> str:
    """Clients want one and hand it back. Nothing is hidden here, so it only names the text."""
    digest = hashlib.sha256(thinking.encode("utf-8", "surrogatepass")).digest()
    return base64.b64encode(digest).decode("ascii")


def _event(kind: str, **fields: Any) -> bytes:
    data = _encode({"type": kind, **fields})
    return b"event: " + kind.encode("ascii") + b"\ndata: " + data + b"\n\n"
