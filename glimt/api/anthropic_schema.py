"""The requests and answers of /v1/messages, as Anthropic names their fields."""

from typing import Annotated, Any, ClassVar, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from glimt.api.completion import Box
from glimt.api.fields import Count, Label, NoEffect, NotDone, StopText
from glimt.api.known import KnownFields
from glimt.api.media_wishes import MediaIoKwargs, ProcessorKwargs
from glimt.api.tools import MAX_DESCRIPTION_CHARS, MAX_TOOLS

# ----------------------------------------------------------------------- blocks of a conversation


class UrlSource(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="url"):
    """An address: http(s):, data: or file:."""

    url: str


class Base64Source(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="base64"):
    """The bytes themselves."""

    media_type: Annotated[str, Meta(pattern="^[a-z]+/[a-z0-9.+-]{1,64}$(?!\\n)")]
    data: str


class FileSource(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="file"):
    """An uploaded file; refused, there are no uploads here."""

    is_refused: ClassVar[bool] = True

    file_id: str


Source = UrlSource | Base64Source | FileSource


class _Block(msgspec.Struct, frozen=True, kw_only=True, tag_field="type"):
    cache_control: Label = None


class TextBlock(_Block, frozen=True, kw_only=True, tag="text"):
    """A piece of text."""

    text: str
    citations: NoEffect = None
    boxes: Label = None  # of an earlier answer


class ImageBlock(_Block, frozen=True, kw_only=True, tag="image"):
    """An image."""

    source: Source
    transformations: NoEffect = None


class VideoBlock(_Block, frozen=True, kw_only=True, tag="video"):
    """A video; Anthropic's API has none."""

    source: Source


class ToolUseBlock(_Block, frozen=True, kw_only=True, tag="tool_use"):
    """A call that an earlier answer made."""

    id: Annotated[str, Meta(max_length=256)]
    name: Annotated[str, Meta(min_length=1, max_length=256)]
    input: dict[str, Any]
    caller: Label = None


class ToolResultBlock(_Block, frozen=True, kw_only=True, tag="tool_result"):
    """What a call gave."""

    tool_use_id: Annotated[str, Meta(max_length=256)]
    content: str | Annotated[list[TextBlock | ImageBlock | VideoBlock], Meta(max_length=256)] = ""
    is_error: bool = False


class ThinkingBlock(_Block, frozen=True, kw_only=True, tag="thinking"):
    """Thoughts of an earlier answer. The signature is not looked at."""

    thinking: str
    signature: str | None = None


class RedactedThinkingBlock(_Block, frozen=True, kw_only=True, tag="redacted_thinking"):
    """Thoughts that another server has hidden; left out."""

    data: str


class DocumentBlock(_Block, frozen=True, kw_only=True, tag="document"):
    """A document; refused."""

    is_refused: ClassVar[bool] = True

    source: Any = None
    title: Any = None
    context: Any = None
    citations: Any = None


Block = (
    TextBlock
    | ImageBlock
    | VideoBlock
    | ToolUseBlock
    | ToolResultBlock
    | ThinkingBlock
    | RedactedThinkingBlock
    | DocumentBlock
)


class Turn(msgspec.Struct, frozen=True, kw_only=True):
    """One turn of the conversation."""

    role: Literal["user", "assistant", "system"]
    content: str | Annotated[list[Block], Meta(max_length=1024)]


# ----------------------------------------------------------------------------------------- wishes


class MessagesTool(msgspec.Struct, frozen=True, kw_only=True):
    """A function that the model may call. Tools that run on Anthropic's servers have another type,
    and are refused."""

    name: Annotated[str, Meta(pattern="^[A-Za-z0-9_.-]{1,128}$(?!\\n)")]
    type: str | None = None  # custom
    description: Annotated[str, Meta(max_length=MAX_DESCRIPTION_CHARS)] | None = None
    input_schema: dict[str, Any] | None = None
    strict: bool | None = None
    cache_control: Label = None
    input_examples: NoEffect = None
    eager_input_streaming: Label = None


class AutoChoice(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="auto"):
    """The model decides."""

    disable_parallel_tool_use: bool = False


class AnyChoice(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="any"):
    """Some function is called."""

    disable_parallel_tool_use: bool = False


class NamedChoice(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="tool"):
    """This function is called."""

    name: str
    disable_parallel_tool_use: bool = False


class NoChoice(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="none"):
    """No function is called."""


class ThinkingOn(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="enabled"):
    """The model thinks."""

    budget_tokens: Count | None = None
    display: Literal["summarized", "omitted"] | None = None


class ThinkingOff(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="disabled"):
    """The model does not think."""


class ThinkingAdaptive(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="adaptive"):
    """The model decides."""

    display: Literal["summarized", "omitted"] | None = None


