"""What the messages of each API say: which chunks carry tokens, the counts, the end, the errors.

A chunk counts as carrying tokens if it has content, thinking (under either of its names) or tool
calls, or an empty content without a role, which is how a token without text looks. A chunk that
only opens the answer with a role is no token, whenever it comes.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import msgspec


@dataclass(slots=True)
class Answer:
    """What an answer's messages said, chunk by chunk and in all."""

    chunk_ns: list[int] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)
    chars: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)  # as told after each chunk, in all so far
    content: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    finish_reason: str | None = None
    is_done: bool = False
    error: str = ""
    is_broken: bool = False  # a message that is not what the API sends
    usage: dict[str, Any] = field(default_factory=dict)
    server: dict[str, Any] = field(default_factory=dict)

    def add(self, at_ns: int, kind: str, text: str) -> None:
        """A chunk with tokens."""
        self.chunk_ns.append(at_ns)
        self.kinds.append(kind)
        self.chars.append(len(text))
        if kind == "r":
            self.reasoning.append(text)
        elif kind == "c":
            self.content.append(text)


class _Delta(msgspec.Struct):
    role: str | None = None
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[Any] | None = None
    function_call: Any = None


class _Choice(msgspec.Struct):
    delta: _Delta | None = None
    text: str | None = None
    finish_reason: str | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] | None = None
    usage: dict[str, Any] | None = None
    error: Any = None
    metrics: dict[str, Any] | None = None


class _ResponsesEvent(msgspec.Struct):
    type: str = ""
    delta: Any = None
    response: dict[str, Any] | None = None
    error: Any = None
    message: str | None = None


_decode_chunk = msgspec.json.Decoder(_Chunk).decode
_decode_event = msgspec.json.Decoder(_ResponsesEvent).decode

_RESPONSES_KINDS = {
    "response.output_text.delta": "c",
    "response.refusal.delta": "c",
    "response.reasoning_text.delta": "r",
    "response.reasoning_summary_text.delta": "r",
    "response.function_call_arguments.delta": "t",
}

Messages = Iterable[tuple[int, bytes]]
Dialect = Callable[[Messages], Answer]


def read_chat(stream: Messages) -> Answer:
    """POST /v1/chat/completions, streamed."""
    return _read_chunks(stream, _chat_chunk)


def read_completion(stream: Messages) -> Answer:
    """POST /v1/completions, streamed."""
    return _read_chunks(stream, _completion_chunk)


def read_responses(stream: Messages) -> Answer:
    """POST /v1/responses, streamed."""
    answer = Answer()
    for at_ns, data in stream:
        if data == b"[DONE]":
            answer.is_done = True
            continue
        try:
            event = _decode_event(data)
        except msgspec.DecodeError as error:
            _note_broken(answer, data, error)
            continue
        if (kind := _RESPONSES_KINDS.get(event.type)) is not None:
            answer.add(at_ns, kind, event.delta if isinstance(event.delta, str) else "")
        elif event.type in ("response.completed", "response.incomplete"):
            _responses_end(answer, event.response or {})
        elif event.type in ("error", "response.failed"):
            told = event.error or event.message or (event.response or {}).get("error")
            answer.error = answer.error or _error_text(told)
    return answer


def _read_chunks(stream: Messages, note: Callable[[Answer, int, _Choice], None]) -> Answer:
    answer = Answer()
    for at_ns, data in stream:
        if data == b"[DONE]":
            answer.is_done = True
            continue
        try:
            chunk = _decode_chunk(data)
        except msgspec.DecodeError as error:
            _note_broken(answer, data, error)
            continue
        if chunk.error is not None:
            answer.error = answer.error or _error_text(chunk.error)
            continue
        if chunk.choices:
            choice = chunk.choices[0]
            note(answer, at_ns, choice)
            answer.finish_reason = choice.finish_reason or answer.finish_reason
        if chunk.usage:
            _note_usage(answer, chunk.usage)
        if chunk.metrics:
            answer.server.update(chunk.metrics)
    return answer


def _chat_chunk(answer: Answer, at_ns: int, choice: _Choice) -> None:
    delta = choice.delta
    if delta is None:
        return
    reasoning = delta.reasoning or delta.reasoning_content
    if delta.content:
        answer.add(at_ns, "c", delta.content)
        if reasoning:  # one chunk with the end of the thinking and the start of the content
            answer.reasoning.append(reasoning)
            answer.chars[-1] += len(reasoning)
    elif reasoning:
        answer.add(at_ns, "r", reasoning)
    elif delta.tool_calls or delta.function_call:
        text = msgspec.json.encode(delta.tool_calls or delta.function_call).decode()
        answer.add(at_ns, "t", text)
    elif delta.content == "" and delta.role is None:
        answer.add(at_ns, "s" if choice.finish_reason is None else "e", "")


def _completion_chunk(answer: Answer, at_ns: int, choice: _Choice) -> None:
    if choice.text:
        answer.add(at_ns, "c", choice.text)
    else:
        answer.add(at_ns, "s" if choice.finish_reason is None else "e", "")


def _note_usage(answer: Answer, usage: dict[str, Any]) -> None:
    """Counts so far; with continuous counting, how many tokens had come with each chunk."""
    answer.usage = usage
    told = usage.get("completion_tokens")
    if isinstance(told, int) and answer.chunk_ns:
        # What a chunk without a count brought is told with the next that has one.
        answer.tokens += [-1] * (len(answer.chunk_ns) - len(answer.tokens))
        if answer.tokens[-1] < 0:
            answer.tokens[-1] = told


def _responses_end(answer: Answer, response: dict[str, Any]) -> None:
    answer.is_done = True
    reason = (response.get("incomplete_details") or {}).get("reason")
    answer.finish_reason = "length" if reason == "max_output_tokens" else reason or "stop"
    usage = response.get("usage") or {}
    answer.usage = {
        "prompt_tokens": usage.get("input_tokens"),
        "completion_tokens": usage.get("output_tokens"),
        "prompt_tokens_details": usage.get("input_tokens_details"),
        "completion_tokens_details": usage.get("output_tokens_details"),
    }


def _note_broken(answer: Answer, data: bytes, error: Exception) -> None:
    answer.is_broken = True
    answer.error = answer.error or f"unreadable message {data[:80]!r}: {error}"


def _error_text(error: Any) -> str:
    if isinstance(error, dict):
        return str(error.get("message") or error)
    return str(error or "the stream told of an error without saying which")
