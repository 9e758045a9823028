"""POST /v1/chat/completions: from bytes to a running generation, and its answer back."""

import logging

import msgspec
from msgspec.structs import replace
from starlette.types import Receive, Scope, Send

from glimt.api.answer_grammar import answer_grammar
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
from glimt.api.departure import Departure
from glimt.api.fields import StreamOptions
from glimt.api.media_wishes import media_settings
from glimt.api.messages import check_media_counts, conversation_of
from glimt.api.params import (
    adds_generation_prompt,
    check_budget,
    repetition_rule,
    sampling_params,
    template_kwargs,
    truncation,
    unread_wishes,
    with_length,
)
from glimt.api.schema import KNOWN_FIELDS, ChatRequest, check_supported
from glimt.api.state import ApiState
from glimt.api.stream import AnswerForm, ChatWriter
from glimt.api.tools import (
    call_rules,
    check_tools,
    tools_in_prompt,
    with_tools,
)
from glimt.errors import GlimtError, InvalidRequest, Unsupported
from glimt.frontend.answer import Answer, TextOptions
from glimt.frontend.engine_view import COPY_HEADER
from glimt.frontend.prompt import Conversation, Prompt
from glimt.frontend.reasoning import ReasoningTokens
from glimt.frontend.thoughts import with_thoughts
from glimt.wire import SamplingParams

logger = logging.getLogger("glimt.api")

_decoder = msgspec.json.Decoder(ChatRequest)


