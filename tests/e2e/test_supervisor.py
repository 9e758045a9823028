"""The supervisor itself, in this process, with children that are real."""

import asyncio
import os
import signal
import socket
from pathlib import Path

import msgspec
import pytest

from glimt.checkpoint import read_checkpoint
from glimt.config import MediaSettings, ParallelSettings, Settings
from glimt.processes.plan import make_plan
from glimt.processes.supervisor import Supervisor
from tests.support.processes import processes_running


async def until(lines: list[str], text: str, seconds: float = 60.0) -> None:
    async def look() -> None:
        while not any(text in line for line in lines):
            await asyncio.sleep(0.05)

    await asyncio.wait_for(look(), seconds)


@pytest.mark.slow
async def test_an_engine_that_stands_still_is_ended_and_replaced(checkpoint: Path) -> None:
    settings = Settings(model=str(checkpoint), media=MediaSettings(media_workers=1))
    plan = msgspec.structs.replace(
        make_plan(settings, read_checkpoint(checkpoint)), engine_stall_limit_s=3.0
    )
    listener = socket.create_server(("127.0.0.1", 0))
    lines: list[str] = []
    running = asyncio.create_task(Supervisor(plan, listener, lines.append).run())
    await until(lines, "ready after")
    [engine] = processes_running("processes.engine")
    engine.suspend()
    await until(lines, "engine-0 made no progress")
    await until(lines, "engine-0 is back")
    assert not engine.is_running()
    os.kill(os.getpid(), signal.SIGTERM)
    assert await asyncio.wait_for(running, 30) == 0


@pytest.mark.slow
async def test_a_server_that_stands_still_is_ended_and_the_other_stays(checkpoint: Path) -> None:
    settings = Settings(
        model=str(checkpoint),
        media=MediaSettings(media_workers=2),
        parallel=ParallelSettings(api_server_count=2),
    )
    plan = msgspec.structs.replace(
        make_plan(settings, read_checkpoint(checkpoint)), server_silence_limit_s=4.0
    )
    listener = socket.create_server(("127.0.0.1", 0))
    lines: list[str] = []
    running = asyncio.create_task(Supervisor(plan, listener, lines.append).run())
    await until(lines, "ready after")
    first, second = processes_running("processes.server")
    first.suspend()
    await until(lines, "server-0 gave no sign of life")
    await until(lines, "server-0 is back")
    assert not first.is_running()
    assert second.is_running()
    os.kill(os.getpid(), signal.SIGTERM)
    assert await asyncio.wait_for(running, 30) == 0
