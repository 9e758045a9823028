"""POST /tokenize, /detokenize and /v1/chat/completions/render: prompts made, and nothing generated.

The tokens are those that the same request would be answered from: templates, tools, images and
videos included.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta
from starlette.types import Receive, Scope, Send

from glimt.api.answering import (
    check_model,
    ignored_header,
    read_request,
    refuse_if_closed,
    salt_of,
    send_json,
)
from glimt.api.call import Call
from glimt.api.chat import (
    check_chat,
    check_template,
    conversation_in,
    fitted,
    reasoning_of,
    sampling_of,
    without_effect,
)
from glimt.api.departure import Departure
from glimt.api.fields import TokenId
from glimt.api.known import KnownFields
from glimt.api.media_wishes import MediaIoKwargs, ProcessorKwargs
from glimt.api.messages import Message
from glimt.api.params import truncation
from glimt.api.schema import KNOWN_FIELDS, ChatRequest
from glimt.api.state import ApiState
from glimt.api.tools import MAX_TOOLS, Tool, check_specs
from glimt.errors import InvalidRequest
from glimt.frontend.prompt import Prompt
from glimt.wire import ImageSpan


class TokenizeRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Body of POST /tokenize: a bare text, or a conversation as a chat request has it."""

    model: Annotated[str, Meta(max_length=1024)] | None = None
    prompt: str | None = None
    messages: Annotated[list[Message], Meta(min_length=1, max_length=4096)] | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None
    # Of a conversation.
    add_generation_prompt: bool | None = None
    continue_final_message: bool = False
    chat_template: Annotated[str, Meta(max_length=2**17)] | None = None
    mm_processor_kwargs: ProcessorKwargs | None = None
    media_io_kwargs: MediaIoKwargs | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    tools: Annotated[list[Tool], Meta(min_length=1, max_length=MAX_TOOLS)] | None = None


class Tokens(msgspec.Struct, frozen=True, kw_only=True):
    """Answer of POST /tokenize."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class DetokenizeRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Body of POST /detokenize."""

    model: Annotated[str, Meta(max_length=1024)] | None = None
    tokens: list[TokenId]


class Text(msgspec.Struct, frozen=True, kw_only=True):
    """Answer of POST /detokenize."""

    prompt: str


class MediaPlace(msgspec.Struct, frozen=True, kw_only=True):
    """The run of tokens that a still image, or one temporal step of a video, fills."""

    offset: int
    length: int
    grid_h: Annotated[int, Meta(description="Patches.")]
    grid_w: Annotated[int, Meta(description="Patches.")]
    hash: Annotated[str, Meta(description="Equal for equal pixels of one client, hexadecimal.")]


class RenderedPrompt(msgspec.Struct, frozen=True, kw_only=True):
    """Answer of POST /v1/chat/completions/render: what an engine would be given."""

    model: str
    prompt: Annotated[str, Meta(description="The text, with one placeholder for each run.")]
    token_ids: list[int]
    num_tokens: int
    media: list[MediaPlace]
    sampling_params: Any


_tokenize_decoder = msgspec.json.Decoder(TokenizeRequest)
_detokenize_decoder = msgspec.json.Decoder(DetokenizeRequest)
_decode_chat = msgspec.json.Decoder(ChatRequest)
_TEXT_FIELDS = KnownFields(TokenizeRequest)
_TOKEN_FIELDS = KnownFields(DetokenizeRequest)


async def tokenize(state: ApiState, scope: Scope, receive: Receive, send: Send) -> None:
    """POST /tokenize."""
    call: Call = scope["glimt.call"]
    refuse_if_closed(state)
    request, ignored = await read_request(state, scope, receive, _tokenize_decoder, _TEXT_FIELDS)
    check_model(state, request.model)
    headers = ignored_header(ignored, call)
    departure = Departure(receive, send, state.clock, state.limits.max_stalled_s)
    async with departure:
        token_ids = await _token_ids(state, scope, request)
        strings = None
        if request.return_token_strs:
            strings = [state.tokenizer.token_text(token_id) for token_id in token_ids]
        answer = Tokens(
            count=len(token_ids),
            max_model_len=state.client.info.max_model_len,
            tokens=token_ids,
            token_strs=strings,
        )
        await send_json(answer, headers, departure)


