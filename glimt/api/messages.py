"""Messages of a chat request: texts, images and videos, said by whom."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

import msgspec
from msgspec import Meta

from glimt.api.fields import NO_EFFECT, Label, NoEffect
from glimt.errors import InvalidRequest, Unsupported
from glimt.frontend.argument_types import parse
from glimt.frontend.prompt import Conversation, MediaSource
from glimt.wire import ImageSettings


class MediaAddress(msgspec.Struct, frozen=True, kw_only=True):
    """Where an image or video is: http(s):, data: or file:."""

    url: str
    detail: Annotated[Literal["auto", "low", "high"] | None, NO_EFFECT] = None


class TextPart(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="text"):
    """A piece of text."""

    text: str


class InputTextPart(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="input_text"):
    """A piece of text, under its newer name."""

    text: str


class OutputTextPart(
    msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="output_text"
):
    """A piece of an earlier answer."""

    text: str


class RefusalPart(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="refusal"):
    """An earlier refusal; reads like text."""

    refusal: str


class ThinkingPart(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="thinking"):
    """Thoughts of an earlier answer; joined to its `reasoning`."""

    thinking: str
    signature: Label = None


class ImagePart(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="image_url"):
    """An image. `uuid` is not needed: what is equal is known by its content."""

    image_url: MediaAddress | str | None = None  # null, the image of an earlier uuid, is refused
    uuid: NoEffect = None


class InputImagePart(
    msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="input_image"
):
    """An image, under its newer name."""

    image_url: MediaAddress | str | None = None
    uuid: NoEffect = None


class VideoPart(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="video_url"):
    """A video."""

    video_url: MediaAddress | str | None = None
    uuid: NoEffect = None


class _Refused(msgspec.Struct, frozen=True, kw_only=True, tag_field="type"):
    is_refused: ClassVar[bool] = True  # known, so that it can be said why


class InputAudioPart(_Refused, frozen=True, kw_only=True, tag="input_audio"):
    """Sound; refused."""

    input_audio: Any = None


class AudioUrlPart(_Refused, frozen=True, kw_only=True, tag="audio_url"):
    """Sound; refused."""

    audio_url: Any = None


class FilePart(_Refused, frozen=True, kw_only=True, tag="file"):
    """A file; refused."""

    file: Any = None


class ImageEmbedsPart(_Refused, frozen=True, kw_only=True, tag="image_embeds"):
    """Embeddings made elsewhere; refused."""

    image_embeds: Any = None


MediumPart = ImagePart | InputImagePart | VideoPart
RefusedPart = InputAudioPart | AudioUrlPart | FilePart | ImageEmbedsPart
Part = (
    TextPart
    | InputTextPart
    | OutputTextPart
    | RefusalPart
    | ThinkingPart
    | MediumPart
    | RefusedPart
)

_REASONS: Mapping[type, str] = {
    InputAudioPart: "this model hears nothing: only text, images and videos can be sent",
    AudioUrlPart: "this model hears nothing: only text, images and videos can be sent",
    FilePart: "files are not read; send text, or each page as an image",
    ImageEmbedsPart: "embeddings are not taken; send the image",
}


class FunctionCall(msgspec.Struct, frozen=True, kw_only=True):
    """The function called, and its arguments: a JSON object, as text or as it is."""

    name: Annotated[str, Meta(min_length=1, max_length=256)]
    arguments: str | dict[str, Any] | None = None
    parsed_arguments: Label = None  # by a client


class ToolCall(msgspec.Struct, frozen=True, kw_only=True):
    """A call that an earlier answer made."""

    id: Annotated[str, Meta(max_length=256)] | None = None
    type: Literal["function"] = "function"
    function: FunctionCall
    index: Label = None  # within a stream


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """One turn of the conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Annotated[list[Part], Meta(max_length=256)] | None = None
    name: Annotated[str | None, NO_EFFECT] = None  # templates of this family show none
    # Of earlier answers.
    reasoning: str | None = None
    reasoning_content: str | None = None  # older name of `reasoning`
    refusal: str | None = None
    tool_calls: Annotated[list[ToolCall], Meta(max_length=128)] | None = None
    function_call: Any = None  # refused: the older form of `tool_calls`
    boxes: Label = None
    annotations: Label = None
    parsed: Label = None  # by a client
    # Of a tool's result.
    tool_call_id: Annotated[str, Meta(max_length=256)] | None = None


_SERVERS: Mapping[str, ImageSettings] = {}


def conversation_of(
    messages: list[Message],
    *,
    template_kwargs: Mapping[str, Any],
    add_generation_prompt: bool,
    tools: tuple[dict[str, Any], ...] | None = None,
    settings: Mapping[str, ImageSettings] = _SERVERS,
    continue_final: bool = False,
    template: str | None = None,
) -> Conversation:
    """The messages as the template and the media preparation want them. `settings`: by kind, of
    media that are to be prepared otherwise than the server does it.

    Raises InvalidRequest and Unsupported naming the message.
    """
    media: list[MediaSource] = []
    plain = tuple(
        _plain_message(messages[index], f"messages[{index}]", media)
        for index in _in_order_of_calls(messages)
    )
    return Conversation(
        messages=plain,
        media=tuple(
            replace(source, settings=settings[source.kind]) if source.kind in settings else source
            for source in media
        ),
        continue_final=continue_final,
        template=template,
        tools=tools,
        template_kwargs=template_kwargs,
        add_generation_prompt=add_generation_prompt,
    )


