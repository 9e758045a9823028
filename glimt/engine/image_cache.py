"""ImageCache: which image embeddings the executor keeps, by content hash.

The scheduler decides what is encoded and dropped, the executor only obeys (`StepPlan.encode`,
`StepPlan.drop_images`), so this account is the cache. An embedding is held by the requests whose
KV stands before or inside its span; one that nobody holds stays until its room is needed.
"""

from collections import OrderedDict
from collections.abc import Iterable


class CachedImage:
    """One embedding. `is_live` turns False when it was forgotten while somebody held it;
    `is_ready` turns True when a step that reads it would not have to wait for it.
    """

    __slots__ = ("content_hash", "is_live", "is_ready", "num_holders", "num_tokens")

    def __init__(self, content_hash: bytes, num_tokens: int) -> None:
        self.content_hash = content_hash
        self.num_tokens = num_tokens
        self.num_holders = 0
        self.is_live = True
        self.is_ready = False


class ImageCache:
    """Capacity in tokens; least recently released embeddings go first."""

    def __init__(self, capacity_tokens: int) -> None:
        self.capacity_tokens = capacity_tokens
        self.num_tokens = 0
        self._images: dict[bytes, CachedImage] = {}
        self._unheld: OrderedDict[bytes, CachedImage] = OrderedDict()
        self._num_unheld_tokens = 0
        self._dropped: list[bytes] = []

    def find(self, content_hash: bytes) -> CachedImage | None:
        """The embedding of this content, if the executor has it (or is told to make it)."""
        return self._images.get(content_hash)

    def add(self, content_hash: bytes, num_tokens: int) -> CachedImage | None:
        """Account for a new embedding, or None if what is held leaves no room. Not yet held."""
        if self.num_tokens - self._num_unheld_tokens + num_tokens > self.capacity_tokens:
            return None
        while self.num_tokens + num_tokens > self.capacity_tokens:
            self._drop(next(iter(self._unheld.values())))
        image = CachedImage(content_hash, num_tokens)
        self._images[content_hash] = image
        self.num_tokens += num_tokens
        self._set_unheld(image)
        return image

    def encoded(self, content_hashes: Iterable[bytes]) -> None:
        """The executor says that these need no waiting for."""
        for content_hash in content_hashes:
            image = self._images.get(content_hash)
            if image is not None:
                image.is_ready = True

    def hold(self, image: CachedImage) -> None:
        """One more request needs it."""
        if image.num_holders == 0:
            del self._unheld[image.content_hash]
            self._num_unheld_tokens -= image.num_tokens
        image.num_holders += 1

    def release(self, image: CachedImage) -> None:
        """One request fewer needs it."""
        image.num_holders -= 1
        if image.num_holders == 0 and image.is_live:
            self._set_unheld(image)

    def forget(self, content_hashes: Iterable[bytes]) -> None:
        """Give up embeddings that are missing or not to be trusted, held or not."""
        for content_hash in content_hashes:
            image = self._images.get(content_hash)
            if image is not None:
                self._drop(image)

    def reset(self) -> None:
        """Forget what nobody holds."""
        self.forget(list(self._unheld))

    def take_dropped(self) -> tuple[bytes, ...]:
        """What the executor must be told to drop, once. Comes before the encodes of its plan."""
        dropped = tuple(self._dropped)
        self._dropped.clear()
        return dropped

    def check(self, held: Iterable[CachedImage]) -> list[str]:
        """Violations of the account, given all (request, image) holds; empty if all is well."""
        found: list[str] = []
        holders: dict[int, int] = {}
        for image in held:
            holders[id(image)] = holders.get(id(image), 0) + 1
            if holders[id(image)] > image.num_holders:
                found.append("an image is held more often than counted")
        for image in self._images.values():
            if holders.get(id(image), 0) != image.num_holders or not image.is_live:
                found.append("an image's holders are miscounted")
            if (image.num_holders == 0) != (image.content_hash in self._unheld):
                found.append("an image is both held and evictable, or neither")
        if self.num_tokens != sum(image.num_tokens for image in self._images.values()):
            found.append("image tokens are miscounted")
        if self._num_unheld_tokens != sum(image.num_tokens for image in self._unheld.values()):
            found.append("evictable image tokens are miscounted")
        if self.num_tokens > self.capacity_tokens:
            found.append("the image cache is over its capacity")
        return found

    def _set_unheld(self, image: CachedImage) -> None:
        self._unheld[image.content_hash] = image
        self._num_unheld_tokens += image.num_tokens

    def _drop(self, image: CachedImage) -> None:
        image.is_live = False
        del self._images[image.content_hash]
        self.num_tokens -= image.num_tokens
        self._dropped.append(image.content_hash)
        if image.num_holders == 0:
            del self._unheld[image.content_hash]
            self._num_unheld_tokens -= image.num_tokens
