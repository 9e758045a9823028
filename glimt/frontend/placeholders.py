"""Placeholders: where media stand in a prompt, and what they grow into.

The template writes one placeholder for each medium. An image's becomes as many `<|image|>` as the
image has merged patches. A video's becomes, for each temporal step, such a run between begin and
end of image, then the step's timestamp as text: frames are images to the model, and `<|video|>`
itself is never seen by it. (As the processors of transformers.)
"""

import hashlib
from collections.abc import Sequence

from glimt.errors import BadCheckpoint
from glimt.frontend.prompt import PreparedFrame, PreparedMedia
from glimt.frontend.tokenizer import Tokenizer
from glimt.wire import ImageSpan


class Placeholders:
    """The placeholder tokens of one tokenizer, looked up by text: ids differ by generation."""

    def __init__(self, tokenizer: Tokenizer, merge_size: int) -> None:
        """Raises BadCheckpoint if the tokenizer lacks one of the tokens."""
        self._tokenizer = tokenizer
        self._merge_size = merge_size
        self._image = _required(tokenizer, "<|image|>")
        self._video = _required(tokenizer, "<|video|>")
        self._begin = _required(tokenizer, "<|begin_of_image|>")
        self._end = _required(tokenizer, "<|end_of_image|>")

    def kinds(self, token_ids: Sequence[int]) -> list[str]:
        """image or video for each placeholder, in order."""
        kinds = {self._image: "image", self._video: "video"}
        return [kinds[token_id] for token_id in token_ids if token_id in kinds]

    def expand(
        self, token_ids: Sequence[int], media: Sequence[PreparedMedia], salt: bytes
    ) -> tuple[list[int], list[ImageSpan]]:
        """The prompt's tokens, and a span for each image and each temporal step of a video.

        `media` fit the placeholders in number, kind and order. `salt` separates tenants.
        """
        expanded: list[int] = []
        spans: list[ImageSpan] = []
        waiting = iter(media)
        for token_id in token_ids:
            if token_id == self._image:
                self._add_frame(next(waiting), 0, salt, expanded, spans)
            elif token_id == self._video:
                video = next(waiting)
                for index, frame in enumerate(video.frames):
                    expanded.append(self._begin)
                    self._add_frame(video, index, salt, expanded, spans)
                    expanded.append(self._end)
                    expanded += self._tokenizer.encode_text(frame.timestamp)
            else:
                expanded.append(token_id)
        return expanded, spans

    def _add_frame(
        self,
        medium: PreparedMedia,
        index: int,
        salt: bytes,
        expanded: list[int],
        spans: list[ImageSpan],
    ) -> None:
        frame = medium.frames[index]
        num_tokens = frame.grid_h * frame.grid_w // self._merge_size**2
        spans.append(
            ImageSpan(
                content_hash=_span_hash(medium, index, frame, salt),
                start=len(expanded),
                num_tokens=num_tokens,
                grid_h=frame.grid_h,
                grid_w=frame.grid_w,
                num_frames=frame.num_frames,
                pixels=frame.pixels,
            )
        )
        expanded.extend([self._image] * num_tokens)


def _span_hash(medium: PreparedMedia, index: int, frame: PreparedFrame, salt: bytes) -> bytes:
    """Identifies an embedding: the same bytes, prepared alike, for the same tenant."""
    shape = f"{medium.kind} {index} {frame.grid_h} {frame.grid_w} {frame.num_frames}".encode()
    digest = hashlib.sha256()
    for part in (medium.content_hash, shape, salt):
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.digest()


def _required(tokenizer: Tokenizer, text: str) -> int:
    token_id = tokenizer.token_id(text)
    if token_id is None:
        raise BadCheckpoint(f"the tokenizer has no token {text}")
    return token_id