class OutputFormat(msgspec.Struct, frozen=True, kw_only=True):
    """The form of the answer."""

    type: Literal["json_schema"]
    schema: dict[str, Any]


class OutputConfig(msgspec.Struct, frozen=True, kw_only=True):
    """How much work goes into the answer, and its form."""

    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: OutputFormat | None = None


class ConversationFields(msgspec.Struct, frozen=True, kw_only=True):
    """What decides the prompt."""

    messages: Annotated[list[Turn], Meta(min_length=1, max_length=4096)]
    model: Annotated[str, Meta(max_length=1024)] | None = None
    system: str | Annotated[list[Block], Meta(max_length=256)] | None = None  # of text
    tools: Annotated[list[MessagesTool], Meta(max_length=MAX_TOOLS)] | None = None
    tool_choice: AutoChoice | AnyChoice | NamedChoice | NoChoice | None = None
    thinking: ThinkingOn | ThinkingOff | ThinkingAdaptive | None = None
    output_config: OutputConfig | None = None
    output_format: OutputFormat | None = None  # older name of output_config.format
    # Beyond Anthropic's API, as in a chat request.
    chat_template_kwargs: dict[str, Any] | None = None
    mm_processor_kwargs: ProcessorKwargs | None = None
    media_io_kwargs: MediaIoKwargs | None = None
    # Known and of no effect here.
    cache_control: Label = None
    context_management: NoEffect = None
    # Known and not done.
    mcp_servers: NotDone = None
    container: NotDone = None


class MessagesRequest(ConversationFields, frozen=True, kw_only=True):
    """Body of POST /v1/messages. None = the server's or the checkpoint's default."""

    max_tokens: Count
    stop_sequences: Annotated[list[StopText], Meta(max_length=16)] | None = None
    stream: bool | None = None
    temperature: Annotated[float, Meta(ge=0.0, le=100.0)] | None = None
    top_k: Annotated[int, Meta(ge=-1, le=2**31 - 1)] | None = None
    top_p: Annotated[float, Meta(ge=0.0, le=1.0)] | None = None
    # Beyond Anthropic's API, as in a chat request.
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    priority: Annotated[int, Meta(ge=-(2**31), le=2**31 - 1)] = 0
    cache_salt: Annotated[str, Meta(min_length=1, max_length=128, pattern="^[^\\x00]*$")] | None = (
        None
    )
    # Known and of no effect here.
    metadata: Label = None
    service_tier: NoEffect = None
    speed: NoEffect = None
    inference_geo: NoEffect = None
    diagnostics: NoEffect = None


class CountRequest(ConversationFields, frozen=True, kw_only=True):
    """Body of POST /v1/messages/count_tokens."""


MESSAGES_FIELDS = KnownFields(MessagesRequest)
COUNT_FIELDS = KnownFields(CountRequest)

# ---------------------------------------------------------------------------------------- answers


class TextOut(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="text"):
    """Text of the answer."""

    text: str
    citations: None = None
    boxes: list[Box] | UnsetType = UNSET  # under --box-tokens structured


class ThinkingOut(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="thinking"):
    """Thoughts of the answer."""

    thinking: str
    signature: str


class ToolUseOut(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="tool_use"):
    """A call of a function. `input` is empty where max_tokens cut its arguments."""

    id: str
    name: str
    input: dict[str, Any]


class OutputDetails(msgspec.Struct, frozen=True, kw_only=True):
    """Of the answer's tokens."""

    thinking_tokens: int


class MessagesUsage(msgspec.Struct, frozen=True, kw_only=True):
    """Token counts; `input_tokens` are those that were not cached."""

    input_tokens: int
    cache_creation_input_tokens: int = 0
    cache_read_input_tokens: int = 0
    output_tokens: int
    output_tokens_details: OutputDetails
    service_tier: str = "standard"


class MessagesAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """Body of an unstreamed answer."""

    id: str
    type: Literal["message"] = "message"
    role: Literal["assistant"] = "assistant"
    model: str
    content: list[TextOut | ThinkingOut | ToolUseOut]
    stop_reason: str | None
    stop_sequence: str | None = None
    usage: MessagesUsage


class TokenCount(msgspec.Struct, frozen=True, kw_only=True):
    """Answer of POST /v1/messages/count_tokens."""

    input_tokens: int


class MessagesEvent(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One event of a stream; `type` says which of the other fields it has."""

    type: Literal[
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
        "ping",
        "error",
    ]
    message: dict[str, Any] | None = None
    index: int | None = None
    content_block: dict[str, Any] | None = None
    delta: dict[str, Any] | None = None
    usage: dict[str, Any] | None = None
    error: dict[str, Any] | None = None
    boxes: list[Box] | None = None  # of the text that stops, under --box-tokens structured
