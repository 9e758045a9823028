"""Messages of a chat request: texts, images and videos, said by whom."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from glimt.errors import InvalidRequest, Unsupported
from glimt.frontend.prompt import Conversation, MediaSource


class MediaAddress(msgspec.Struct, frozen=True, kw_only=True):
    """Where an image or video is: http(s):, data: or file:."""

    url: str
    detail: Literal["auto", "low", "high"] | None = None  # accepted, has no effect


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


class ImagePart(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="image_url"):
    """An image."""

    image_url: MediaAddress | str


class InputImagePart(
    msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="input_image"
):
    """An image, under its newer name."""

    image_url: MediaAddress | str


class VideoPart(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="video_url"):
    """A video."""

    video_url: MediaAddress | str


Part = (
    TextPart | InputTextPart | OutputTextPart | RefusalPart | ImagePart | InputImagePart | VideoPart
)


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """One turn of the conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Annotated[list[Part], Meta(max_length=256)] | None = None
    name: str | None = None
    # Of earlier answers.
    reasoning: str | None = None
    reasoning_content: str | None = None  # older name of `reasoning`
    refusal: str | None = None
    tool_calls: Any = None
    tool_call_id: str | None = None


def conversation_of(
    messages: list[Message],
    *,
    template_kwargs: Mapping[str, Any],
    add_generation_prompt: bool,
) -> Conversation:
    """The messages as the template and the media preparation want them.

    Raises InvalidRequest and Unsupported naming the message.
    """
    media: list[MediaSource] = []
    plain = tuple(
        _plain_message(message, f"messages[{index}]", media)
        for index, message in enumerate(messages)
    )
    return Conversation(
        messages=plain,
        media=tuple(media),
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


def _plain_message(message: Message, path: str, media: list[MediaSource]) -> dict[str, Any]:
    if message.tool_calls or message.role == "tool":
        raise Unsupported("tool calls are not supported by this version", param=path)
    if message.content is None and message.role != "assistant":
        raise InvalidRequest(f"{path}.content is missing", param=f"{path}.content")
    content: str | list[dict[str, Any]]
    if isinstance(message.content, list):
        content = [
            _plain_part(part, f"{path}.content[{index}]", media)
            for index, part in enumerate(message.content)
        ]
    else:
        content = message.content or message.refusal or ""
    role = "system" if message.role == "developer" else message.role
    plain: dict[str, Any] = {"role": role, "content": content}
    # The family's templates read the older name.
    if reasoning := message.reasoning or message.reasoning_content:
        plain["reasoning_content"] = reasoning
    return plain


def _plain_part(part: Part, path: str, media: list[MediaSource]) -> dict[str, Any]:
    if isinstance(part, TextPart | InputTextPart | OutputTextPart):
        return {"type": "text", "text": part.text}
    if isinstance(part, RefusalPart):
        return {"type": "text", "text": part.refusal}
    if isinstance(part, VideoPart):
        kind, field, address = "video", "video_url", part.video_url
    else:
        kind, field, address = "image", "image_url", part.image_url
    url = address if isinstance(address, str) else address.url
    media.append(MediaSource(kind=kind, url=url, param=f"{path}.{field}"))
    return {"type": kind}