async def chat_completions(state: ApiState, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer one chat request. Raises typed errors until the first byte is sent."""
    call: Call = scope["glimt.call"]
    refuse_if_closed(state)
    request, ignored = await read_request(state, scope, receive, _decoder, KNOWN_FIELDS)
    check_chat(state, request)
    take_label(call, request)
    headers = ignored_header([*ignored, *without_effect(state, request)], call)
    departure = Departure(receive, send, state.clock, state.limits.max_stalled_s)
    async with departure:
        answer = await start_chat(state, request, call, salt_of(scope, request.cache_salt))
        token_ids = tuple(answer.prompt.token_ids.tolist()) if request.return_token_ids else ()
        writer = ChatWriter(answer_form(state, request, call, "chatcmpl-", token_ids))
        stream = bool(request.stream)
        await send_answer(state, answer, writer, headers, departure, call, stream=stream)


def check_chat(state: ApiState, request: ChatRequest) -> None:
    """Raises a RequestError for what can be refused by looking at the request alone."""
    check_supported(request)
    check_form(request)
    check_model(state, request.model)
    check_tools(request, state.tools)
    check_template(state, request)
    check_budget(request, parses=state.parse_reasoning)


def check_template(state: ApiState, request: ChatRequest) -> None:
    """Raises Unsupported for a template from a client that is not trusted with one."""
    if request.chat_template is not None and not state.trust_request_template:
        raise Unsupported(
            "chat_template needs a server started with --trust-request-chat-template",
            param="chat_template",
        )


def without_effect(state: ApiState, request: ChatRequest) -> list[str]:
    """Known fields that do nothing with this server's settings and checkpoint."""
    names = ["priority"] if request.priority and not state.priority_policy else []
    if request.chat_template is None:
        names += unread_wishes(request, state.renderer.variables)
    return names


async def start_chat(
    state: ApiState, request: ChatRequest, call: Call, salt: bytes, *, fits: bool = False
) -> Answer:
    """Make the prompt and submit it; all that can be refused without media is refused before.

    `fits`: an answer that may be longer than the context has room for ends there.
    """
    n = request.n or 1
    with state.client.preparing(n):
        sampling = await sampling_of(state, request)
        options = _text_options(request, state)
        conversation = conversation_in(state, request)
        prompt = await state.renderer.render(
            conversation,
            state.media,
            cache_salt=salt,
            max_tokens=truncation(request, state.client.info),
        )
    call.facts["media"] = len(conversation.media)
    return submit_prompt(state, request, prompt, sampling, call, salt, options, fits=fits)


async def sampling_of(state: ApiState, request: ChatRequest) -> SamplingParams:
    """How the answer is drawn, but for its length.

    Raises InvalidRequest, Unsupported, BadGrammar, Overloaded, EngineDied.
    """
    sampling = sampling_params(
        request,
        state.defaults,
        state.client.info,
        fresh_seed=lambda: state.seeds.getrandbits(63),
        encode=state.tokenizer.encode_text,
    )
    sampling = with_tools(sampling, request, state.tools)
    grammar = await answer_grammar(request, state.tools, state.grammars)
    return sampling if grammar is None else replace(sampling, grammar=grammar)


def conversation_in(state: ApiState, request: ChatRequest) -> Conversation:
    """The request's messages, ready to be rendered. Raises InvalidRequest, Unsupported."""
    conversation = conversation_of(
        request.messages,
        template_kwargs=template_kwargs(state.template_kwargs, request),
        add_generation_prompt=adds_generation_prompt(request),
        tools=tools_in_prompt(request, state.tools),
        settings=media_settings(
            request.mm_processor_kwargs, request.media_io_kwargs, state.media_settings
        ),
        continue_final=request.continue_final_message,
        template=request.chat_template,
    )
    check_media_counts(conversation, max_images=state.max_images, max_videos=state.max_videos)
    return conversation


def fitted(
    state: ApiState,
    request: ChatRequest,
    prompt: Prompt,
    sampling: SamplingParams,
    reasoning: ReasoningTokens | None,
    *,
    prompt_field: str = "messages",
    fits: bool = False,
) -> SamplingParams:
    """How the answer to this prompt is drawn: its length, and what its thoughts are free of and
    bound to. Raises PromptTooLong, InvalidRequest."""
    sampling = with_length(
        sampling,
        request,
        state.defaults,
        num_prompt_tokens=prompt.num_tokens,
        max_model_len=state.client.info.max_model_len,
        prompt_field=prompt_field,
        fits=fits,
    )
    if reasoning is None:
        return sampling
    budget = request.thinking_token_budget
    return with_thoughts(sampling, reasoning, state.tokenizer, prompt.token_ids, budget=budget)


def reasoning_of(state: ApiState) -> ReasoningTokens | None:
    """The marks of thoughts, where these are told apart."""
    return ReasoningTokens.of(state.tokenizer) if state.parse_reasoning else None


def submit_prompt(
    state: ApiState,
    request: ChatRequest,
    prompt: Prompt,
    sampling: SamplingParams,
    call: Call,
    salt: bytes,
    options: TextOptions,
    *,
    prompt_field: str = "messages",
    fits: bool = False,
) -> Answer:
    """Hand a prompt to an engine; takes its leases over. Raises PromptTooLong, Overloaded."""
    n = request.n or 1
    try:
        copy = _copy_of(call)
        sampling = fitted(
            state,
            request,
            prompt,
            sampling,
            options.reasoning,
            prompt_field=prompt_field,
            fits=fits,
        )
    except GlimtError:
        prompt.release()
        raise
    generation = state.client.generate(
        prompt, sampling, n=n, priority=request.priority, cache_salt=salt, copy=copy
    )
    state.metrics.observe_request(
        prompt_tokens=prompt.num_tokens, max_tokens=sampling.max_tokens, n=n
    )
    if state.log_requests:
        _log_start(call, request, prompt, sampling)
    return Answer(
        generation,
        prompt,
        sampling,
        n=n,
        options=options,
        tokenizer=state.tokenizer,
        clock=state.clock,
        arrival_s=call.arrival_s,
        metrics=state.metrics,
    )


def _copy_of(call: Call) -> int | None:
    """The copy of the model that the client asks for. Raises InvalidRequest."""
    if call.copy is None:
        return None
    if not (call.copy.isascii() and call.copy.isdigit() and len(call.copy) < 10):
        text = f"{COPY_HEADER} must be the number of a copy, 0 or more"
        raise InvalidRequest(text, param=COPY_HEADER)
    return int(call.copy)


def _log_start(call: Call, request: ChatRequest, prompt: Prompt, sampling: SamplingParams) -> None:
    """What was asked for, without a word of what was said (stop strings and grammars are the
    client's text)."""
    fields = {
        "id": call.id,
        "label": call.label,
        "stream": bool(request.stream),
        "n": request.n or 1,
        "messages": len(request.messages),
        "prompt_tokens": prompt.num_tokens,
        "media_tokens": prompt.num_media_tokens,
        "grammar": sampling.grammar is not None,
        "sampling": msgspec.json.encode(replace(sampling, grammar=None)).decode(),
    }
    logger.info("request started", extra={"fields": fields})


def _text_options(request: ChatRequest, state: ApiState) -> TextOptions:
    stop = [request.stop] if isinstance(request.stop, str) else request.stop or []
    return TextOptions(
        stop=tuple(stop),
        include_stop=request.include_stop_str_in_output,
        skip_special_tokens=request.skip_special_tokens,
        include_reasoning=request.include_reasoning,
        repetition=repetition_rule(request),
        reasoning=reasoning_of(state),
        boxes=state.boxes,
        calls=call_rules(request, state.tools, lambda: f"call_{state.random.getrandbits(96):024x}"),
    )


def answer_form(
    state: ApiState, request: ChatRequest, call: Call, kind: str, prompt_token_ids: tuple[int, ...]
) -> AnswerForm:
    """What the answer to this request looks like; its id begins with `kind`."""
    options = request.stream_options or StreamOptions()
    last = request.messages[-1] if request.messages else None
    echo = last.content if request.echo and last and last.role == "assistant" else None
    return AnswerForm(
        id=f"{kind}{call.id}",
        created=int(state.wall_clock()),
        model=state.served_names[0],
        role=state.response_role,
        num_choices=request.n or 1,
        with_logprobs=bool(request.logprobs),
        with_token_ids=bool(request.return_token_ids),
        with_reasoning=request.include_reasoning,
        with_boxes=state.boxes == "structured",
        with_reasoning_content=state.reasoning_content,
        echo=echo if isinstance(echo, str) else "",
        prompt_token_ids=prompt_token_ids,
        tokens_as_ids=bool(request.return_tokens_as_token_ids),
        include_usage=options.include_usage or state.force_include_usage,
        continuous_usage=options.continuous_usage_stats or state.force_include_usage,
        cached_tokens=state.prompt_tokens_details,
        token_bytes=state.tokenizer.token_bytes,
    )
