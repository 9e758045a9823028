"""Deltas of an answer -> server-sent events or one body, in the shape of /v1/responses."""

from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from glimt.api.answering import Readable
from glimt.api.blocks import Block, BlockReader, Change, whole_blocks
from glimt.api.errors import body_of
from glimt.api.responses_schema import (
    CallItem,
    InputDetails,
    MessageItem,
    OutputItem,
    ReasoningItem,
    ResponseObject,
    ResponseOutputDetails,
    ResponsesLogprob,
    ResponsesTopLogprob,
    ResponsesUsage,
    Status,
    TextContent,
    ThoughtContent,
)
from glimt.api.stream import AnswerForm, shown_boxes, shown_logprob, shown_token
from glimt.frontend.answer import Delta, UsageCounts
from glimt.wire import TokenLogprobs

_encode = msgspec.json.Encoder().encode
_PREFIXES = {"text": "msg", "thinking": "rs", "call": "fc"}
_DELTA_EVENTS = {
    "text": "response.output_text.delta",
    "thinking": "response.reasoning_text.delta",
    "call": "response.function_call_arguments.delta",
}


class ResponsesWriter:
    """Writes one answer. Feed it deltas in order.

    `frame`: the response before anything of it is known; `form`: how its tokens are shown.
    """

    def __init__(self, frame: ResponseObject, form: AnswerForm) -> None:
        self._frame = frame
        self._form = form
        self._reader = BlockReader()
        self._num_events = 0
        self._last: Delta | None = None

    def events(self, deltas: Iterable[Delta], answer: Readable) -> bytes:
        """The events of the next deltas."""
        events: list[bytes] = []
        if self._num_events == 0:
            events += [
                self._event(kind, response=self._frame)
                for kind in ("response.created", "response.in_progress")
            ]
        for delta in deltas:
            self._last = delta
            for change in self._reader.read(delta):
                events += self._change(change)
        return b"".join(events)

    def end(self, usage: UsageCounts) -> bytes:
        """The whole response once more."""
        response = self._response(self._reader.blocks, self._last, usage)
        return self._event(f"response.{response.status}", response=response)

    def failure(self, error: Exception, request_id: str) -> bytes:
        """The response as far as it came, with the error."""
        body = body_of(error, request_id).error
        failed = msgspec.structs.replace(
            self._frame,
            status="failed",
            error={"code": body.code, "message": body.message},
            output=[self._item(block, "incomplete") for block in self._reader.blocks],
        )
        return self._event("response.failed", response=failed)

    def whole(self, deltas: Iterable[Delta], answer: Readable) -> ResponseObject:
        """The unstreamed answer."""
        deltas = list(deltas)
        blocks = whole_blocks(deltas, with_thoughts=self._form.with_reasoning)
        return self._response(blocks, deltas[-1] if deltas else None, answer.usage)

    def _response(
        self, blocks: list[Block], last: Delta | None, usage: UsageCounts
    ) -> ResponseObject:
        is_cut = last is not None and last.finish_reason == "length"
        # What was cut was cut in its last block.
        items = [
            self._item(block, "incomplete" if is_cut and block is blocks[-1] else "completed")
            for block in blocks
        ]
        return msgspec.structs.replace(
            self._frame,
            status="incomplete" if is_cut else "completed",
            incomplete_details={"reason": "max_output_tokens"} if is_cut else None,
            output=items,
            usage=self._usage(usage),
        )

    def _usage(self, counts: UsageCounts) -> ResponsesUsage:
        cached = counts.cached_tokens if self._form.cached_tokens else 0
        return ResponsesUsage(
            input_tokens=counts.prompt_tokens,
            input_tokens_details=InputDetails(cached_tokens=cached),
            output_tokens=counts.completion_tokens,
            output_tokens_details=ResponseOutputDetails(reasoning_tokens=counts.reasoning_tokens),
            total_tokens=counts.prompt_tokens + counts.completion_tokens,
        )

    def _id(self, block: Block) -> str:
        return f"{_PREFIXES[block.kind]}_{self._frame.id.removeprefix('resp_')}_{block.index}"

    def _item(self, block: Block, status: Status) -> OutputItem:
        if block.kind == "text":
            content = [self._text(block)] if block.text or block.boxes else []
            return MessageItem(id=self._id(block), status=status, content=content)
        if block.kind == "thinking":
            thoughts = [ThoughtContent(text=block.text)] if block.text else []
            return ReasoningItem(id=self._id(block), status=status, content=thoughts)
        return CallItem(
            id=self._id(block),
            call_id=block.id,
            name=block.name,
            arguments=block.text,
            status=status,
        )

    def _text(self, block: Block) -> TextContent:
        return TextContent(
            text=block.text,
            logprobs=self._logprobs(block.logprobs),
            boxes=shown_boxes(block.boxes) if self._form.with_boxes else msgspec.UNSET,
        )

    def _logprobs(self, logprobs: Iterable[TokenLogprobs]) -> list[ResponsesLogprob]:
        form = self._form
        return [
            ResponsesLogprob(
                token=shown_token(each.token_id, form),
                logprob=shown_logprob(each.logprob),
                bytes=list(form.token_bytes(each.token_id)),
                top_logprobs=[
                    ResponsesTopLogprob(
                        token=shown_token(token_id, form),
                        logprob=shown_logprob(value),
                        bytes=list(form.token_bytes(token_id)),
                    )
                    for token_id, value in each.top
                ],
            )
            for each in logprobs
        ]

    # ------------------------------------------------------------------------------- events

    def _change(self, change: Change) -> Iterator[bytes]:
        block = change.block
        where: dict[str, Any] = {"output_index": block.index, "item_id": self._id(block)}
        if block.kind != "call":
            where["content_index"] = 0
        if change.what == "begin":
            yield from self._begin(block, where)
        elif change.what == "grow":
            if block.kind == "text":
                where["logprobs"] = self._logprobs(change.logprobs)
            yield self._event(_DELTA_EVENTS[block.kind], **where, delta=change.text)
        else:
            status: Status = "incomplete" if change.finish_reason == "length" else "completed"
            yield from self._end(block, where, status)

    def _begin(self, block: Block, where: dict[str, Any]) -> Iterator[bytes]:
        item = self._item(block, "in_progress")
        yield self._event("response.output_item.added", output_index=block.index, item=item)
        if block.kind == "text":
            yield self._event("response.content_part.added", **where, part=TextContent(text=""))
        elif block.kind == "thinking":
            yield self._event("response.content_part.added", **where, part=ThoughtContent(text=""))

    def _end(self, block: Block, where: dict[str, Any], status: Status) -> Iterator[bytes]:
        if block.kind == "text":
            part = self._text(block)
            yield self._event(
                "response.output_text.done", **where, text=block.text, logprobs=part.logprobs
            )
            yield self._event("response.content_part.done", **where, part=part)
        elif block.kind == "thinking":
            yield self._event("response.reasoning_text.done", **where, text=block.text)
            thoughts = ThoughtContent(text=block.text)
            yield self._event("response.content_part.done", **where, part=thoughts)
        else:
            yield self._event(
                "response.function_call_arguments.done",
                **where,
                name=block.name,
                arguments=block.text,
            )
        item = self._item(block, status)
        yield self._event("response.output_item.done", output_index=block.index, item=item)

    def _event(self, kind: str, **fields: Any) -> bytes:
        data = _encode({"type": kind, "sequence_number": self._num_events, **fields})
        self._num_events += 1
        return b"event: " + kind.encode("ascii") + b"\ndata: " + data + b"\n\n"
