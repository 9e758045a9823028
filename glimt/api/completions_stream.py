"""Deltas of continuations -> server-sent events or one body, in the shape of /v1/completions."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import msgspec
from msgspec import UNSET

from glimt.api.answering import Readable
from glimt.api.completions_schema import Completion, CompletionChoice, CompletionLogprobs
from glimt.api.errors import error_event
from glimt.api.stream import (
    DONE,
    AnswerForm,
    prompt_logprobs_of,
    shown_logprob,
    shown_token,
    usage_of,
)
from glimt.frontend.answer import Delta, UsageCounts
from glimt.wire import TokenLogprobs


@dataclass(frozen=True, slots=True, kw_only=True)
class Echo:
    """A prompt, and how it stands before its continuations."""

    token_ids: tuple[int, ...]
    text: str = ""
    is_shown: bool = False
    num_hidden: int = 0  # tokens at the beginning that are not part of the text


class CompletionWriter:
    """Writes the continuations of one request, those of a prompt one after the other.

    `echoes` [number of prompts]; `form.num_choices` is the number for each prompt. With
    `hides_answer` the prompts are all there is to see. `num_top`: alternatives to each token.
    """

    def __init__(
        self,
        form: AnswerForm,
        echoes: Sequence[Echo],
        *,
        hides_answer: bool = False,
        num_top: int = 0,
        with_prompt_logprobs: bool = False,
    ) -> None:
        self._form = form
        self._echoes = echoes
        self._hides_answer = hides_answer
        self._num_top = num_top
        self._with_prompt_logprobs = with_prompt_logprobs
        self._num_chars = [0] * (form.num_choices * len(echoes))  # of text, so far
        self._is_new = [True] * len(self._num_chars)

    def events(self, deltas: Iterable[Delta], answer: Readable) -> bytes:
        """One event for each delta that says something."""
        events: list[bytes] = []
        for delta in deltas:
            choice = self._choice(delta.choice, [delta], answer)
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

    def whole(self, deltas: Iterable[Delta], answer: Readable) -> Completion:
        """All continuations in one body."""
        by_choice: list[list[Delta]] = [[] for _ in self._num_chars]
        for delta in deltas:
            by_choice[delta.choice].append(delta)
        choices = [self._choice(index, each, answer) for index, each in enumerate(by_choice)]
        return self._completion(choices, answer.usage)

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

    def _choice(self, index: int, deltas: Sequence[Delta], answer: Readable) -> CompletionChoice:
        """Consecutive deltas of one choice as one piece of it."""
        is_new, self._is_new[index] = self._is_new[index], False
        number = index // self._form.num_choices
        echo, judged = self._echoes[number], answer.prompt_logprobs[number]
        visible = () if self._hides_answer else deltas
        text = "".join(delta.content for delta in visible)
        token_ids = tuple(each for delta in visible for each in delta.token_ids)
        finish_reason = deltas[-1].finish_reason if deltas else None
        stop_reason = deltas[-1].stop_reason if deltas else None
        if self._hides_answer and finish_reason is not None:
            finish_reason, stop_reason = "length", None
        logprobs = None
        if self._form.with_logprobs:
            shown_prompt = judged if is_new and echo.is_shown else None
            logprobs = self._logprobs(index, echo, shown_prompt, visible)
        shows_ids = self._form.with_token_ids
        return CompletionChoice(
            index=index,
            text=echo.text + text if is_new else text,
            logprobs=logprobs,
            finish_reason=finish_reason,
            stop_reason=stop_reason,
            prompt_logprobs=prompt_logprobs_of(
                judged if self._with_prompt_logprobs else None, self._form
            ),
            token_ids=token_ids if shows_ids else UNSET,
            prompt_token_ids=echo.token_ids if shows_ids and is_new else UNSET,
        )

    def _logprobs(
        self,
        index: int,
        echo: Echo,
        prompt: Sequence[TokenLogprobs] | None,
        deltas: Sequence[Delta],
    ) -> CompletionLogprobs | None:
        """Of the prompt, unless it is None, and of the deltas' tokens; None if there are none."""
        shown = CompletionLogprobs(text_offset=[], tokens=[], token_logprobs=[], top_logprobs=[])
        if prompt is not None:
            first = shown_token(echo.token_ids[0], self._form)
            self._add(index, shown, first, None, None, is_hidden=echo.num_hidden > 0)
            for place, each in enumerate(prompt, 1):
                self._judge(index, shown, each, is_hidden=place < echo.num_hidden)
        for delta in deltas:
            for each in delta.logprobs:
                self._judge(index, shown, each)
        return shown if shown.tokens else None

    def _judge(
        self,
        index: int,
        shown: CompletionLogprobs,
        logprobs: TokenLogprobs,
        *,
        is_hidden: bool = False,
    ) -> None:
        form = self._form
        token = shown_token(logprobs.token_id, form)
        likeliest = logprobs.top[: self._num_top]
        top = {shown_token(token_id, form): shown_logprob(value) for token_id, value in likeliest}
        logprob = shown_logprob(logprobs.logprob)
        top.setdefault(token, logprob)
        self._add(index, shown, token, logprob, top, is_hidden=is_hidden)

    def _add(
        self,
        index: int,
        shown: CompletionLogprobs,
        token: str,
        logprob: float | None,
        top: dict[str, float] | None,
        *,
        is_hidden: bool,
    ) -> None:
        shown.text_offset.append(self._num_chars[index])
        shown.tokens.append(token)
        shown.token_logprobs.append(logprob)
        shown.top_logprobs.append(top)
        self._num_chars[index] += 0 if is_hidden else len(token)


def _event(completion: Completion) -> bytes:
    return b"data: " + msgspec.json.encode(completion) + b"\n\n"
