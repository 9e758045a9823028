"""Sends and receives wire messages over ZeroMQ; knows nothing of their meaning.

Messages are msgpack (never pickle), large bytes travel as a second raw frame. Addresses are
`ipc://` paths inside a 0700 directory that the supervisor owns. A socket that has lost its peer
keeps nothing for later: addresses carry the incarnation of the process behind them, so a message
meant for a dead engine can never reach its successor.
"""

import logging
from collections.abc import Sequence
from typing import Any, Generic, TypeVar

import msgspec
import zmq
import zmq.asyncio

Message = TypeVar("Message")

log = logging.getLogger(__name__)

# Bounds a peer that stopped reading: about a minute of outputs, not all memory.
HIGH_WATER_MARK = 100_000
# Enough to catch up, few enough that one reading does not hold up the loop.
MAX_AT_ONCE = 32

_encoder = msgspec.msgpack.Encoder()


def encode(message: msgspec.Struct) -> bytes:
    """msgpack of a wire struct."""
    return _encoder.encode(message)


def _socket(context: zmq.Context[Any], kind: int) -> Any:
    socket = context.socket(kind)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.SNDHWM, HIGH_WATER_MARK)
    socket.setsockopt(zmq.RCVHWM, HIGH_WATER_MARK)
    return socket


class Inbox(Generic[Message]):
    """Bound receiving end of many senders, synchronous. `kinds` is a union of structs."""

    def __init__(self, address: str, kinds: Any) -> None:
        self._decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(kinds)
        self._context = zmq.Context()
        self._socket = _socket(self._context, zmq.PULL)
        self._socket.bind(address)

    def receive(self, timeout_s: float | None = 0.0) -> list[Message]:
        """All messages that wait; blocks up to `timeout_s` (None: for ever) for the first."""
        timeout_ms = None if timeout_s is None else int(timeout_s * 1000)
        if not self._socket.poll(timeout_ms):
            return []
        messages: list[Message] = []
        while True:
            try:
                frame = self._socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                return messages
            try:
                messages.append(self._decoder.decode(frame))
            except msgspec.MsgspecError as error:
                # Only our own processes can reach the socket, so this is a bug, not an attack;
                # the other messages and the engine must not pay for it.
                log.error("a message could not be decoded and is dropped: %s", error)

    def close(self) -> None:
        """Unbind and drop what was not received."""
        self._socket.close()
        self._context.term()


class Outbox:
    """Connected sending end, synchronous; never blocks: a full peer loses the message."""

    def __init__(self, address: str) -> None:
        self._context = zmq.Context()
        self._socket = _socket(self._context, zmq.PUSH)
        self._socket.connect(address)

    def send(self, message: msgspec.Struct) -> bool:
        """False if the peer's queue is full (it stopped reading long ago)."""
        return self.send_frame(encode(message))

    def send_frame(self, frame: bytes) -> bool:
        """`send`, of a message that is encoded already."""
        try:
            self._socket.send(frame, zmq.NOBLOCK)
        except zmq.Again:
            return False
        return True

    def close(self) -> None:
        """Disconnect; what was not sent is dropped."""
        self._socket.close()
        self._context.term()


class Fanout:
    """`Outbox` with several receivers, each of which gets every message."""

    def __init__(self, addresses: Sequence[str]) -> None:
        self._context = zmq.Context()
        self._sockets = [_socket(self._context, zmq.PUSH) for _ in addresses]
        for socket, address in zip(self._sockets, addresses, strict=True):
            socket.connect(address)

    def send(self, message: msgspec.Struct) -> bool:
        """False if a receiver's queue is full (it stopped reading long ago)."""
        return self.send_frame(encode(message))

    def send_frame(self, frame: bytes) -> bool:
        """`send`, of a message that is encoded already."""
        try:
            for socket in self._sockets:
                socket.send(frame, zmq.NOBLOCK)
        except zmq.Again:
            return False
        return True

    def close(self) -> None:
        """Disconnect; what was not sent is dropped."""
        for socket in self._sockets:
            socket.close()
        self._context.term()


class AsyncInbox(Generic[Message]):
    """`Inbox` for an asyncio loop."""

    def __init__(self, address: str, kinds: Any) -> None:
        self._decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(kinds)
        self._context = zmq.asyncio.Context()
        self._socket = _socket(self._context, zmq.PULL)
        self._socket.bind(address)
        self._at_once: zmq.Socket[bytes] = zmq.Socket.shadow(self._socket.underlying)

    async def receive(self) -> list[Message]:
        """All messages that wait, up to a bound; waits for the first.

        A reader that has fallen behind then deals with several at once, which costs it less.
        """
        frames = [await self._socket.recv()]
        while len(frames) < MAX_AT_ONCE:
            try:
                frames.append(self._at_once.recv(zmq.NOBLOCK))
            except zmq.Again:
                break
        return [self._decoder.decode(frame) for frame in frames]

    def close(self) -> None:
        """Unbind and drop what was not received."""
        self._socket.close()
        self._context.term()


class AsyncHub(Generic[Message]):
    """Bound end that talks with several named peers (`Spoke`), asyncio."""

    def __init__(self, address: str, kinds: Any) -> None:
        self._decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(kinds)
        self._context = zmq.asyncio.Context()
        self._socket = _socket(self._context, zmq.ROUTER)
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._socket.setsockopt(zmq.ROUTER_HANDOVER, 1)  # a restarted peer takes its name back
        self._socket.bind(address)

    async def receive(self) -> tuple[str, Message]:
        """(peer name, message) of the next message."""
        peer, frame = await self._socket.recv_multipart()
        return peer.decode(), self._decoder.decode(frame)

    async def send(self, peer: str, message: msgspec.Struct, *payload: bytes | memoryview) -> bool:
        """Send to one peer, with raw frames behind the message. False if it is not connected."""
        try:
            await self._socket.send_multipart([peer.encode(), encode(message), *payload])
        except zmq.ZMQError as error:
            if error.errno == zmq.EHOSTUNREACH:
                return False
            raise
        return True

    def close(self) -> None:
        """Unbind and drop what was not received."""
        self._socket.close()
        self._context.term()


class Spoke(Generic[Message]):
    """Named end connected to an `AsyncHub`, synchronous."""

    def __init__(self, address: str, name: str, kinds: Any) -> None:
        self._decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(kinds)
        self._context = zmq.Context()
        self._socket = _socket(self._context, zmq.DEALER)
        self._socket.setsockopt(zmq.IDENTITY, name.encode())
        self._socket.connect(address)

    def receive(self) -> tuple[Message, Sequence[zmq.Frame]]:
        """(message, raw frames behind it); blocks. Read a frame through `.buffer`, uncopied."""
        head, *payload = self._socket.recv_multipart(copy=False)
        return self._decoder.decode(head.buffer), payload

    def send(self, message: msgspec.Struct) -> None:
        """Send one message."""
        self._socket.send(encode(message))

    def close(self) -> None:
        """Disconnect."""
        self._socket.close()
        self._context.term()
