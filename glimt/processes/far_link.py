"""The connection between the head, which has HTTP, and a machine with further replicas.

    head (gate)                      node (uplink)
      … both prove that they know the token (node_link.py) …
                            ◀──      Introduction(facts)
      TurnedAway | Admitted ──▶
      ToReplica, Pixels     ──▶
                            ◀──      ReplicaUp, ReplicaDown, FromReplica
      Beat                  ◀─▶      Beat                    once a second

Machines whose copies share experts have a second one, between their musters (`muster.py`), with
GroupBegins, GroupEnds and GroupQuiet in place of what carries requests.

Messages of servers and engines (`wire.py`) travel encoded as they are; pixels, which lie in shared
memory, go before the request that needs them, to the place in the node's memory that the head has
chosen. Frames of msgpack behind their length; never pickle. Nothing is encrypted.
"""

import asyncio
import struct
import time
from typing import Any

import msgspec

from glimt.processes.group_messages import GroupBegins, GroupEnds, GroupQuiet
from glimt.processes.node_link import LinkLost, NodeLink, TurnedAway
from glimt.processes.preflight import Facts
from glimt.wire import EngineInfo

BEAT_S = 1.0
SILENCE_LIMIT_S = 6.0
_MAX_BYTES = 1 << 31
_PIECE_BYTES = 1 << 20


class Introduction(msgspec.Struct, frozen=True, kw_only=True, tag="introduction"):
    """Who comes, with which replicas: [first_copy, first_copy + num_copies)."""

    host: str
    first_copy: int
    num_copies: int
    arena_bytes: int = 0  # memory for pixels
    facts: Facts

    @property
    def copies(self) -> range:
        """Their numbers."""
        return range(self.first_copy, self.first_copy + self.num_copies)

    @property
    def name(self) -> str:
        """The machine, for people."""
        copies = self.copies
        return f"node of replica{'s' if len(copies) > 1 else ''} {span(copies)} ({self.host})"


def span(copies: range) -> str:
    """Numbers of replicas, for people."""
    return f"{copies.start} to {copies.stop - 1}" if len(copies) > 1 else f"{copies.start}"


class Admitted(msgspec.Struct, frozen=True, tag="admitted"):
    """Start your replicas, and say when they are ready."""


class ReplicaUp(msgspec.Struct, frozen=True, tag="replica_up"):
    """It takes requests from now on."""

    index: int
    info: EngineInfo


class ReplicaDown(msgspec.Struct, frozen=True, tag="replica_down"):
    """It is gone, with all requests that it had."""

    index: int


class ToReplica(msgspec.Struct, frozen=True, tag="to_replica"):
    """A message of `wire.EngineInbound`, encoded."""

    index: int
    frame: bytes


class FromReplica(msgspec.Struct, frozen=True, tag="from_replica"):
    """A message of `wire.Outputs`, encoded."""

    frame: bytes


class Pixels(msgspec.Struct, frozen=True, tag="pixels"):
    """Of one image, for these bytes of the node's memory; true until others are sent there."""

    offset: int
    data: bytes


class Beat(msgspec.Struct, frozen=True, tag="beat"):
    """A sign of life, with the sender's monotonic clock."""

    clock_s: float


class NodeLeaves(msgspec.Struct, frozen=True, tag="node_leaves"):
    """Nothing new, please; what runs is finished. Answered by `HeadStops` when nothing runs."""


class HeadStops(msgspec.Struct, frozen=True, tag="head_stops"):
    """End in order: the head does so as well, or the node had asked for it."""


FarMessage = (
    Introduction
    | TurnedAway
    | Admitted
    | ReplicaUp
    | ReplicaDown
    | ToReplica
    | FromReplica
    | Pixels
    | Beat
    | NodeLeaves
    | HeadStops
    | GroupBegins
    | GroupEnds
    | GroupQuiet
)


class FarLink:
    """One end of the connection, for an asyncio loop, once both sides have been proved.

    What is sent waits in memory until the other side takes it; a side that gives no sign of life is
    given up, so that is bounded.
    """

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        own_address: str,
        other_address: str,
    ) -> None:
        """The addresses of the two machines, as this one sees them."""
        self.own_address = own_address
        self.other_address = other_address
        self._reader = reader
        self._writer = writer
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(FarMessage)
        self._heard_s = time.monotonic()
        self._end = "it ended the connection"

    @classmethod
    async def over(cls, link: NodeLink) -> "FarLink":
        """Go on over the connection of a proved `NodeLink`, which is not used any more."""
        addresses = link.own_address, link.other_address
        connection = link.detach()
        reader, writer = await asyncio.open_connection(sock=connection, limit=4 * _PIECE_BYTES)
        return cls(reader, writer, *addresses)

    def send(self, message: msgspec.Struct) -> None:
        """Queue a message; if the other side is gone, `receive` says so."""
        frame = self._encoder.encode(message)
        self._writer.write(struct.pack("<I", len(frame)))
        self._writer.write(frame)

    async def receive(self) -> Any:
        """The next `FarMessage`. Raises LinkLost."""
        try:
            (num_bytes,) = struct.unpack("<I", await self._read(4))
            if num_bytes > _MAX_BYTES:
                raise LinkLost("it does not speak our language")
            return self._decoder.decode(await self._read(num_bytes))
        except (OSError, msgspec.MsgspecError) as error:
            raise LinkLost(str(error)) from None

    async def _read(self, num_bytes: int) -> bytearray:
        data = bytearray()
        while len(data) < num_bytes:
            piece = await self._reader.read(min(num_bytes - len(data), _PIECE_BYTES))
            if not piece:
                raise LinkLost(self._end)
            self._heard_s = time.monotonic()
            data += piece
        return data

    async def flush(self) -> None:
        """Wait until what was sent is on its way."""
        try:
            self._writer.transport.set_write_buffer_limits(0)
            await self._writer.drain()
        except OSError:
            return

    def give_up_if_silent(self) -> None:
        """End the connection if the other side has given no sign of life for too long."""
        if time.monotonic() - self._heard_s > SILENCE_LIMIT_S:
            self._end = f"it gave no sign of life for {SILENCE_LIMIT_S:.0f} s"
            self.close()

    def close(self) -> None:
        """End the connection at once; a reader gets LinkLost."""
        self._writer.transport.abort()
