"""One connection, in this process: how long it may go on when its client has its answer."""

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
import uvicorn

from glimt.processes import connection
from glimt.processes.connection import Connection

LIMIT_S = 0.4
POST = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 20\r\n\r\n"


async def refuse(scope: Any, receive: Any, send: Any) -> None:
    """An application that does not read what it is sent."""
    headers = [(b"content-length", b"2")]
    await send({"type": "http.response.start", "status": 404, "headers": headers})
    await send({"type": "http.response.body", "body": b"no"})


@pytest.fixture
async def port(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[int]:
    monkeypatch.setattr(connection, "LINGER_S", LIMIT_S)
    monkeypatch.setattr(connection, "KEEP_ALIVE_S", 3 * LIMIT_S)
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(
        refuse, http=Connection, lifespan="off", log_config=None, timeout_keep_alive=60
    )
    server = uvicorn.Server(config)
    server.capture_signals = contextlib.nullcontext  # type: ignore[assignment, method-assign]
    task = asyncio.create_task(server.serve(sockets=[listener]))
    yield listener.getsockname()[1]
    server.should_exit = True
    await task
    listener.close()


async def test_a_body_that_nobody_reads_ends_or_is_ended(port: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(POST)
    assert (await reader.readuntil(b"no")).startswith(b"HTTP/1.1 404 ")
    ended = asyncio.create_task(reader.read())
    started_s = time.monotonic()
    for _ in range(15):
        if ended.done():
            break
        writer.write(b"x")  # and the keep-alive begins anew
        await asyncio.sleep(LIMIT_S / 5)
    assert await ended == b""
    assert time.monotonic() - started_s >= LIMIT_S
    writer.close()


async def test_who_ends_such_a_body_may_ask_again_and_is_not_kept_for_ever(port: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(POST)
    await reader.readuntil(b"no")
    writer.write(b"x" * 20)
    await asyncio.sleep(2 * LIMIT_S)
    writer.write(POST + b"x" * 20)
    assert (await reader.readuntil(b"no")).startswith(b"HTTP/1.1 404 ")
    writer.write(POST)
    await reader.readuntil(b"no")
    writer.write(b"x" * 20)
    assert await reader.read() == b""
    writer.close()
