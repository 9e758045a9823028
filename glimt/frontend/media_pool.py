"""From a media source to pixels in shared memory: fetch, look up, or have a worker decode.

    prepare ──fetch──▶ key ──kept?──▶ lease
                        │ no
                        ▼
              one job per key (many may wait for it)
    queued ──▶ worker decodes ──▶ room in the arena ──▶ worker writes ──▶ kept under the key

A job belongs to those who wait for it. When the last of them leaves, a queued job vanishes at once
and one at a worker is dropped when its pixels are ready; no range of the arena stays behind.
"""

import asyncio
import contextlib
import hashlib
import itertools
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from glimt.errors import BadMedia, MediaFetchFailed, Overloaded, RequestError
from glimt.frontend.fetch import MediaFetcher, Payload
from glimt.frontend.media_workers import MediaHub, MediaWorker, MediaWorkers
from glimt.frontend.pixel_pool import PixelLease, PixelPool
from glimt.frontend.prompt import MediaSource, PreparedFrame, PreparedMedia
from glimt.media_series import MediaSeries
from glimt.wire import (
    ImageSettings,
    MediaFrame,
    MediaJob,
    MediaLimits,
    PixelRef,
)

Frames = tuple[MediaFrame, ...]

PROCESSOR_VERSION = b"glimt-media-1"  # part of every key: change it when pixels change
_INLINE_HASH_BYTES = 1 << 16  # hashing more than this leaves the event loop


@dataclass(frozen=True, kw_only=True)
class PoolLimits:
    """What may wait, and how long."""

    max_queued_jobs: int = 512
    max_queued_bytes: int = 2 * 2**30  # encoded
    queue_timeout_s: float = 60.0  # for a worker
    room_timeout_s: float = 60.0  # for space in the arena


@dataclass(eq=False)
class _Job:
    key: bytes
    kind: str
    settings: ImageSettings
    payload: Payload | None  # None = at a worker
    queued_s: float
    outcome: "asyncio.Future[PixelLease[Frames]]"
    num_wanting: int = 0
    wake: asyncio.Event = field(default_factory=asyncio.Event)  # something may have changed
    task: "asyncio.Task[None] | None" = None

    @property
    def num_queued_bytes(self) -> int:
        return len(self.payload.data) if self.payload is not None else 0


