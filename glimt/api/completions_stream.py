"""Deltas of continuations -> server-sent events or one body, in the shape of /v1/completions."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import msgspec
from msgspec import UNSET

from glimt.api.answering import Readable
from glimt.api.completions_schema import Completion, CompletionChoice, CompletionLogprobs
from glimt.api.errors import error_event
from glimt.api.stream import DONE, AnswerForm, shown_logprob, shown_token, usage_of
from glimt.frontend.answer import Delta, UsageCounts
from glimt.wire import TokenLogprobs


@dataclass(frozen=True, slots=True, kw_only=True)
class Echo:
    """What stands before a continuation."""

    text: str = ""
    prompt_token_ids: tuple[int, ...] = ()  # shown if the form says so


class CompletionWriter:
    """Writes the continuations of one request, those of a prompt one after the other.

    `echoes` [number of prompts]; `form.num_choices` is the number for each prompt. With
    `hides_answer` the prompts are all there is to see.
    """

    def __init__(self, form: AnswerForm, echoes: Sequence[Echo], *, hides_answer: bool) -> None:
        self._form = form
        self._echoes = echoes
        self._hides_answer = hides_answer
        self._num_chars = [0] * (form.num_choices * len(echoes))  # of text, so far
        self._is_new = [True] * len(self._num_chars)

    def events(self, deltas: Iterable[Delta], answer: Readable) -> bytes:
        """One event for each delta that says something."""
        events: list[bytes] = []
        for delta in deltas:
            choice = self._choice(delta.choice, [delta])
            if choice.text or choice.finish_reason or choice.logprobs or choice.token_ids:
                usage = answer.usage if self._form.continuous_usage else None
                events.append(_event(self._completion([choice], usage)))
        return b"".join(events)

    def end(self, usage: UsageCounts) -> bytes:
        """The usage, if asked for, and [DONE]."""
        if not self._form.include_usage:
            return DONE
        return _event(self._completion([], usage)) + DONE

    def failure(self, error: Exception, request_id: str) -> bytes:
        """An error event and [DONE]."""
        return error_event(error, request_id) + DONE

    def whole(self, deltas: Iterable[Delta], usage: UsageCounts) -> Completion:
        """All continuations in one body."""
        by_choice: list[list[Delta]] = [[] for _ in self._num_chars]
        for delta in deltas:
            by_choice[delta.choice].append(delta)
        choices = [self._choice(index, theirs) for index, theirs in enumerate(by_choice)]
        return self._completion(choices, usage)

    def _completion(self, choices: list[CompletionChoice], usage: UsageCounts | None) -> Completion:
        form = self._form
        if usage is not None and self._hides_answer:
            usage = usage._replace(completion_tokens=0)
        return Completion(
            id=form.id,
            created=form.created,
            model=form.model,
            choices=choices,
            usage=UNSET if usage is None else usage_of(usage, form),
        )

    def _choice(self, index: int, deltas: Sequence[Delta]) -> CompletionChoice:
        """Consecutive deltas of one choice as one piece of it."""
        is_new, self._is_new[index] = self._is_new[index], False
        echo = self._echoes[index // self._form.num_choices]
        text = echo.text if is_new else ""
        token_ids: tuple[int, ...] = ()
        logprobs: tuple[TokenLogprobs, ...] = ()
        if not self._hides_answer:
            text += "".join(delta.content for delta in deltas)
            token_ids = tuple(each for delta in deltas for each in delta.token_ids)
            logprobs = tuple(each for delta in deltas for each in delta.logprobs)
        shows_ids = self._form.with_token_ids
        piece = CompletionChoice(
            index=index,
            text=text,
            logprobs=self._logprobs(index, logprobs) if self._form.with_logprobs else None,
            finish_reason=deltas[-1].finish_reason if deltas else None,
            stop_reason=deltas[-1].stop_reason if deltas else None,
            token_ids=token_ids if shows_ids else UNSET,
            prompt_token_ids=echo.prompt_token_ids if shows_ids and is_new else UNSET,
        )
        if self._hides_answer and piece.finish_reason is not None:
            piece = msgspec.structs.replace(piece, finish_reason="length", stop_reason=None)
        return piece

    def _logprobs(self, index: int, logprobs: Iterable[TokenLogprobs]) -> CompletionLogprobs:
        shown = CompletionLogprobs(text_offset=[], tokens=[], token_logprobs=[], top_logprobs=[])
        for each in logprobs:
            token = shown_token(each.token_id, self._form)
            top = {shown_token(i, self._form): shown_logprob(value) for i, value in each.top}
            top.setdefault(token, shown_logprob(each.logprob))
            shown.text_offset.append(self._num_chars[index])
            shown.tokens.append(token)
            shown.token_logprobs.append(shown_logprob(each.logprob))
            shown.top_logprobs.append(top)
            self._num_chars[index] += len(token)
        return shown


def _event(completion: Completion) -> bytes:
    return b"data: " + msgspec.json.encode(completion) + b"\n\n"
