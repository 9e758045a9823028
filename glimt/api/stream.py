"""Deltas of an answer -> server-sent events, or, folded, the one body of an unstreamed answer.

The order of a stream: the role together with the first text of each choice (never before it, so
that nobody measures a role as a token), deltas of text and calls, a last chunk with an empty delta
and the finish_reason, one usage chunk without choices if it was asked for, [DONE]. A stream that
fails after its first byte ends with an error event and [DONE], and has no finish_reason.

An event is put together from ready-made bytes: its text is the only thing encoded per token.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import msgspec

from glimt.api.answering import Readable
from glimt.api.completion import (
    AnswerCall,
    AnswerFunction,
    AnswerMessage,
    Box,
    ChatCompletion,
    Choice,
    ChoiceLogprobs,
    ChunkBox,
    CompletionDetails,
    LogprobToken,
    PromptDetails,
    PromptLogprob,
    PromptLogprobs,
    TokenLogprob,
    Usage,
)
from glimt.api.errors import error_event
from glimt.frontend.answer import Delta, UsageCounts, fold_deltas
from glimt.frontend.boxes import coordinates
from glimt.wire import TokenLogprobs

DONE = b"data: [DONE]\n\n"
_NO_MORE = b'},"logprobs":null,"finish_reason":null}'
_LOWEST_LOGPROB = -9999.0  # stands for minus infinity, which JSON does not have

_encode = msgspec.json.Encoder().encode

TokenBytes = Callable[[int], bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerForm:
    """What the answer to one request looks like."""

    id: str
    created: int  # seconds since 1970
    model: str
    role: str = "assistant"
    num_choices: int = 1
    with_logprobs: bool = False
    with_token_ids: bool = False
    with_reasoning: bool = True
    with_boxes: bool = False  # a list of them, which may be empty
    with_reasoning_content: bool = True  # the thinking under its older name, too
    echo: str = ""  # stands before the answer of each choice
    prompt_token_ids: tuple[int, ...] = ()  # shown if with_token_ids
    tokens_as_ids: bool = False  # token_id:123 in place of a token's text
    include_usage: bool = False
    continuous_usage: bool = False
    cached_tokens: bool = True  # in usage.prompt_tokens_details
    token_bytes: TokenBytes


class ChatWriter:
    """Writes the answer of a chat request. Feed it deltas in order."""

    def __init__(self, form: AnswerForm) -> None:
        self._form = form
        head = _encode(
            {
                "id": form.id,
                "object": "chat.completion.chunk",
                "created": form.created,
                "model": form.model,
            }
        )
        self._head = b"data: " + head[:-1] + b',"choices":['
        self._is_new = [True] * form.num_choices
        self._num_boxes = [0] * form.num_choices
        self._has_role = [False] * form.num_choices
        self._content_heads = [
            self._head + b'{"index":%d,"delta":{"content":' % choice
            for choice in range(form.num_choices)
        ]

    def events(self, deltas: Iterable[Delta], answer: Readable) -> bytes:
        """The events of the deltas, which are the newest of `answer`."""
        tail = b"]}\n\n"
        if self._form.continuous_usage:
            tail = b'],"usage":' + _encode(usage_of(answer.usage, self._form)) + b"}\n\n"
        parts: list[bytes] = []
        for delta in deltas:
            if self._is_only_content(delta):
                parts += (self._content_heads[delta.choice], _encode(delta.content), _NO_MORE, tail)
            else:
                self._add_events(parts, delta, tail)
        return b"".join(parts)

    def _is_only_content(self, delta: Delta) -> bool:
        """Nearly all deltas are."""
        return (
            delta.finish_reason is None
            and delta.content != ""
            and not (delta.reasoning or delta.calls or delta.boxes)
            and not (delta.logprobs or self._form.with_token_ids)
            and not self._is_new[delta.choice]
        )

    def end(self, usage: UsageCounts) -> bytes:
        """The usage chunk, if asked for, and [DONE]."""
        if not self._form.include_usage:
            return DONE
        return b"".join(
            (self._head, b'],"usage":', _encode(usage_of(usage, self._form)), b"}\n\n", DONE)
        )

    def failure(self, error: Exception, request_id: str) -> bytes:
        """An error event and [DONE]."""
        return error_event(error, request_id) + DONE

    def whole(self, deltas: Iterable[Delta], answer: Readable) -> ChatCompletion:
        """The unstreamed answer."""
        return whole_answer(self._form, deltas, answer)

    def _add_events(self, parts: list[bytes], delta: Delta, tail: bytes) -> None:
        index = b'{"index":%d,"delta":{' % delta.choice
        if self._form.echo and not self._has_role[delta.choice]:
            echo = _encode(self._form.echo)
            parts += (self._head, index, self._role(delta.choice), b'"content":', echo, _NO_MORE)
            parts.append(tail)
        for number, body in enumerate(self._bodies(delta)):
            is_first, is_new = number == 0, self._is_new[delta.choice]
            self._is_new[delta.choice] = False
            role = self._role(delta.choice)
            # Log-probabilities and ids are of the whole delta: they come once.
            logprobs = self._logprobs(delta) if is_first else b"null"
            parts += (self._head, index, role, body, b'},"logprobs":', logprobs)
            parts.append(b',"finish_reason":null')
            if self._form.with_token_ids and is_first:
                self._add_token_ids(parts, delta, is_new)
            parts += (b"}", tail)
        if delta.finish_reason is not None:
            parts += (self._head, index, b'},"logprobs":null,"finish_reason":')
            parts += (_encode(delta.finish_reason), b',"stop_reason":', _encode(delta.stop_reason))
            parts += (b"}", tail)

    def _bodies(self, delta: Delta) -> Iterator[bytes]:
        """The insides of the `delta` objects that tell what a delta has: text, boxes, then calls, a
        call's name in an object of its own, since some clients read no more of the first."""
        shows_tokens = bool(delta.logprobs) or (self._form.with_token_ids and delta.token_ids)
        is_new = self._is_new[delta.choice]
        must_show = shows_tokens or (is_new and delta.finish_reason is not None)
        if delta.content or delta.reasoning or (must_show and not (delta.calls or delta.boxes)):
            yield self._text(delta)
        if delta.boxes:
            yield b'"boxes":' + _encode(self._numbered(delta))
        for call in delta.calls:
            head = b'"tool_calls":[{"index":%d,' % call.index
            if call.name:
                names = _encode(call.id), _encode(call.name)
                yield head + (
                    b'"id":%b,"type":"function","function":{"name":%b,"arguments":""}}]' % names
                )
            if call.arguments:
                yield head + b'"function":{"arguments":%b}}]' % _encode(call.arguments)

    def _numbered(self, delta: Delta) -> list[ChunkBox]:
        first = self._num_boxes[delta.choice]
        self._num_boxes[delta.choice] += len(delta.boxes)
        return [
            ChunkBox(index=index, text=text, coordinates=coordinates(text))
            for index, text in enumerate(delta.boxes, start=first)
        ]

    def _text(self, delta: Delta) -> bytes:
        """Both names of the thinking; clients read either."""
        texts: list[bytes] = []
        if delta.reasoning:
            reasoning = _encode(delta.reasoning)
            texts.append(b'"reasoning":' + reasoning)
            if self._form.with_reasoning_content:
                texts.append(b'"reasoning_content":' + reasoning)
        if delta.content or not delta.reasoning:
            texts.append(b'"content":' + _encode(delta.content))
        return b",".join(texts)

    def _role(self, choice: int) -> bytes:
        """Told once, with the first words of a choice."""
        if self._has_role[choice]:
            return b""
        self._has_role[choice] = True
        return b'"role":' + _encode(self._form.role) + b","

    def _logprobs(self, delta: Delta) -> bytes:
        if not delta.logprobs:
            return b"null"
        return _encode(logprobs_of(delta.logprobs, self._form))

    def _add_token_ids(self, parts: list[bytes], delta: Delta, is_new: bool) -> None:
        parts += (b',"token_ids":', _encode(delta.token_ids))
        if is_new:
            parts += (b',"prompt_token_ids":', _encode(self._form.prompt_token_ids))


