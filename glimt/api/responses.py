"""POST /v1/responses: the newer chat of OpenAI's clients. Nothing of a response is kept."""

from typing import Any

import msgspec
from starlette.types import Receive, Scope, Send

from glimt.api.answering import (
    ignored_header,
    read_request,
    refuse_if_closed,
    salt_of,
    send_answer,
    take_label,
)
from glimt.api.call import Call
from glimt.api.chat import answer_form, check_chat, start_chat, without_effect
from glimt.api.departure import Departure
from glimt.api.responses_request import chat_request
from glimt.api.responses_schema import (
    RESPONSES_FIELDS,
    ResponseObject,
    ResponsesRequest,
    check_supported,
    not_included,
)
from glimt.api.responses_stream import ResponsesWriter
from glimt.api.schema import ChatRequest
from glimt.api.state import ApiState
from glimt.errors import RequestError

_decoder = msgspec.json.Decoder(ResponsesRequest)


async def responses(state: ApiState, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer one request. Raises typed errors until the first byte is sent."""
    call: Call = scope["glimt.call"]
    refuse_if_closed(state)
    request, ignored = await read_request(state, scope, receive, _decoder, RESPONSES_FIELDS)
    check_supported(request)
    chat, paths = chat_request(request)
    take_label(call, chat)
    ours = map(paths.origin_of, without_effect(state, chat))
    headers = ignored_header([*ignored, *not_included(request), *ours], call)
    departure = Departure(receive, send, state.clock, state.limits.max_stalled_s)
    async with departure:
        try:
            check_chat(state, chat)
            answer = await start_chat(state, chat, call, salt_of(scope, chat.cache_salt))
        except RequestError as error:
            raise paths.translated(error) from error
        form = answer_form(state, chat, call, "resp_", ())
        writer = ResponsesWriter(_frame(state, request, chat, form.id), form)
        stream = bool(request.stream)
        await send_answer(state, answer, writer, headers, departure, call, stream=stream)


def _frame(
    state: ApiState, request: ResponsesRequest, chat: ChatRequest, response_id: str
) -> ResponseObject:
    """The response before anything of it is known."""
    defaults = state.defaults
    return ResponseObject(
        id=response_id,
        created_at=int(state.wall_clock()),
        status="in_progress",
        instructions=request.instructions,
        max_output_tokens=request.max_output_tokens,
        model=state.served_names[0],
        output=[],
        parallel_tool_calls=request.parallel_tool_calls is not False,
        reasoning={"effort": chat.reasoning_effort, "summary": None},
        temperature=defaults.temperature if request.temperature is None else request.temperature,
        text={"format": _shown_format(request)},
        tool_choice=msgspec.to_builtins(request.tool_choice) or "auto",
        tools=msgspec.to_builtins(request.tools or []),
        top_logprobs=request.top_logprobs or 0,
        top_p=defaults.top_p if request.top_p is None else request.top_p,
        user=request.user,
        metadata=request.metadata or {},
    )


def _shown_format(request: ResponsesRequest) -> dict[str, Any]:
    form = request.text.format if request.text else None
    if form is None:
        return {"type": "text"}
    return {key: value for key, value in msgspec.to_builtins(form).items() if value is not None}
