"""Pixels of a few prompts in this process's memory: prepared as a server's workers prepare them."""

import hashlib
from collections.abc import Iterable

import msgspec

from glimt.frontend.fetch import FetchPolicy, MediaFetcher
from glimt.frontend.prompt import MediaSource, PreparedFrame, PreparedMedia
from glimt.media.prepare import prepare
from glimt.processes.control import ServerStart
from glimt.wire import ImageSpan, MediaJob, PixelRef


class PixelBuffer:
    """The pixels of one medium: one arena of its own."""

    def __init__(self, data: memoryview) -> None:
        self._data = data

    def view(self, ref: PixelRef) -> memoryview:
        """The bytes of `ref`. Raises ValueError outside of the buffer."""
        if not 0 <= ref.offset <= ref.offset + ref.nbytes <= len(self._data):
            raise ValueError(f"{ref} lies outside of {len(self._data)} bytes")
        return self._data[ref.offset : ref.offset + ref.nbytes]


class NoLease:
    """Pixels that stay until `PixelStore.forget`."""

    def release(self) -> None:
        """Nothing to give up."""


class PixelStore:
    """A `MediaPreparer` without workers and sharing. `arenas` are the encoder's, in place."""

    def __init__(self, start: ServerStart) -> None:
        self.arenas: list[PixelBuffer] = []
        self._settings = {"image": start.image, "video": start.video}
        self._limits = start.limits
        self._fetcher = MediaFetcher(
            FetchPolicy(allowed_domains=start.allowed_media_domains, limits=start.limits)
        )

    async def prepare(self, source: MediaSource) -> PreparedMedia:
        """Fetch, decode, resize. Raises BadMedia, MediaBlocked, MediaFetchFailed."""
        payload = await self._fetcher.fetch(source)
        settings = source.settings or self._settings[source.kind]
        job = MediaJob(
            job_id=0,
            kind=source.kind,
            is_base64=payload.is_base64,
            settings=settings,
            limits=self._limits,
        )
        prepared = prepare(job, payload.data)
        number = len(self.arenas)
        self.arenas.append(PixelBuffer(prepared.buffer.data))
        frames = tuple(
            PreparedFrame(
                grid_h=frame.grid_h,
                grid_w=frame.grid_w,
                num_frames=frame.num_frames,
                pixels=PixelRef(number, frame.offset, frame.nbytes),
                timestamp=frame.timestamp,
            )
            for frame in prepared.frames
        )
        key = hashlib.sha256(msgspec.msgpack.encode((source.kind, settings, bytes(payload.data))))
        return PreparedMedia(source.kind, key.digest(), frames, NoLease())

    def forget(self, images: Iterable[ImageSpan]) -> None:
        """Give the pixels of these up."""
        for image in images:
            self.arenas[image.pixels.arena] = PixelBuffer(memoryview(b""))

    async def close(self) -> None:
        """End the fetcher's threads."""
        await self._fetcher.close()