def check_media_counts(conversation: Conversation, *, max_images: int, max_videos: int) -> None:
    """Raise InvalidRequest if there are more media than one prompt may hold."""
    kinds = [source.kind for source in conversation.media]
    for kind, limit in (("image", max_images), ("video", max_videos)):
        if kinds.count(kind) > limit:
            raise InvalidRequest(
                f"at most {limit} {kind}(s) may be in one prompt, this has {kinds.count(kind)}",
                param="messages",
            )


def _in_order_of_calls(messages: list[Message]) -> list[int]:
    """Indices of the messages, results of tools in the order in which they were called: templates
    of this family show no ids, so the order is all that tells the model whose result is whose.

    Results without the id of one of the calls before them stay where they are.
    """
    order = list(range(len(messages)))
    places: dict[str | None, int] = {}  # of the calls that results may now belong to
    start = 0
    for index, message in enumerate(messages):
        if message.role != "tool":
            places = {call.id: place for place, call in enumerate(message.tool_calls or ())}
            start = index + 1
        elif index + 1 == len(messages) or messages[index + 1].role != "tool":
            run = messages[start : index + 1]
            if all(result.tool_call_id in places for result in run):
                order[start : index + 1] = sorted(
                    order[start : index + 1], key=lambda i: places[messages[i].tool_call_id]
                )
    return order


def _plain_calls(message: Message, path: str) -> list[dict[str, Any]]:
    if message.role != "assistant":
        raise InvalidRequest(
            f"{path}.tool_calls: only the assistant calls tools", param=f"{path}.tool_calls"
        )
    return [
        {
            "type": "function",
            "function": {
                "name": call.function.name,
                "arguments": _arguments(
                    call.function.arguments, f"{path}.tool_calls[{index}].function.arguments"
                ),
            },
        }
        for index, call in enumerate(message.tool_calls or ())
    ]


def _arguments(arguments: str | dict[str, Any] | None, path: str) -> dict[str, Any]:
    """The mapping that templates go through."""
    if isinstance(arguments, dict):
        return arguments
    try:
        parsed = parse(arguments) if arguments and arguments.strip() else {}
    except (ValueError, RecursionError):
        parsed = None
    if not isinstance(parsed, dict):
        raise InvalidRequest(f"{path} must be a JSON object, as text", param=path)
    return parsed


def _plain_message(message: Message, path: str, media: list[MediaSource]) -> dict[str, Any]:
    if message.function_call is not None:
        raise Unsupported(
            f"{path}.function_call is not supported: send tool_calls instead",
            param=f"{path}.function_call",
        )
    if message.content is None and message.role != "assistant":
        raise InvalidRequest(f"{path}.content is missing", param=f"{path}.content")
    content: str | list[dict[str, Any]]
    thoughts = [message.reasoning or message.reasoning_content or ""]
    if isinstance(message.content, list):
        content = []
        for index, part in enumerate(message.content):
            where = f"{path}.content[{index}]"
            if not isinstance(part, ThinkingPart):
                content.append(_plain_part(part, where, media))
            elif message.role == "assistant":
                thoughts.append(part.thinking)
            else:
                raise InvalidRequest(
                    f"{where}: only the assistant's thoughts are known", param=where
                )
    else:
        content = message.content or message.refusal or ""
    role = "system" if message.role == "developer" else message.role
    plain: dict[str, Any] = {"role": role, "content": content}
    # The family's templates read the older name.
    if reasoning := "\n".join(filter(None, thoughts)):
        plain["reasoning_content"] = reasoning
    if message.tool_calls:
        plain["tool_calls"] = _plain_calls(message, path)
    return plain


def _plain_part(part: Part, path: str, media: list[MediaSource]) -> dict[str, Any]:
    if (reason := _REASONS.get(type(part))) is not None:
        raise Unsupported(f"{path}: {reason}", param=f"{path}.type")
    if isinstance(part, TextPart | InputTextPart | OutputTextPart):
        return {"type": "text", "text": part.text}
    if isinstance(part, RefusalPart):
        return {"type": "text", "text": part.refusal}
    kind, field = ("video", "video_url") if isinstance(part, VideoPart) else ("image", "image_url")
    address: MediaAddress | str | None = getattr(part, field)
    if address is None:
        raise Unsupported(
            f"{path}.{field} is missing: an earlier image is not found by its uuid; send it again, "
            "it is not decoded twice",
            param=f"{path}.{field}",
        )
    url = address if isinstance(address, str) else address.url
    media.append(MediaSource(kind=kind, url=url, param=f"{path}.{field}"))
    return {"type": kind}
