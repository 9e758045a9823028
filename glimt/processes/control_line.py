"""The line between the supervisor and each of its children, and its two ends.

One socketpair per child (SOCK_SEQPACKET: a message is a message), msgpack, never pickle. The end
of the line is also the news of a death, both ways: a child that reads end-of-file has lost its
parent and leaves at once (so nothing survives a SIGKILL of the parent), a parent that reads it
has lost the child. What is said is in `control.py`.
"""

import os
import socket
import threading
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import msgspec

from glimt.processes.control import ToChild, ToParent

Received = TypeVar("Received")

MAX_MESSAGE_BYTES = 1 << 20


class ControlLine(Generic[Received]):
    """One end of the line. `kinds` is the union of structs that arrive here."""

    def __init__(self, end: socket.socket, kinds: Any) -> None:
        self._end = end
        self._decoder: msgspec.msgpack.Decoder[Received] = msgspec.msgpack.Decoder(kinds)
        self._encoder = msgspec.msgpack.Encoder()
        self._lock = threading.Lock()

    def fileno(self) -> int:
        """The descriptor, for an event loop."""
        return self._end.fileno()

    def send(self, message: msgspec.Struct, *, waits: bool = True) -> bool:
        """False if the other side is gone, or, unless this `waits`, if it does not read."""
        try:
            with self._lock:
                flags = 0 if waits else socket.MSG_DONTWAIT
                self._end.send(self._encoder.encode(message), flags)
        except OSError:
            return False
        return True

    def receive(self) -> Received | None:
        """The next message; None = the other side is gone."""
        data = self.receive_bytes()
        return self._decoder.decode(data) if data else None

    def receive_bytes(self) -> bytes:
        """The next message as it came; b"" = the other side is gone."""
        try:
            return self._end.recv(MAX_MESSAGE_BYTES)
        except ConnectionError:
            return b""

    def close(self) -> None:
        """Close this end."""
        self._end.close()


def parent_line(end: socket.socket) -> ControlLine[ToParent]:
    """The supervisor's end."""
    return ControlLine(end, ToParent)


def child_line(fd: int) -> ControlLine[ToChild]:
    """A child's end, from the descriptor it was started with."""
    return ControlLine(socket.socket(fileno=fd), ToChild)


def pair() -> tuple[socket.socket, socket.socket]:
    """The two ends: (parent's, child's). The child's is passed on by descriptor."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def watch(line: ControlLine[ToChild], on_message: Callable[[Any], None]) -> threading.Thread:
    """Read the line in a thread; leave the process when the parent is gone.

    For children without an event loop. `on_message` runs in that thread.
    """

    def read() -> None:
        while (message := line.receive()) is not None:
            on_message(message)
        os._exit(1)

    thread = threading.Thread(target=read, name="control-line", daemon=True)
    thread.start()
    return thread
