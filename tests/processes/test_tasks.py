"""Tasks of a process: the first that fails ends it, and none outlives it."""

import asyncio

import pytest

from glimt.processes.tasks import Tasks


async def test_the_first_task_that_fails_ends_the_process_and_the_others_are_cancelled() -> None:
    tasks = Tasks()
    fails = asyncio.Event()

    async def fail(text: str) -> None:
        await fails.wait()
        raise OSError(text)

    forever = tasks.spawn(asyncio.sleep(3600))
    for text in ("first", "second"):
        tasks.spawn(fail(text))
    assert not tasks.have_ended
    fails.set()
    with pytest.raises(OSError, match="first"):
        await tasks.wait()
    tasks.end()  # too late: what went wrong stays
    assert tasks.have_ended
    await tasks.cancel()
    assert forever.cancelled()


async def test_a_task_that_comes_to_its_end_or_is_cancelled_ends_nothing() -> None:
    tasks = Tasks()
    done = tasks.spawn(asyncio.sleep(0))
    cancelled = tasks.spawn(asyncio.sleep(3600))
    cancelled.cancel()
    await asyncio.wait([done, cancelled])
    assert not tasks.have_ended
    tasks.end()
    await tasks.wait()
