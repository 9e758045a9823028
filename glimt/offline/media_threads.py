"""Media workers that are threads: they get a job, say its size, get a place, write the pixels."""

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from glimt.arena import SharedArena
from glimt.errors import BadMedia, GlimtError
from glimt.media.prepare import Prepared, prepare
from glimt.wire import (
    ErrorInfo,
    MediaDone,
    MediaGrant,
    MediaHello,
    MediaInbound,
    MediaJob,
    MediaOutbound,
    MediaPrepared,
)

log = logging.getLogger(__name__)


class MediaThreads:
    """Speaks with the media pool as the hub of worker processes does (`transport.AsyncHub`).

    Lives on the event loop that is running when it is made. There is no deadline for images as
    processes have it: a thread cannot be stopped from outside.
    """

    def __init__(self, arena: SharedArena, num_threads: int) -> None:
        self._arena = arena
        self._loop = asyncio.get_running_loop()
        self._outbound: asyncio.Queue[tuple[str, MediaOutbound]] = asyncio.Queue()
        self._prepared: dict[int, Prepared] = {}
        self._threads = ThreadPoolExecutor(num_threads, thread_name_prefix="glimt-media")
        for number in range(num_threads):
            self._outbound.put_nowait((f"media-{number}", MediaHello(number)))

    async def receive(self) -> tuple[str, MediaOutbound]:
        """(worker, message) of the next message."""
        return await self._outbound.get()

    async def send(self, peer: str, message: MediaInbound, *payload: bytes | memoryview) -> bool:
        """Give a job or a place to one worker; always reaches it."""
        if isinstance(message, MediaJob):
            self._run(peer, message.job_id, lambda: self._prepare(message, payload[0]))
        else:
            self._run(peer, message.job_id, lambda: self._deliver(message))
        return True

    def close(self) -> None:
        """Wait for what runs, drop what does not."""
        self._threads.shutdown(cancel_futures=True)

    def _run(self, peer: str, job_id: int, work: Callable[[], MediaOutbound]) -> None:
        def run() -> None:
            answer = _answered(job_id, work)
            self._loop.call_soon_threadsafe(self._outbound.put_nowait, (peer, answer))

        self._threads.submit(run)

    def _prepare(self, job: MediaJob, payload: bytes | memoryview) -> MediaPrepared:
        prepared = prepare(job, payload)
        self._prepared[job.job_id] = prepared
        return MediaPrepared(
            job_id=job.job_id,
            nbytes=prepared.buffer.nbytes,
            frames=prepared.frames,
            decode_s=prepared.decode_s,
            resize_s=prepared.resize_s,
        )

    def _deliver(self, grant: MediaGrant) -> MediaDone:
        prepared = self._prepared.pop(grant.job_id)
        if grant.place is not None:
            self._arena.view(grant.place)[:] = prepared.buffer.data
        return MediaDone(job_id=grant.job_id)


def _answered(job_id: int, work: Callable[[], MediaOutbound]) -> MediaOutbound:
    try:
        return work()
    except GlimtError as error:
        return MediaDone(job_id=job_id, error=ErrorInfo(error.code, error.message))
    except MemoryError:
        text = "the picture or video needs more memory than there is"
        return MediaDone(job_id=job_id, error=ErrorInfo(BadMedia.code, text))
    except Exception:
        log.exception("a media job failed in an unforeseen way")
        text = "the picture or video could not be prepared"
        return MediaDone(job_id=job_id, error=ErrorInfo(BadMedia.code, text))
