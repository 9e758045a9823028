"""POST /v1/chat/completions: from bytes to a running generation, and its answer back."""

import asyncio
import logging
from contextlib import closing
from typing import Any

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive, Scope, Send

from glimt.api.body import decode_body
from glimt.api.call import Call, log_failure
from glimt.api.departure import Departure
from glimt.api.errors import ClientLeft, Draining, error_event
from glimt.api.messages import check_media_counts, conversation_of
from glimt.api.params import sampling_params, with_length
from glimt.api.schema import KNOWN_FIELDS, ChatRequest, StreamOptions, check_supported
from glimt.api.state import ApiState
from glimt.api.stream import DONE, AnswerForm, EventWriter, whole_answer
from glimt.errors import InvalidRequest, ModelNotFound, RequestError
from glimt.frontend.answer import Answer, Delta, TextOptions
from glimt.frontend.prompt import Prompt
from glimt.frontend.reasoning import ReasoningTokens
from glimt.wire import SamplingParams

Headers = list[tuple[bytes, bytes]]

logger = logging.getLogger("glimt.api")

# Bodies above this are decoded in a thread: 4 MB of base64 take about 2 ms.
_INLINE_BYTES = 256 * 2**10
_MAX_SHOWN_FIELDS = 16

_SSE = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # proxies would collect events
]

_decoder = msgspec.json.Decoder(ChatRequest)


