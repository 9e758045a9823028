"""Which replica gets a prompt: the one that will have the least to do, it included.

Work is counted in tokens. What a replica has cached of a prompt is no work: its KV of a common
beginning, and its embeddings of images that were shown before. What it has cached is told from the
prompts that it was given, without asking: `Memory` keeps as many of their blocks as its KV cache
has room for, the least recently used go first, as there.

A prompt goes where its beginning is until the others have so much less to do that computing it
anew is quicker.
"""

from collections import OrderedDict
from collections.abc import Hashable, Iterable
from dataclasses import dataclass

from glimt.frontend.prompt import Prompt
from glimt.wire import EngineInfo, ImageSpan

BLOCK = 64
"""Tokens that are compared at once; an engine's pages are as long or shorter."""


@dataclass(frozen=True, slots=True)
class Footprint:
    """What of a prompt can be cached: a key for each whole block, which stands for all tokens and
    images up to its end; and the images with their ends.
    """

    num_tokens: int
    blocks: tuple[int, ...]
    images: tuple[ImageSpan, ...]
    salt: bytes

    @staticmethod
    def of(prompt: Prompt, salt: bytes) -> "Footprint":
        """`salt` separates tenants, who share no cache."""
        tokens = prompt.token_ids
        images = list(prompt.images)
        key, keys = hash(salt), []
        for end in range(BLOCK, prompt.num_tokens + 1, BLOCK):
            start = end - BLOCK
            while images and images[0].start + images[0].num_tokens <= start:
                images.pop(0)
            shown = tuple(image.content_hash for image in images if image.start < end)
            key = hash((key, tokens[start:end].tobytes(), shown))
            keys.append(key)
        return Footprint(prompt.num_tokens, tuple(keys), prompt.images, salt)


class Memory:
    """What one replica has probably cached."""

    def __init__(self, info: EngineInfo) -> None:
        self._blocks = _Recent(info.num_pages * info.page_size // BLOCK)
        # An image cache has room for twice the largest image at least.
        self._image_tokens = _Recent(2 * info.max_image_tokens)

    def work(self, footprint: Footprint) -> int:
        """Tokens that are still to be computed of a prompt, those of images counted twice: they go
        through the vision tower, too.
        """
        known = 0
        for key in footprint.blocks:
            if key not in self._blocks:
                break
            known += BLOCK
        unseen = sum(
            image.num_tokens
            for image in footprint.images
            if image.start + image.num_tokens > known
            and (footprint.salt, image.content_hash) not in self._image_tokens
        )
        return max(1, footprint.num_tokens - known) + unseen

    def note(self, footprint: Footprint) -> None:
        """The replica was given this prompt."""
        # Backwards, so that of a beginning and its continuation the continuation goes first.
        self._blocks.touch((key, 1) for key in reversed(footprint.blocks))
        self._image_tokens.touch(
            ((footprint.salt, image.content_hash), image.num_tokens) for image in footprint.images
        )

    def forget(self) -> None:
        """The replica's caches were emptied."""
        self._blocks.clear()
        self._image_tokens.clear()


class _Recent:
    """Keys that were used lately, as far as their sizes fit into `room`."""

    def __init__(self, room: int) -> None:
        self._room = room
        self._used = 0
        self._sizes: OrderedDict[Hashable, int] = OrderedDict()

    def __contains__(self, key: Hashable) -> bool:
        return key in self._sizes

    def touch(self, keys: Iterable[tuple[Hashable, int]]) -> None:
        """Use keys of these sizes."""
        for key, size in keys:
            self._used += size - self._sizes.pop(key, 0)
            self._sizes[key] = size
        while self._used > self._room:
            self._used -= self._sizes.popitem(last=False)[1]

    def clear(self) -> None:
        """Forget all."""
        self._sizes.clear()
        self._used = 0
