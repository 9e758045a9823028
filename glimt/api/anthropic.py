"""POST /v1/messages and /v1/messages/count_tokens: the chat of Anthropic's clients."""

import msgspec
from starlette.types import Receive, Scope, Send

from glimt.api.answering import (
    ignored_header,
    read_request,
    refuse_if_closed,
    salt_of,
    send_answer,
    send_json,
)
from glimt.api.anthropic_request import chat_request, without_effect
from glimt.api.anthropic_schema import (
    COUNT_FIELDS,
    MESSAGES_FIELDS,
    CountRequest,
    MessagesRequest,
    TokenCount,
)
from glimt.api.anthropic_stream import MessagesForm, MessagesWriter
from glimt.api.call import Call
from glimt.api.chat import check_chat, start_chat
from glimt.api.chat import without_effect as chat_fields_without_effect
from glimt.api.departure import Departure
from glimt.api.state import ApiState
from glimt.api.tokens import rendered
from glimt.errors import RequestError

_messages_decoder = msgspec.json.Decoder(MessagesRequest)
_count_decoder = msgspec.json.Decoder(CountRequest)


async def messages(state: ApiState, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer one request. Raises typed errors until the first byte is sent."""
    call: Call = scope["glimt.call"]
    refuse_if_closed(state)
    request, ignored = await read_request(state, scope, receive, _messages_decoder, MESSAGES_FIELDS)
    chat, paths = chat_request(request, has_budget=state.parse_reasoning)
    departure = Departure(receive, send, state.clock, state.limits.max_stalled_s)
    async with departure:
        try:
            check_chat(state, chat)
            salt = salt_of(scope, chat.cache_salt)
            answer = await start_chat(state, chat, call, salt, fits=True)
        except RequestError as error:
            raise paths.translated(error) from error
        own = without_effect(request, has_budget=state.parse_reasoning)
        ours = map(paths.origin_of, chat_fields_without_effect(state, chat))
        headers = ignored_header([*ignored, *own, *ours], call)
        headers.append((b"request-id", call.id.encode()))
        form = MessagesForm(
            id=f"msg_{call.id}",
            model=state.served_names[0],
            max_tokens=request.max_tokens,
            with_reasoning=chat.include_reasoning,
            with_boxes=state.boxes == "structured",
            cached_tokens=state.prompt_tokens_details,
        )
        stream = bool(request.stream)
        await send_answer(
            state, answer, MessagesWriter(form), headers, departure, call, stream=stream
        )


async def count_tokens(state: ApiState, scope: Scope, receive: Receive, send: Send) -> None:
    """How many tokens the prompt has, images and tools included."""
    call: Call = scope["glimt.call"]
    refuse_if_closed(state)
    request, ignored = await read_request(state, scope, receive, _count_decoder, COUNT_FIELDS)
    chat, paths = chat_request(request)
    headers = [*ignored_header(ignored, call), (b"request-id", call.id.encode())]
    departure = Departure(receive, send, state.clock, state.limits.max_stalled_s)
    async with departure:
        try:
            check_chat(state, chat)
            async with rendered(state, chat, salt_of(scope, None)) as prompt:
                count = TokenCount(input_tokens=prompt.num_tokens)
        except RequestError as error:
            raise paths.translated(error) from error
        await send_json(count, headers, departure)
