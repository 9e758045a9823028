"""A conversation before, and a prompt after, it became tokens; and what media must be for that.

Conversation ──render.py──▶ Prompt        MediaSource ──MediaPreparer──▶ PreparedMedia
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from glimt.wire import ImageSettings, ImageSpan, PixelRef

IntArray = NDArray[np.int32]


@dataclass(frozen=True)
class MediaSource:
    """One image or video as the client named it: nothing has been fetched or decoded yet."""

    kind: str  # image · video
    url: str  # http(s):, data: or file:
    param: str  # where it stood in the request, "messages[0].content[1].image_url"
    settings: ImageSettings | None = None  # in place of the server's


@dataclass(frozen=True)
class PreparedFrame:
    """A still image, or one temporal step of a video, as pixels in shared memory.

    `timestamp` is the text that follows a video step ("0", "0.4 seconds"); "" for stills.
    """

    grid_h: int  # in patches
    grid_w: int
    num_frames: int  # 1 for a still, 2 for a video step
    pixels: PixelRef
    timestamp: str = ""


class Lease(Protocol):
    """A claim on pixels in shared memory: they stay where they are until it is released."""

    def release(self) -> None:
        """Give the claim up; doing it again does nothing."""


@dataclass(frozen=True)
class PreparedMedia:
    """One medium, decoded and resized. `content_hash` covers its bytes and all settings that
    change its pixels; it is the same for the same medium in another request."""

    kind: str  # image · video
    content_hash: bytes  # 32 bytes
    frames: tuple[PreparedFrame, ...]  # exactly one for an image
    lease: Lease


class MediaPreparer(Protocol):
    """Turns sources into pixels; `frontend/media_pool.py` is the real one."""

    async def prepare(self, source: MediaSource) -> PreparedMedia:
        """Fetch, decode, resize. The caller owns the lease of what it gets.

        Raises BadMedia, MediaBlocked, MediaFetchFailed (each with `source.param`), Overloaded.
        A cancelled call leaves no lease behind.
        """


@dataclass(frozen=True)
class Conversation:
    """A chat request's part that the template sees.

    `messages` are plain JSON values in OpenAI's shape; a content part of type "image" or
    "video" (its only key that matters is `type`) stands for the next entry of `media`.
    """

    messages: tuple[dict[str, Any], ...]
    media: tuple[MediaSource, ...] = ()  # in order of appearance in the messages
    tools: tuple[dict[str, Any], ...] | None = None
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    add_generation_prompt: bool = True
    continue_final: bool = False  # the last message is the beginning of the answer
    template: str | None = None  # in place of the checkpoint's


@dataclass(frozen=True)
class Prompt:
    """What the engine needs to know of a request's input.

    Whoever holds a prompt owns its leases and releases them after the request's terminal output.
    """

    token_ids: IntArray  # [L]
    positions: IntArray | None = None  # [3, L]: time, height, width; None = text only, 0 … L-1
    rope_delta: int = 0  # position of generated token i, counted in the whole sequence, minus i
    images: tuple[ImageSpan, ...] = ()  # ascending by start
    leases: tuple[Lease, ...] = ()

    @property
    def num_tokens(self) -> int:
        """Length in tokens, media included (`usage.prompt_tokens`)."""
        return int(self.token_ids.shape[0])

    @property
    def num_media_tokens(self) -> int:
        """How many of the tokens stand for pixels."""
        return sum(image.num_tokens for image in self.images)

    def release(self) -> None:
        """Release all leases; doing it again does nothing."""
        for lease in self.leases:
            lease.release()