def whole_answer(form: AnswerForm, deltas: Iterable[Delta], answer: Readable) -> ChatCompletion:
    """The same deltas folded into one body."""
    by_choice: list[list[Delta]] = [[] for _ in range(form.num_choices)]
    for delta in deltas:
        by_choice[delta.choice].append(delta)
    return ChatCompletion(
        id=form.id,
        created=form.created,
        model=form.model,
        choices=[_choice(form, index, folded) for index, folded in enumerate(by_choice)],
        usage=usage_of(answer.usage, form),
        prompt_logprobs=prompt_logprobs_of(answer.prompt_logprobs[0], form),
        prompt_token_ids=form.prompt_token_ids if form.with_token_ids else msgspec.UNSET,
    )


def _choice(form: AnswerForm, index: int, deltas: list[Delta]) -> Choice:
    logprobs = tuple(each for delta in deltas for each in delta.logprobs)
    token_ids = tuple(each for delta in deltas for each in delta.token_ids)
    return Choice(
        index=index,
        message=_message(form, deltas),
        logprobs=logprobs_of(logprobs, form) if form.with_logprobs else None,
        finish_reason=deltas[-1].finish_reason if deltas else None,
        stop_reason=deltas[-1].stop_reason if deltas else None,
        token_ids=token_ids if form.with_token_ids else msgspec.UNSET,
    )


