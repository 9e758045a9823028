"""Media for simulated requests: prepared after a while, sometimes in vain, every lease counted."""

from __future__ import annotations

import asyncio
import hashlib
import random

from glimt.errors import BadMedia, Overloaded
from glimt.frontend.prompt import MediaSource, PreparedFrame, PreparedMedia
from glimt.wire import ImageSpan, PixelRef

# Grids in patches by address; a video is one grid for each temporal step, with its timestamp.
IMAGES = {"data:1": (2, 2), "data:4": (4, 4), "data:6": (4, 6), "data:16": (8, 8)}
VIDEOS = {"data:v": ((2, 4, "0"), (2, 4, "1"))}
BAD = "data:bad"
PLACE_BYTES = 1 << 20


class CountedLease:
    """A claim on one place of the pretended arena."""

    def __init__(self, place: int) -> None:
        self.place = place
        self.num_releases = 0

    def release(self) -> None:
        self.num_releases += 1


class SimulatedMedia:
    """A MediaPreparer that takes up to `delay_s`, and is full with probability `full`."""

    def __init__(self, rng: random.Random, delay_s: float, full: float) -> None:
        self.leases: list[CountedLease] = []
        self.problems: list[str] = []
        self._rng = rng
        self._delay_s = delay_s
        self._full = full

    async def prepare(self, source: MediaSource) -> PreparedMedia:
        if self._delay_s:
            await asyncio.sleep(self._rng.random() * self._delay_s)
        if source.url == BAD:
            raise BadMedia("this is not an image", param=source.param)
        if self._rng.random() < self._full:
            raise Overloaded("too many media are being prepared; try again later")
        lease = CountedLease(len(self.leases))
        self.leases.append(lease)
        return prepared(source, lease)

    def on_encode(self, span: ImageSpan) -> None:
        """An engine reads a span's pixels: they must still be there."""
        lease = self.leases[span.pixels.offset // PLACE_BYTES]
        if lease.num_releases:
            self.problems.append(f"pixels of lease {lease.place} were read after its release")

    def judge(self) -> None:
        for lease in self.leases:
            if lease.num_releases != 1:
                self.problems.append(f"lease {lease.place}: {lease.num_releases} releases")


def prepared(source: MediaSource, lease: CountedLease) -> PreparedMedia:
    """What a source gives, in the place of a lease."""
    steps = VIDEOS[source.url] if source.kind == "video" else ((*IMAGES[source.url], ""),)
    frames = tuple(
        PreparedFrame(
            grid_h=height,
            grid_w=width,
            num_frames=2 if source.kind == "video" else 1,
            pixels=PixelRef(0, lease.place * PLACE_BYTES + index * 4096, height * width * 588),
            timestamp=timestamp,
        )
        for index, (height, width, timestamp) in enumerate(steps)
    )
    content_hash = hashlib.sha256(source.url.encode()).digest()
    return PreparedMedia(source.kind, content_hash, frames, lease)
