"""The requests and answers of /v1/responses, as OpenAI names their fields."""

from typing import Annotated, Any, ClassVar, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from glimt.api.completion import Box
from glimt.api.fields import Count, Label, NoEffect, NotDone, SamplingFields
from glimt.api.known import KnownFields
from glimt.api.media_wishes import MediaIoKwargs, ProcessorKwargs
from glimt.api.tools import MAX_DESCRIPTION_CHARS, MAX_TOOLS, FunctionName
from glimt.errors import Unsupported

# -------------------------------------------------------------------------- items of the input


class InputText(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="input_text"):
    """A piece of text."""

    text: str


class OutputText(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="output_text"):
    """A piece of an earlier answer."""

    text: str
    annotations: Label = None
    logprobs: Label = None
    parsed: Label = None  # by a client
    boxes: Label = None


class PlainText(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="text"):
    """A piece of text, under its oldest name."""

    text: str


class ReasoningText(
    msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="reasoning_text"
):
    """Thoughts of an earlier answer."""

    text: str


class SummaryText(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="summary_text"):
    """A summary of thoughts of an earlier answer."""

    text: str


class Refusal(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="refusal"):
    """An earlier refusal; reads like text."""

    refusal: str


class InputImage(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="input_image"):
    """An image, by its address: http(s):, data: or file:."""

    image_url: str | None = None
    file_id: Any = None  # refused
    detail: NoEffect = None


class InputVideo(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="input_video"):
    """A video; OpenAI's API has none."""

    video_url: str


class InputFile(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="input_file"):
    """A file; refused."""

    is_refused: ClassVar[bool] = True

    file_id: Any = None
    file_data: Any = None
    file_url: Any = None
    filename: Any = None
    detail: Any = None


InputPart = (
    InputText
    | OutputText
    | PlainText
    | ReasoningText
    | SummaryText
    | Refusal
    | InputImage
    | InputVideo
    | InputFile
)
_Parts = Annotated[list[InputPart], Meta(max_length=256)]


class InputItem(msgspec.Struct, frozen=True, kw_only=True):
    """A message, a call, its result, or thoughts; `type` says which of the fields count."""

    type: Annotated[str, Meta(max_length=64)] = "message"
    id: Label = None
    status: Label = None
    # message
    role: Literal["user", "assistant", "system", "developer"] | None = None
    content: str | _Parts | None = None  # of thoughts, too
    phase: Label = None
    # function_call, function_call_output
    call_id: Annotated[str, Meta(max_length=256)] | None = None
    name: Annotated[str, Meta(max_length=256)] | None = None
    arguments: str | None = None
    parsed_arguments: Label = None  # by a client
    output: str | _Parts | None = None
    # reasoning
    summary: _Parts | None = None
    encrypted_content: NoEffect = None


# ----------------------------------------------------------------------------------------- wishes


class ResponsesTool(msgspec.Struct, frozen=True, kw_only=True):
    """A function that the model may call. Tools that run on OpenAI's servers have another type, and
    are refused."""

    type: Annotated[str, Meta(max_length=64)]
    name: FunctionName | None = None
    description: Annotated[str, Meta(max_length=MAX_DESCRIPTION_CHARS)] | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ResponsesChoice(msgspec.Struct, frozen=True, kw_only=True):
    """The one function that is to be called."""

    type: Literal["function"]
    name: FunctionName


class Reasoning(msgspec.Struct, frozen=True, kw_only=True):
    """How much thinking goes into the answer."""

    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    summary: NoEffect = None
    generate_summary: NoEffect = None


class TextFormat(msgspec.Struct, frozen=True, kw_only=True):
    """What the text must look like; a schema is enforced whether `strict` or not."""

    type: Literal["text", "json_object", "json_schema"]
    schema: dict[str, Any] | bool | None = None
    name: Annotated[str, Meta(max_length=256)] | None = None
    description: str | None = None
    strict: bool | None = None


class TextConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The form of the text."""

    format: TextFormat | None = None
    verbosity: NoEffect = None


class ResponsesStreamOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What a stream holds beside the answer."""

    include_obfuscation: NoEffect = None


