"""POST /v1/completions: texts and token ids continued as they are, without a chat template."""

from contextlib import ExitStack

import msgspec
from starlette.types import Receive, Scope, Send

from glimt.api.answering import (
    check_form,
    check_model,
    ignored_header,
    read_request,
    refuse_if_closed,
    salt_of,
    send_answer,
    take_label,
)
from glimt.api.call import Call
from glimt.api.chat import answer_form, sampling_of, submit_prompt, without_effect
from glimt.api.completions_schema import (
    KNOWN_FIELDS,
    CompletionRequest,
    as_chat,
    check_supported,
    prompts_of,
)
from glimt.api.completions_stream import CompletionWriter, Echo
from glimt.api.departure import Departure
from glimt.api.params import repetition_rule, truncation
from glimt.api.schema import ChatRequest
from glimt.api.state import ApiState
from glimt.errors import InvalidRequest
from glimt.frontend.answer import Answer, TextOptions
from glimt.frontend.answer_group import AnswerGroup
from glimt.frontend.prompt import Prompt

_decoder = msgspec.json.Decoder(CompletionRequest)


async def completions(state: ApiState, scope: Scope, receive: Receive, send: Send) -> None:
    """Continue each prompt. Raises typed errors until the first byte is sent."""
    call: Call = scope["glimt.call"]
    refuse_if_closed(state)
    request, ignored = await read_request(state, scope, receive, _decoder, KNOWN_FIELDS)
    _check(state, request)
    chat = as_chat(request)
    take_label(call, chat)
    headers = ignored_header([*ignored, *without_effect(state, chat)], call)
    departure = Departure(receive, send, state.clock, state.limits.max_stalled_s)
    async with departure:
        prompts = prompts_of(request)
        answers = await _start(state, request, chat, prompts, call, salt_of(scope, chat.cache_salt))
        form = answer_form(state, chat, call, "cmpl-", ())
        echoes = [
            _echo(state, request, prompt, answer.prompt)
            for prompt, answer in zip(prompts, answers, strict=True)
        ]
        writer = CompletionWriter(
            form,
            echoes,
            hides_answer=request.max_tokens == 0,
            num_top=request.logprobs or 0,
            with_prompt_logprobs=request.prompt_logprobs is not None,
        )
        group = AnswerGroup(answers, chat.n or 1)
        stream = bool(request.stream)
        await send_answer(state, group, writer, headers, departure, call, stream=stream)


def _check(state: ApiState, request: CompletionRequest) -> None:
    check_supported(request)
    check_form(request)
    check_model(state, request.model)
    if request.max_tokens == 0 and not request.echo:
        raise InvalidRequest("max_tokens 0 gives nothing without echo", param="max_tokens")


async def _start(
    state: ApiState,
    request: CompletionRequest,
    chat: ChatRequest,
    prompts: list[str | list[int]],
    call: Call,
    salt: bytes,
) -> list[Answer]:
    """All prompts on their way, or none."""
    with state.client.preparing(len(prompts) * (chat.n or 1)):
        limit = state.client.info.max_logprobs
        if (request.logprobs or 0) > limit:
            raise InvalidRequest(
                f"logprobs is {request.logprobs}, the most allowed is {limit}", param="logprobs"
            )
        sampling = await sampling_of(state, chat)
        max_tokens = truncation(chat, state.client.info)
        made = [
            await state.renderer.render_text(
                prompt,
                add_special_tokens=request.add_special_tokens,
                max_tokens=max_tokens,
            )
            for prompt in prompts
        ]
    stop = [chat.stop] if isinstance(chat.stop, str) else chat.stop or []
    options = TextOptions(
        stop=tuple(stop),
        include_stop=chat.include_stop_str_in_output,
        skip_special_tokens=chat.skip_special_tokens,
        repetition=repetition_rule(chat),
    )
    answers: list[Answer] = []
    with ExitStack() as undo:
        for prompt in made:
            answer = submit_prompt(
                state, chat, prompt, sampling, call, salt, options, prompt_field="prompt"
            )
            undo.callback(answer.close)
            answers.append(answer)
        undo.pop_all()
    return answers


def _echo(
    state: ApiState, request: CompletionRequest, given: str | list[int], prompt: Prompt
) -> Echo:
    token_ids = tuple(prompt.token_ids.tolist())
    if not request.echo:
        return Echo(token_ids=token_ids)
    if not isinstance(given, str):
        return Echo(token_ids=token_ids, text=state.tokenizer.decode(given), is_shown=True)
    num_hidden = len(state.renderer.text_start) if request.add_special_tokens else 0
    return Echo(token_ids=token_ids, text=given, is_shown=True, num_hidden=num_hidden)
