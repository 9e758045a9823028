"""Prepares all media of a request at once; after a failure or cancellation no lease is left."""

import asyncio
from collections.abc import Sequence

from glimt.frontend.prompt import MediaPreparer, MediaSource, PreparedMedia


async def prepare_all(
    sources: Sequence[MediaSource], media: MediaPreparer
) -> tuple[PreparedMedia, ...]:
    """The media in the order of `sources`; the caller owns their leases.

    Raises what the first failing preparation raises; the others are cancelled.
    """
    if not sources:
        return ()
    tasks = [asyncio.ensure_future(media.prepare(source)) for source in sources]
    try:
        return tuple(await asyncio.gather(*tasks))
    except BaseException:
        for task in tasks:
            task.cancel()
            # As a callback, so that it also happens if this coroutine is cancelled once more.
            task.add_done_callback(_release)
        await asyncio.wait(tasks)
        raise


def _release(task: "asyncio.Future[PreparedMedia]") -> None:
    if not task.cancelled() and task.exception() is None:
        task.result().lease.release()