class ResponsesRequest(SamplingFields, frozen=True, kw_only=True):
    """Body of POST /v1/responses. None = the server's or the checkpoint's default."""

    input: str | Annotated[list[InputItem], Meta(min_length=1, max_length=4096)]
    instructions: str | None = None
    max_output_tokens: Count | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=2**31 - 1)] | None = None
    include: Annotated[list[str], Meta(max_length=16)] | None = None
    stream_options: ResponsesStreamOptions | None = None
    tools: Annotated[list[ResponsesTool], Meta(max_length=MAX_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | ResponsesChoice | None = None
    parallel_tool_calls: bool | None = None
    reasoning: Reasoning | None = None
    text: TextConfig | None = None
    # Beyond OpenAI's API, as in a chat request.
    include_reasoning: bool = True
    thinking_token_budget: Annotated[int, Meta(ge=0, le=2**31 - 1)] | None = None
    enable_thinking: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    mm_processor_kwargs: ProcessorKwargs | None = None
    media_io_kwargs: MediaIoKwargs | None = None
    # Known and of no effect here.
    service_tier: NoEffect = None
    safety_identifier: Label = None
    prompt_cache_key: Label = None
    prompt_cache_options: NoEffect = None
    prompt_cache_retention: NoEffect = None
    # Known and not done; see `_HARMLESS`.
    store: NotDone = None
    previous_response_id: NotDone = None
    conversation: NotDone = None
    background: NotDone = None
    prompt: NotDone = None
    truncation: NotDone = None
    max_tool_calls: NotDone = None
    context_management: NotDone = None
    moderation: NotDone = None


RESPONSES_FIELDS = KnownFields(ResponsesRequest)

_STATELESS = "this server keeps nothing of a request: send the whole conversation as input"
# (field, the value beside null that asks for nothing, why not)
_HARMLESS: tuple[tuple[str, Any, str], ...] = (
    ("store", False, f"store is not supported: {_STATELESS}"),
    ("previous_response_id", None, f"previous_response_id is not supported: {_STATELESS}"),
    ("conversation", None, f"conversation is not supported: {_STATELESS}"),
    ("background", False, "background is not supported: use stream, or wait for the answer"),
    ("prompt", None, "prompt is not supported: there are no stored prompts here"),
    ("truncation", "disabled", "truncation is not supported: shorten the input"),
    ("max_tool_calls", None, "max_tool_calls is about tools that run on a server; none do here"),
    ("context_management", None, "context_management is not supported by this version"),
    ("moderation", None, "moderation is not supported by this version"),
)


def check_supported(request: ResponsesRequest) -> None:
    """Raises Unsupported for the first field that asks for work this version does not do."""
    for name, harmless, reason in _HARMLESS:
        value = getattr(request, name)
        if value is not None and value is not harmless and value != harmless:
            raise Unsupported(reason, param=name)
    for index, name in enumerate(request.include or ()):
        if name not in ("message.output_text.logprobs", "reasoning.encrypted_content"):
            raise Unsupported(
                f"include[{index}] is not supported; message.output_text.logprobs is",
                param=f"include[{index}]",
            )


def not_included(request: ResponsesRequest) -> list[str]:
    """What the answer will not hold, without harm: thoughts come back in plain text."""
    name = "reasoning.encrypted_content"
    return [f"include.{name}"] if name in (request.include or ()) else []


# ---------------------------------------------------------------------------------------- answers


class ResponsesTopLogprob(msgspec.Struct, frozen=True, kw_only=True):
    """A likely token."""

    token: str
    logprob: float
    bytes: list[int]


class ResponsesLogprob(msgspec.Struct, frozen=True, kw_only=True):
    """The token that was drawn, and the likeliest at its place."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[ResponsesTopLogprob]


class TextContent(msgspec.Struct, frozen=True, kw_only=True):
    """Text of the answer."""

    type: Literal["output_text"] = "output_text"
    text: str
    annotations: list[Any] = []
    logprobs: list[ResponsesLogprob] = []
    boxes: list[Box] | UnsetType = UNSET  # under --box-tokens structured, when the text is whole


class ThoughtContent(msgspec.Struct, frozen=True, kw_only=True):
    """Thoughts of the answer."""

    type: Literal["reasoning_text"] = "reasoning_text"
    text: str


Status = Literal["in_progress", "completed", "incomplete"]


class MessageItem(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="message"):
    """What the model said."""

    id: str
    role: Literal["assistant"] = "assistant"
    status: Status
    content: list[TextContent]


class ReasoningItem(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="reasoning"):
    """What the model thought."""

    id: str
    status: Status
    summary: list[Any] = []
    content: list[ThoughtContent]
    encrypted_content: None = None


class CallItem(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="function_call"):
    """A call; `arguments` is a JSON object as text, cut if the answer was."""

    id: str
    call_id: str
    name: str
    arguments: str
    status: Status


OutputItem = MessageItem | ReasoningItem | CallItem


class InputDetails(msgspec.Struct, frozen=True, kw_only=True):
    """Of the prompt's tokens."""

    cached_tokens: int
    cache_write_tokens: int = 0


class ResponseOutputDetails(msgspec.Struct, frozen=True, kw_only=True):
    """Of the answer's tokens."""

    reasoning_tokens: int


class ResponsesUsage(msgspec.Struct, frozen=True, kw_only=True):
    """Token counts."""

    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: ResponseOutputDetails
    total_tokens: int


class ResponseObject(msgspec.Struct, frozen=True, kw_only=True):
    """Body of an unstreamed answer; a stream begins and ends with it. Nothing of it is stored."""

    id: str
    object: Literal["response"] = "response"
    created_at: int
    status: Literal["in_progress", "completed", "incomplete", "failed"]
    background: bool = False
    error: dict[str, Any] | None = None
    incomplete_details: dict[str, str] | None = None
    instructions: str | None = None
    max_output_tokens: int | None = None
    max_tool_calls: None = None
    model: str
    output: list[OutputItem]
    parallel_tool_calls: bool = True
    previous_response_id: None = None
    reasoning: dict[str, Any]
    service_tier: str = "default"
    store: bool = False
    temperature: float
    text: dict[str, Any]
    tool_choice: Any
    tools: list[dict[str, Any]]
    top_logprobs: int = 0
    top_p: float
    truncation: str = "disabled"
    usage: ResponsesUsage | None = None
    user: str | None = None
    metadata: dict[str, str] = {}


class ResponsesEvent(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One event of a stream; `type` says which of the other fields it has."""

    type: str
    sequence_number: int
    response: ResponseObject | None = None
    output_index: int | None = None
    content_index: int | None = None
    item_id: str | None = None
    item: OutputItem | None = None
    part: dict[str, Any] | None = None
    delta: str | None = None
    text: str | None = None
    arguments: str | None = None
    name: str | None = None
    logprobs: list[ResponsesLogprob] | None = None
    code: str | None = None
    message: str | None = None
    param: str | None = None