class MediaPool:
    """The server's `MediaPreparer`; lives on one event loop, which must run `run()`.

    `image` and `video` are the settings of the checkpoint, `limits` those of the operator.
    """

    def __init__(
        self,
        hub: MediaHub,
        arena: PixelPool[Frames],
        fetcher: MediaFetcher,
        *,
        image: ImageSettings,
        video: ImageSettings,
        limits: MediaLimits,
        metrics: MediaSeries,
        pool_limits: PoolLimits | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._workers = MediaWorkers(hub)
        self._arena = arena
        self._fetcher = fetcher
        self._settings = {"image": image, "video": video}
        self._limits = limits
        self._metrics = metrics
        self._pool_limits = pool_limits or PoolLimits()
        self._clock = clock
        self._jobs: dict[bytes, _Job] = {}
        self._for_room: deque[_Job] = deque()
        self._job_ids = itertools.count(1)
        arena.on_room = self._wake_first

    async def run(self) -> None:
        """Read what the workers say, for ever."""
        await self._workers.run()

    def worker_down(self, name: str) -> None:
        """The process of this media worker has ended; the supervisor starts another."""
        self._workers.worker_down(name)

    @property
    def num_workers(self) -> int:
        """Workers that have said hello and are alive."""
        return self._workers.num_workers

    @property
    def num_jobs(self) -> int:
        """Jobs that are queued or at a worker."""
        return len(self._jobs)

    async def prepare(self, source: MediaSource) -> PreparedMedia:
        """Fetch, decode, resize; what is still in the arena is neither decoded nor written.

        The caller owns the lease. Raises BadMedia, MediaBlocked, MediaFetchFailed (with
        `source.param`), Overloaded.
        """
        began_s = self._clock()
        try:
            payload = await self._fetcher.fetch(source)
        except MediaFetchFailed:
            self._metrics.fetch_errors.inc()
            raise
        settings = source.settings or self._settings[source.kind]
        key = await _key(self._salt(source.kind, settings), payload)
        lease = self._arena.lease(key)
        self._metrics.observe_lookup(hit=lease is not None or key in self._jobs)
        if lease is None:
            lease = await self._decoded(key, source, settings, payload)
        self._metrics.observe(source.kind, self._clock() - began_s)
        frames = tuple(_placed(frame, lease.place) for frame in lease.value)
        return PreparedMedia(source.kind, key, frames, lease)

    def forget_unleased(self) -> None:
        """Forget pixels that nobody holds."""
        self._arena.forget_unleased()

    # -------------------------------------------------------------------------------- keys

    def _salt(self, kind: str, settings: ImageSettings) -> bytes:
        """All that changes the pixels beside the bytes."""
        parts = (kind, settings, self._limits.max_video_frames)
        return PROCESSOR_VERSION + msgspec.msgpack.encode(parts)

    # -------------------------------------------------------------------------------- jobs

    async def _decoded(
        self, key: bytes, source: MediaSource, settings: ImageSettings, payload: Payload
    ) -> PixelLease[Frames]:
        """A lease on the pixels, by joining the job for `key` or starting it."""
        job = self._jobs.get(key) or self._start(key, source.kind, settings, payload)
        job.num_wanting += 1
        try:
            await asyncio.shield(job.outcome)
            # The job's own lease guards the range until everyone here has one.
            lease = self._arena.lease(key)
            if lease is None:
                raise RuntimeError("a leased range has vanished from the arena")
            return lease
        except RequestError as error:
            raise type(error)(error.message, param=source.param, code=error.code) from None
        except Overloaded as error:  # each reader raises its own: tracebacks grow on reuse
            raise Overloaded(error.message, retry_after_s=error.retry_after_s) from None
        finally:
            job.num_wanting -= 1
            if job.num_wanting == 0:
                self._leave(job)

    def _start(self, key: bytes, kind: str, settings: ImageSettings, payload: Payload) -> _Job:
        queued = [job for job in self._jobs.values() if job.payload is not None]
        num_bytes = sum(job.num_queued_bytes for job in queued) + len(payload.data)
        limits = self._pool_limits
        if len(queued) >= limits.max_queued_jobs or (
            queued and num_bytes > limits.max_queued_bytes
        ):
            raise Overloaded("too many images and videos wait to be decoded; try again later")
        job = _Job(
            key, kind, settings, payload, self._clock(), asyncio.get_running_loop().create_future()
        )
        self._jobs[key] = job
        job.task = asyncio.ensure_future(self._run(job))
        self._metrics.waiting.set(len(self._jobs))
        return job

    def _leave(self, job: _Job) -> None:
        """Nobody waits for the job any more."""
        if job.outcome.done():
            if not job.outcome.cancelled() and job.outcome.exception() is None:
                job.outcome.result().release()
        elif job.payload is not None and job.task is not None:
            job.task.cancel()
            self._forget(job)
        else:
            job.wake.set()

    def _forget(self, job: _Job) -> None:
        if self._jobs.get(job.key) is job:
            del self._jobs[job.key]
            self._metrics.waiting.set(len(self._jobs))

    async def _run(self, job: _Job) -> None:
        """The whole life of a job; its end is in `job.outcome`."""
        try:
            lease = await self._process(job)
        except Exception as error:
            job.outcome.set_exception(error)
            job.outcome.exception()  # seen, should nobody be left to see it
        except BaseException:
            job.outcome.cancel()
            raise
        else:
            if lease is None:
                job.outcome.cancel()
            else:
                job.outcome.set_result(lease)
                if job.num_wanting == 0:
                    lease.release()
        finally:
            self._forget(job)

    async def _process(self, job: _Job) -> PixelLease[Frames] | None:
        """The pixels, kept and leased; None if nobody wanted them any more."""
        worker, message = await self._hand_over(job)
        handed_over_s = self._clock()
        prepared = await self._workers.prepared(worker, message)
        self._metrics.observe_work(
            job.kind,
            queue_s=handed_over_s - job.queued_s,
            decode_s=prepared.decode_s,
            resize_s=prepared.resize_s,
        )
        place: PixelRef | None = None
        try:
            place = await self._room(job, prepared.nbytes)
        finally:
            if place is None:
                await self._workers.finish(worker, None)
        if place is None:
            return None
        try:
            await self._workers.finish(worker, place)
        except BaseException:
            self._arena.free(place)
            raise
        return self._arena.keep(job.key, place, prepared.frames)

    async def _hand_over(self, job: _Job) -> tuple[MediaWorker, MediaJob]:
        """Wait for a worker and send the job to it. From then on it runs to its end."""
        payload = job.payload
        if payload is None:
            raise RuntimeError("a job is handed over once")
        message = MediaJob(
            job_id=next(self._job_ids),
            kind=job.kind,
            is_base64=payload.is_base64,
            settings=job.settings,
            limits=self._limits,
        )
        while True:
            try:
                async with asyncio.timeout(self._pool_limits.queue_timeout_s):
                    worker = await self._workers.idle()
            except TimeoutError:
                raise Overloaded("no media worker became free in time; try again later") from None
            job.payload = None
            if await self._workers.start(worker, message, payload.data):
                return worker, message
            job.payload = payload

    async def _room(self, job: _Job, nbytes: int) -> PixelRef | None:
        """A range for the pixels, first come, first served; None if nobody wants them any more.

        Raises BadMedia for what can never fit, Overloaded when no room is made in time.
        """
        if nbytes > self._arena.nbytes:
            raise BadMedia(
                f"its pixels take {nbytes:,} bytes, more than this server's media memory has "
                f"({self._arena.nbytes:,}); send a smaller one"
            )
        self._for_room.append(job)
        try:
            async with asyncio.timeout(self._pool_limits.room_timeout_s):
                while job.num_wanting:
                    is_first = self._for_room[0] is job
                    if is_first and (place := self._arena.allocate(nbytes)) is not None:
                        return place
                    job.wake.clear()
                    await self._woken(job)
        except TimeoutError:
            raise Overloaded("the memory for media is full; try again later") from None
        finally:
            self._for_room.remove(job)
            self._wake_first()
        self._forget(job)  # whoever comes now starts afresh
        return None

    async def _woken(self, job: _Job) -> None:
        """Until something may have changed: here, or, every so often, in another server."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(job.wake.wait(), self._arena.recheck_s)

    def _wake_first(self) -> None:
        if self._for_room:
            self._for_room[0].wake.set()


async def _key(salt: bytes, payload: Payload) -> bytes:
    """SHA-256 over the bytes as they came, never over the URL."""
    salt += b"\1" if payload.is_base64 else b"\0"
    if len(payload.data) <= _INLINE_HASH_BYTES:
        return _digest(salt, payload.data)
    return await asyncio.to_thread(_digest, salt, payload.data)


def _digest(salt: bytes, data: bytes | memoryview) -> bytes:
    digest = hashlib.sha256(len(salt).to_bytes(4, "little") + salt)
    digest.update(data)
    return digest.digest()


def _placed(frame: MediaFrame, place: PixelRef) -> PreparedFrame:
    return PreparedFrame(
        grid_h=frame.grid_h,
        grid_w=frame.grid_w,
        num_frames=frame.num_frames,
        pixels=PixelRef(place.arena, place.offset + frame.offset, frame.nbytes),
        timestamp=frame.timestamp,
    )