async def chat_completions(state: ApiState, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer one chat request. Raises typed errors until the first byte is sent."""
    call: Call = scope["glimt.call"]
    if state.lifecycle.is_draining:
        raise Draining
    request, unknown = await _read(scope, receive)
    check_supported(request)
    _check_form(request)
    if request.model and request.model not in state.served_names:
        raise ModelNotFound(f"the model {request.model[:128]!r} is not served here", param="model")
    headers = _headers(state, request, unknown, call)
    departure = Departure(receive, send, state.clock, state.limits.max_stalled_s)
    async with departure:
        with closing(await _start(state, request, call, _salt(scope, request))) as answer:
            form = _form(state, request, call, answer.prompt)
            try:
                if request.stream:
                    await _stream(answer, form, headers, departure, send, call)
                else:
                    await _send_whole(answer, form, headers, departure, send)
            finally:
                call.facts.update(answer.facts())


async def _read(scope: Scope, receive: Receive) -> tuple[ChatRequest, tuple[str, ...]]:
    try:
        body = await Request(scope, receive).body()
    except ClientDisconnect:
        raise ClientLeft("the client left before its request was complete") from None
    if len(body) > _INLINE_BYTES:
        return await asyncio.to_thread(decode_body, body, _decoder, KNOWN_FIELDS)
    return decode_body(body, _decoder, KNOWN_FIELDS)


def _check_form(request: ChatRequest) -> None:
    """Fields that contradict each other."""
    options = request.stream_options
    if options is not None and not request.stream:
        raise InvalidRequest("stream_options needs stream to be true", param="stream_options")
    if options is not None and options.continuous_usage_stats and not options.include_usage:
        raise InvalidRequest(
            "continuous_usage_stats needs include_usage to be true",
            param="stream_options.continuous_usage_stats",
        )


def _headers(
    state: ApiState, request: ChatRequest, unknown: tuple[str, ...], call: Call
) -> Headers:
    """Fields without effect are named in a header and in the log, never dropped in silence."""
    ignored = list(unknown)
    if request.priority and not state.priority_policy:
        ignored.append("priority")
    if not ignored:
        return []
    shown = [name[:64] for name in ignored[:_MAX_SHOWN_FIELDS]]
    call.facts["ignored_fields"] = ",".join(shown)
    value = ",".join(name.encode("ascii", "backslashreplace").decode() for name in shown)
    safe = "".join(char if " " < char < "\x7f" else "?" for char in value)
    return [(b"x-glimt-ignored-fields", safe.encode())]


def _salt(scope: Scope, request: ChatRequest) -> bytes:
    """Separates caches: by the request's own wish, and clients with different keys in any case."""
    tenant: bytes = scope.get("glimt.tenant", b"")
    return tenant + (request.cache_salt or "").encode("utf-8", "surrogatepass")


async def _start(state: ApiState, request: ChatRequest, call: Call, salt: bytes) -> Answer:
    """Make the prompt and submit it; all that can be refused without media is refused before."""
    n = request.n or 1
    with state.client.preparing(n):
        info = state.client.info
        sampling = sampling_params(
            request,
            state.defaults,
            info,
            fresh_seed=lambda: state.seeds.getrandbits(63),
            encode=state.tokenizer.encode_text,
        )
        conversation = conversation_of(
            request.messages,
            template_kwargs=_template_kwargs(state, request),
            add_generation_prompt=request.add_generation_prompt,
        )
        check_media_counts(conversation, max_images=state.max_images, max_videos=state.max_videos)
        prompt = await state.renderer.render(conversation, state.media, cache_salt=salt)
    try:
        sampling = with_length(
            sampling,
            request,
            state.defaults,
            num_prompt_tokens=prompt.num_tokens,
            max_model_len=info.max_model_len,
        )
    except RequestError:
        prompt.release()
        raise
    generation = state.client.generate(
        prompt, sampling, n=n, priority=request.priority, cache_salt=salt
    )
    state.metrics.observe_request(
        prompt_tokens=prompt.num_tokens, max_tokens=sampling.max_tokens, n=n
    )
    call.facts["media"] = len(conversation.media)
    if state.log_requests:
        _log_start(call, request, prompt, sampling)
    return Answer(
        generation,
        prompt,
        sampling,
        n=n,
        options=_text_options(request, state),
        tokenizer=state.tokenizer,
        clock=state.clock,
        arrival_s=call.arrival_s,
        metrics=state.metrics,
    )


def _log_start(call: Call, request: ChatRequest, prompt: Prompt, sampling: SamplingParams) -> None:
    """What was asked for, without a word of what was said (stop strings are the client's text)."""
    fields = {
        "id": call.id,
        "label": call.label,
        "stream": bool(request.stream),
        "n": request.n or 1,
        "messages": len(request.messages),
        "prompt_tokens": prompt.num_tokens,
        "media_tokens": prompt.num_media_tokens,
        "sampling": msgspec.json.encode(sampling).decode(),
    }
    logger.info("request started", extra={"fields": fields})


def _template_kwargs(state: ApiState, request: ChatRequest) -> dict[str, Any]:
    """The operator's, then the request's, then the field that has a name of its own."""
    kwargs = {**state.template_kwargs, **(request.chat_template_kwargs or {})}
    if request.reasoning_effort is not None:
        kwargs["reasoning_effort"] = request.reasoning_effort
    return kwargs


def _text_options(request: ChatRequest, state: ApiState) -> TextOptions:
    stop = [request.stop] if isinstance(request.stop, str) else request.stop or []
    return TextOptions(
        stop=tuple(stop),
        include_stop=request.include_stop_str_in_output,
        skip_special_tokens=request.skip_special_tokens,
        include_reasoning=request.include_reasoning,
        reasoning=ReasoningTokens.of(state.tokenizer) if state.parse_reasoning else None,
    )


def _form(state: ApiState, request: ChatRequest, call: Call, prompt: Prompt) -> AnswerForm:
    options = request.stream_options or StreamOptions()
    return AnswerForm(
        id=f"chatcmpl-{call.id}",
        created=int(state.wall_clock()),
        model=state.served_names[0],
        num_choices=request.n or 1,
        with_logprobs=bool(request.logprobs),
        with_token_ids=bool(request.return_token_ids),
        with_reasoning=request.include_reasoning,
        prompt_token_ids=tuple(prompt.token_ids.tolist()) if request.return_token_ids else (),
        tokens_as_ids=bool(request.return_tokens_as_token_ids),
        include_usage=options.include_usage or state.force_include_usage,
        continuous_usage=options.continuous_usage_stats or state.force_include_usage,
        cached_tokens=state.prompt_tokens_details,
        token_bytes=state.tokenizer.token_bytes,
    )


async def _stream(
    answer: Answer,
    form: AnswerForm,
    headers: Headers,
    departure: Departure,
    send: Send,
    call: Call,
) -> None:
    """Server-sent events. The head waits for the first deltas, so that whatever fails until then
    has a status of its own; later failures are an event, and leave out the finish_reason."""
    deltas = await answer.receive()
    writer = EventWriter(form)
    await send({"type": "http.response.start", "status": 200, "headers": [*_SSE, *headers]})
    try:
        while not answer.is_complete:
            if events := writer.events(deltas, answer):
                await departure.send(events)
            deltas = await answer.receive()
        end = writer.events(deltas, answer) + writer.end(answer.usage)
    except Exception as error:
        log_failure(error, call)
        end = error_event(error, call.id) + DONE
    await departure.send(end, is_last=True)


async def _send_whole(
    answer: Answer, form: AnswerForm, headers: Headers, departure: Departure, send: Send
) -> None:
    deltas: list[Delta] = []
    while new := await answer.receive():
        deltas += new
    body = msgspec.json.encode(whole_answer(form, deltas, answer.usage))
    length = (b"content-length", str(len(body)).encode())
    head = [(b"content-type", b"application/json"), length, *headers]
    await send({"type": "http.response.start", "status": 200, "headers": head})
    await departure.send(body, is_last=True)
