"""The loop of a media worker: job in, size out, place in, pixels into it, done."""

import logging
import signal
from collections.abc import Mapping
from typing import Any

from glimt.arena import SharedArena
from glimt.errors import BadMedia, RequestError
from glimt.media.confine import allow_cpu_seconds
from glimt.media.prepare import Prepared, prepare
from glimt.transport import Spoke
from glimt.wire import (
    ErrorInfo,
    MediaDone,
    MediaGrant,
    MediaHello,
    MediaInbound,
    MediaJob,
    MediaPrepared,
    PixelRef,
)

log = logging.getLogger(__name__)

# Beyond the deadline that Python enforces; native code that passes this is killed by the kernel.
_GRACE_S = 10
_DECODE_THREADS = 2


class MediaWorker:
    """Does one job after another; every job is answered by exactly one `MediaDone`.

    Runs in the main thread (its deadline is a signal).
    """

    def __init__(
        self, spoke: Spoke[MediaInbound], arenas: Mapping[int, SharedArena], number: int
    ) -> None:
        self._spoke = spoke
        self._arenas = arenas
        self._number = number

    def run(self) -> None:
        """Say hello and work until the process ends."""
        signal.signal(signal.SIGALRM, _too_late)
        self._spoke.send(MediaHello(self._number))
        while True:
            message, frames = self._spoke.receive()
            if isinstance(message, MediaJob):
                self._do(message, frames[0].buffer)

    def _do(self, job: MediaJob, payload: memoryview) -> None:
        try:
            prepared = self._prepare(job, payload)
            self._deliver(job, prepared)
        except RequestError as error:
            self._fail(job, error)
        except MemoryError:
            self._fail(job, BadMedia(f"the {job.kind} needs more memory than is allowed"))
        except Exception:
            log.exception("a media job failed in an unforeseen way")
            self._fail(job, BadMedia(f"the {job.kind} could not be prepared"))
        else:
            self._spoke.send(MediaDone(job_id=job.job_id))

    def _fail(self, job: MediaJob, error: RequestError) -> None:
        self._spoke.send(MediaDone(job_id=job.job_id, error=ErrorInfo(error.code, error.message)))

    def _prepare(self, job: MediaJob, payload: memoryview) -> Prepared:
        """`prepare` within the job's time. Raises BadMedia."""
        limit_s = job.limits.decode_timeout_s
        allow_cpu_seconds(limit_s * _DECODE_THREADS + _GRACE_S)
        signal.setitimer(signal.ITIMER_REAL, limit_s, 1.0)  # again, if a library ate it
        try:
            return prepare(job, payload)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)

    def _deliver(self, job: MediaJob, prepared: Prepared) -> None:
        self._spoke.send(
            MediaPrepared(
                job_id=job.job_id,
                nbytes=prepared.buffer.nbytes,
                frames=prepared.frames,
                decode_s=prepared.decode_s,
                resize_s=prepared.resize_s,
            )
        )
        place = self._granted_place(job.job_id)
        if place is not None:
            self._arenas[place.arena].view(place)[:] = prepared.buffer.data

    def _granted_place(self, job_id: int) -> PixelRef | None:
        while True:
            message, _ = self._spoke.receive()
            if isinstance(message, MediaGrant) and message.job_id == job_id:
                return message.place


def _too_late(signum: int, frame: Any) -> None:
    raise BadMedia("it takes too long to decode; send a smaller one")