def _message(form: AnswerForm, deltas: list[Delta]) -> AnswerMessage:
    reply = fold_deltas(deltas)
    reasoning = (reply.reasoning if form.with_reasoning else None) or None
    calls = [
        AnswerCall(id=call.id, function=AnswerFunction(name=call.name, arguments=call.arguments))
        for call in reply.calls
    ]
    content = form.echo + reply.content
    return AnswerMessage(
        role=form.role,
        content=None if calls and not content else content,
        reasoning=reasoning,
        reasoning_content=reasoning if form.with_reasoning_content else msgspec.UNSET,
        tool_calls=calls or msgspec.UNSET,
        boxes=shown_boxes(reply.boxes) if form.with_boxes else msgspec.UNSET,
    )


def shown_boxes(texts: Iterable[str]) -> list[Box]:
    """Boxes as answers of every route show them."""
    return [Box(text=text, coordinates=coordinates(text)) for text in texts]


def usage_of(counts: UsageCounts, form: AnswerForm) -> Usage:
    """The `usage` object."""
    return Usage(
        prompt_tokens=counts.prompt_tokens,
        completion_tokens=counts.completion_tokens,
        total_tokens=counts.prompt_tokens + counts.completion_tokens,
        prompt_tokens_details=PromptDetails(counts.cached_tokens) if form.cached_tokens else None,
        completion_tokens_details=CompletionDetails(counts.reasoning_tokens),
    )


def prompt_logprobs_of(
    logprobs: Iterable[TokenLogprobs] | None, form: AnswerForm
) -> PromptLogprobs | msgspec.UnsetType:
    """The `prompt_logprobs` of an answer; unset if they were not asked for."""
    if logprobs is None:
        return msgspec.UNSET
    return [None, *(_prompt_logprob(each, form) for each in logprobs)]


def _prompt_logprob(logprobs: TokenLogprobs, form: AnswerForm) -> dict[str, PromptLogprob]:
    ranked = [(token_id, value, rank) for rank, (token_id, value) in enumerate(logprobs.top, 1)]
    chosen = (logprobs.token_id, logprobs.logprob, logprobs.rank)
    return {
        str(token_id): PromptLogprob(shown_logprob(value), rank, shown_token(token_id, form))
        for token_id, value, rank in (chosen, *ranked)
    }


def logprobs_of(logprobs: Iterable[TokenLogprobs], form: AnswerForm) -> ChoiceLogprobs:
    """Log-probabilities with the tokens' texts and bytes."""
    return ChoiceLogprobs([_token_logprob(each, form) for each in logprobs])


def _token_logprob(logprobs: TokenLogprobs, form: AnswerForm) -> TokenLogprob:
    top = [_logprob_token(token_id, value, form) for token_id, value in logprobs.top]
    chosen = _logprob_token(logprobs.token_id, logprobs.logprob, form)
    return TokenLogprob(chosen.token, chosen.logprob, chosen.bytes, top)


def _logprob_token(token_id: int, logprob: float, form: AnswerForm) -> LogprobToken:
    raw = list(form.token_bytes(token_id))
    return LogprobToken(shown_token(token_id, form), shown_logprob(logprob), raw)


def shown_token(token_id: int, form: AnswerForm) -> str:
    """A token's text, or its id where the request wants that."""
    if form.tokens_as_ids:
        return f"token_id:{token_id}"
    return form.token_bytes(token_id).decode("utf-8", "replace")


def shown_logprob(logprob: float) -> float:
    """A log-probability as JSON can hold it."""
    return max(logprob, _LOWEST_LOGPROB)
