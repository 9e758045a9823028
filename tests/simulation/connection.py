"""A client's connection as the HTTP server gives it to the application: ASGI's receive and send.

As in uvicorn, a write waits while earlier writes fill the buffer, a client that has gone swallows
all writes, and once the answer is complete `receive` tells of the end.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable
from typing import Any

from tests.simulation.story import Ask


class Connection:
    """One request and its answer; the client's habits are those of `ask`."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        rng: random.Random,
        ask: Ask,
        note: Callable[..., None],
    ) -> None:
        self.ask = ask
        self.status = 0
        self.headers: dict[str, str] = {}
        self.written = bytearray()
        self.is_answered = False  # the application has written everything
        self.has_left = False  # the client, before it had everything
        self.is_closed = False  # by the server
        self.may_be_unready = False  # an engine was missing, or the server was leaving
        self.uploaded_s = 0.0  # when the application last took a part of the request
        self.problems: list[str] = []
        self._loop = loop
        self._rng = rng
        self._note = note
        self._uploaded: deque[dict[str, Any]] = deque()
        self._changed = asyncio.Event()
        self._resumed = asyncio.Event()
        self._unread = 0
        self._num_read = 0
        self._reading: asyncio.TimerHandle | None = None
        self._start_upload()
        if ask.leave_after_s is not None:
            loop.call_later(ask.leave_after_s, self.leave)

    @property
    def is_stalled(self) -> bool:
        """The client reads nothing more."""
        after = self.ask.stall_after_reads
        return after is not None and self._num_read >= after

    @property
    def has_all(self) -> bool:
        """The client has the whole answer."""
        return self.is_answered and self._unread == 0

    def leave(self) -> None:
        """The client closes the connection."""
        if not self.has_all:
            self._note("leave", self.ask.index)
            self.has_left = True
        self._wake()

    def close(self) -> None:
        """The server closes it: the application is done with it."""
        self.is_closed = True
        if not self.is_answered and not self.has_left and not self.is_stalled:
            self.problems.append("the connection was closed without a complete answer")

    def _start_upload(self) -> None:
        time_s = self._loop.time()
        last = len(self.ask.parts) - 1
        for index, (delay_s, body) in enumerate(self.ask.parts):
            time_s += delay_s
            more = index < last or self.ask.is_upload_stuck
            message = {"type": "http.request", "body": body, "more_body": more}
            self._loop.call_at(time_s + index * 1e-6, self._upload, message)

    def _upload(self, message: dict[str, Any]) -> None:
        self._uploaded.append(message)
        self._changed.set()

    async def receive(self) -> dict[str, Any]:
        """ASGI."""
        while not (self.has_left or self.is_answered):
            if self._uploaded:
                self.uploaded_s = self._loop.time()
                return self._uploaded.popleft()
            self._changed.clear()
            await self._changed.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: dict[str, Any]) -> None:
        """ASGI."""
        while self._unread > self.ask.buffer_bytes and not self.has_left:
            self._resumed.clear()
            await self._resumed.wait()
        if self.has_left:
            return
        if self.is_answered or self.is_closed:
            self.problems.append("something was written after the end")
        if message["type"] == "http.response.start":
            if self.status:
                self.problems.append("two answers were begun")
            self.status = message["status"]
            self.headers = {k.decode(): v.decode() for k, v in message["headers"]}
            self._note("status", self.ask.index, self.status)
            return
        if not self.status:
            self.problems.append("the body was sent before the head")
        body = message.get("body", b"")
        self._note("write", self.ask.index, bytes(body))
        self.written += body
        self._unread += len(body)
        if not message.get("more_body", False):
            self.is_answered = True
            self._wake()
        if self._unread and self._reading is None:
            self._read_later()

    def _read_later(self) -> None:
        delay_s = self._rng.random() * self.ask.read_s
        self._reading = self._loop.call_later(delay_s, self._read)

    def _read(self) -> None:
        self._reading = None
        if self.has_left or self.is_stalled:
            return
        self._unread = 0
        self._num_read += 1
        self._resumed.set()
        if self.ask.leave_after_reads is not None and self._num_read >= self.ask.leave_after_reads:
            self.leave()

    def _wake(self) -> None:
        self._changed.set()
        self._resumed.set()