async def _token_ids(state: ApiState, scope: Scope, request: TokenizeRequest) -> list[int]:
    if (request.prompt is None) == (request.messages is None):
        raise InvalidRequest("send either prompt or messages", param="prompt")
    if request.prompt is not None:
        special = request.add_special_tokens
        with state.client.preparing():
            return await state.renderer.tokenize(
                request.prompt, add_special_tokens=True if special is None else special
            )
    if request.add_special_tokens:
        raise InvalidRequest(
            "add_special_tokens is for a prompt; a chat template writes its own",
            param="add_special_tokens",
        )
    check_specs(request.tools or [])
    chat = ChatRequest(
        messages=request.messages or [],
        add_generation_prompt=request.add_generation_prompt,
        continue_final_message=request.continue_final_message,
        chat_template=request.chat_template,
        mm_processor_kwargs=request.mm_processor_kwargs,
        media_io_kwargs=request.media_io_kwargs,
        chat_template_kwargs=request.chat_template_kwargs,
        tools=request.tools,
    )
    check_template(state, chat)
    async with rendered(state, chat, salt_of(scope, None)) as prompt:
        token_ids: list[int] = prompt.token_ids.tolist()
        return token_ids


@asynccontextmanager
async def rendered(state: ApiState, request: ChatRequest, salt: bytes) -> AsyncIterator[Prompt]:
    """The prompt of a chat request, for as long as its media are needed.

    Raises what making prompts raises: RequestError, Overloaded, EngineDied.
    """
    with state.client.preparing():
        conversation = conversation_in(state, request)
        prompt = await state.renderer.render(
            conversation,
            state.media,
            cache_salt=salt,
            max_tokens=truncation(request, state.client.info),
        )
        try:
            yield prompt
        finally:
            prompt.release()


async def detokenize(state: ApiState, scope: Scope, receive: Receive, send: Send) -> None:
    """POST /detokenize."""
    call: Call = scope["glimt.call"]
    request, ignored = await read_request(state, scope, receive, _detokenize_decoder, _TOKEN_FIELDS)
    check_model(state, request.model)
    headers = ignored_header(ignored, call)
    limit = state.tokenizer.vocab_size
    for index, token_id in enumerate(request.tokens):
        if token_id >= limit:
            raise InvalidRequest(
                f"tokens[{index}] is {token_id}, but ids end at {limit - 1}",
                param=f"tokens[{index}]",
            )
    departure = Departure(receive, send, state.clock, state.limits.max_stalled_s)
    async with departure:
        text = state.tokenizer.decode(request.tokens)
        await send_json(Text(prompt=text), headers, departure)


async def render_chat(state: ApiState, scope: Scope, receive: Receive, send: Send) -> None:
    """POST /v1/chat/completions/render."""
    call: Call = scope["glimt.call"]
    refuse_if_closed(state)
    request, ignored = await read_request(state, scope, receive, _decode_chat, KNOWN_FIELDS)
    check_chat(state, request)
    headers = ignored_header([*ignored, *without_effect(state, request)], call)
    departure = Departure(receive, send, state.clock, state.limits.max_stalled_s)
    async with departure:
        sampling = await sampling_of(state, request)
        async with rendered(state, request, salt_of(scope, request.cache_salt)) as prompt:
            sampling = fitted(state, request, prompt, sampling, reasoning_of(state))
            answer = RenderedPrompt(
                model=state.served_names[0],
                prompt=_text(state, prompt),
                token_ids=prompt.token_ids.tolist(),
                num_tokens=prompt.num_tokens,
                media=[_place(span) for span in prompt.images],
                sampling_params=sampling,
            )
        await send_json(answer, headers, departure)


def _text(state: ApiState, prompt: Prompt) -> str:
    """The prompt's text; of each run of media tokens only the first is left."""
    is_shown = np.ones(prompt.num_tokens, bool)
    for span in prompt.images:
        is_shown[span.start + 1 : span.start + span.num_tokens] = False
    return state.tokenizer.decode(prompt.token_ids[is_shown].tolist())


def _place(span: ImageSpan) -> MediaPlace:
    return MediaPlace(
        offset=span.start,
        length=span.num_tokens,
        grid_h=span.grid_h,
        grid_w=span.grid_w,
        hash=span.content_hash.hex(),
    )
