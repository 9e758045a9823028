"""The server's side of the media workers: who is idle, and one conversation with each at a time.

start(job) ──▶ MediaPrepared ──▶ finish(place) ──▶ MediaDone ──▶ idle again
"""

import asyncio
import logging
from typing import Protocol

import msgspec

from glimt.errors import BadMedia, RequestError
from glimt.wire import (
    ErrorInfo,
    MediaDone,
    MediaGrant,
    MediaHello,
    MediaInbound,
    MediaJob,
    MediaOutbound,
    MediaPrepared,
    PixelRef,
)

log = logging.getLogger(__name__)

_GRACE_S = 15.0  # beyond the worker's own deadline


class MediaHub(Protocol):
    """Where the workers are connected: `transport.AsyncHub`, or threads of this process."""

    async def receive(self) -> tuple[str, MediaOutbound]:
        """(worker's name, message) of the next message."""
        ...

    async def send(self, peer: str, message: MediaInbound, *payload: bytes | memoryview) -> bool:
        """Send to one worker, with raw bytes behind the message. False if it is not there."""
        ...


class MediaWorker:
    """One worker process as the server sees it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.is_gone = False
        self.is_late = False  # its job was given up; it is idle after its next MediaDone
        self.job_id: int | None = None
        self.reply: asyncio.Future[MediaPrepared | MediaDone] | None = None


class MediaWorkers:
    """All workers that are connected to the hub. Lives on one event loop."""

    def __init__(self, hub: MediaHub) -> None:
        self._hub = hub
        self._workers: dict[str, MediaWorker] = {}
        self._idle: asyncio.Queue[MediaWorker] = asyncio.Queue()

    @property
    def num_workers(self) -> int:
        """Workers that are up."""
        return len(self._workers)

    async def run(self) -> None:
        """Read what the workers say, for ever."""
        while True:
            try:
                name, message = await self._hub.receive()
            except msgspec.MsgspecError:
                log.error("a media worker sent something that is no message")
                continue
            if isinstance(message, MediaHello):
                self.worker_down(name)
                self._workers[name] = worker = MediaWorker(name)
                self._idle.put_nowait(worker)
            else:
                await self._hear(name, message)

    async def _hear(self, name: str, message: MediaPrepared | MediaDone) -> None:
        worker = self._workers.get(name)
        reply = worker and worker.job_id == message.job_id and worker.reply
        if reply and not reply.done():
            reply.set_result(message)
        elif isinstance(message, MediaPrepared):  # of a job that was given up
            await self._hub.send(name, MediaGrant(message.job_id, None))
        elif worker is not None and worker.is_late:
            worker.is_late = False
            self._idle.put_nowait(worker)

    def worker_down(self, name: str) -> None:
        """This worker's process has ended; its job fails."""
        worker = self._workers.pop(name, None)
        if worker is None:
            return
        worker.is_gone = True
        if worker.reply is not None and not worker.reply.done():
            # Very likely the job's own doing, so it is not tried on the next worker.
            worker.reply.set_exception(BadMedia("it could not be decoded"))
            worker.reply.exception()  # seen, should its job be waiting for something else

    async def idle(self) -> MediaWorker:
        """The next idle worker, now the caller's; first come, first served."""
        while (worker := await self._idle.get()).is_gone:
            pass
        return worker

    async def start(self, worker: MediaWorker, job: MediaJob, data: bytes | memoryview) -> bool:
        """Send a job to an idle worker. False if it is not there any more."""
        worker.job_id = job.job_id
        worker.reply = asyncio.get_running_loop().create_future()
        if await self._hub.send(worker.name, job, data):
            return True
        self._workers.pop(worker.name, None)
        worker.is_gone = True
        return False

    async def prepared(self, worker: MediaWorker, job: MediaJob) -> MediaPrepared:
        """The size of the result of a started job. Raises what the worker reports, as BadMedia
        if it died or does not answer."""
        try:
            async with asyncio.timeout(job.limits.decode_timeout_s + _GRACE_S):
                message = await self._next(worker)
        except TimeoutError:
            worker.is_late = True
            worker.job_id = worker.reply = None
            raise BadMedia("it takes too long to decode; send a smaller one") from None
        if isinstance(message, MediaDone):
            self._ended(worker, message)
            raise BadMedia("it could not be decoded")  # done before it was prepared
        worker.reply = asyncio.get_running_loop().create_future()
        return message

    async def finish(self, worker: MediaWorker, place: PixelRef | None) -> None:
        """Have the pixels of a prepared job written to `place`, or dropped; then the worker is
        idle. Raises BadMedia if the worker died or failed; nobody writes any more then."""
        if worker.is_gone or worker.job_id is None:
            raise BadMedia("it could not be decoded")
        await self._hub.send(worker.name, MediaGrant(worker.job_id, place))
        message = await self._next(worker)
        if isinstance(message, MediaDone):
            self._ended(worker, message)

    async def _next(self, worker: MediaWorker) -> MediaPrepared | MediaDone:
        if worker.reply is None:
            raise BadMedia("it could not be decoded")
        return await worker.reply

    def _ended(self, worker: MediaWorker, done: MediaDone) -> None:
        worker.job_id = worker.reply = None
        if not worker.is_gone:
            self._idle.put_nowait(worker)
        if done.error is not None:
            raise as_error(done.error)


def as_error(info: ErrorInfo) -> RequestError:
    """What a worker reports, to be raised here. Whatever its code, the medium is at fault."""
    return BadMedia(info.message, code=info.code)
