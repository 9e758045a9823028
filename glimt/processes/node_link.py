"""The connection between machine 0 and each further one: both prove that they know the token.

    machine 0                      machine N
       Challenge(nonce)      ──▶
                             ◀──   Answer(nonce, proof)
       Proof(proof)          ──▶
                             ◀──   Hello(facts)          nothing of either is told before
       TurnedAway | TryReach ──▶                          once all machines are there
                             ◀──   Reached(lines)        tried again until all reach all
       Welcome               ──▶

Then messages to ranks flow one way, and what ranks say of themselves the other. Frames of msgpack
behind their length; never pickle. The token keeps strangers out; nothing is encrypted, as nothing
is between the ranks either, so the network between the machines must be private.
"""

import hashlib
import hmac
import secrets
import socket
import struct
import threading
from typing import Any

import msgspec

from glimt.processes.control import ToParent
from glimt.processes.preflight import Facts
from glimt.processes.reach import Where

HANDSHAKE_LIMIT_S = 5.0
FRAME_LIMIT_S = 30.0  # to send or receive one whole frame
_STRANGERS_BYTES = 1024
_MAX_BYTES = 1 << 31
_NONCE_BYTES = 32
_PROTOCOL = b"glimt-nodes-1"


class Challenge(msgspec.Struct, frozen=True, tag="challenge"):
    """A number used once."""

    nonce: bytes


class Answer(msgspec.Struct, frozen=True, tag="answer"):
    """The other number, and the proof of knowing the token."""

    nonce: bytes
    proof: bytes


class Proof(msgspec.Struct, frozen=True, tag="proof"):
    """Machine 0's own."""

    proof: bytes


class Hello(msgspec.Struct, frozen=True, tag="hello"):
    """Who comes, with what, and the port of its door (`reach.Door`)."""

    node_rank: int
    host: str
    facts: Facts
    door: int


class TryReach(msgspec.Struct, frozen=True, tag="try_reach"):
    """All machines are there: knock at the doors of the others."""

    doors: tuple[Where, ...]


class Reached(msgspec.Struct, frozen=True, tag="reached"):
    """Who could not be reached, and why; a line each."""

    failed: tuple[str, ...]


class TurnedAway(msgspec.Struct, frozen=True, tag="turned_away"):
    """This machine cannot take part; trying again would not help."""

    reason: str


class Welcome(msgspec.Struct, frozen=True, tag="welcome"):
    """All machines reach each other: start your ranks, which meet the others at this port.

    Pixels of so many arenas, which only machine 0 can map, come with the plans.
    """

    meeting_port: int
    num_arenas: int


class ToRanks(msgspec.Struct, frozen=True, tag="to_ranks"):
    """A message to each rank of the machine (`plan_message.ToPeer`, encoded)."""

    frame: bytes


class StopNode(msgspec.Struct, frozen=True, tag="stop_node"):
    """Machine 0 ends in order; so do the others."""


class FromRank(msgspec.Struct, frozen=True, tag="from_rank"):
    """What a rank says to its parent."""

    rank: int
    message: ToParent


class RankEnded(msgspec.Struct, frozen=True, tag="rank_ended"):
    """A rank is gone, and how ("killed by SIGKILL")."""

    rank: int
    how: str


LinkMessage = (
    Challenge
    | Answer
    | Proof
    | Hello
    | TryReach
    | Reached
    | TurnedAway
    | Welcome
    | ToRanks
    | StopNode
    | FromRank
    | RankEnded
)


class LinkLost(Exception):
    """The other machine is gone, or is none of ours."""


class NodeLink:
    """One end of a connection. Sending is safe from several threads."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(LinkMessage)
        self._lock = threading.Lock()
        self.max_bytes = _STRANGERS_BYTES
        connection.settimeout(HANDSHAKE_LIMIT_S)
        _notice_silence(connection)

    def trust(self) -> None:
        """From here on the other end may send whatever it likes."""
        self.max_bytes = _MAX_BYTES
        self._connection.settimeout(FRAME_LIMIT_S)

    def fileno(self) -> int:
        """The descriptor, for a selector."""
        return self._connection.fileno()

    @property
    def own_address(self) -> str:
        """The address of this machine that the other one sees."""
        return str(self._connection.getsockname()[0])

    @property
    def other_address(self) -> str:
        """The address of the other machine."""
        return str(self._connection.getpeername()[0])

    def send(self, message: msgspec.Struct) -> bool:
        """False if the other side is gone, or takes nothing."""
        frame = self._encoder.encode(message)
        try:
            with self._lock:
                self._connection.sendall(struct.pack("<I", len(frame)) + frame)
        except OSError:
            return False
        return True

    def receive(self) -> Any:
        """The next `LinkMessage`. Raises LinkLost."""
        try:
            (num_bytes,) = struct.unpack("<I", self._read(4))
            if num_bytes > self.max_bytes:
                raise LinkLost("it does not speak our language")
            return self._decoder.decode(self._read(num_bytes))
        except (OSError, msgspec.MsgspecError) as error:
            raise LinkLost(str(error)) from None

    def _read(self, num_bytes: int) -> bytearray:
        data = bytearray(num_bytes)
        view = memoryview(data)
        while view:
            num_read = self._connection.recv_into(view)
            if not num_read:
                raise LinkLost("it ended the connection")
            view = view[num_read:]
        return data

    def detach(self) -> socket.socket:
        """The connection, for something else to go on with."""
        return self._connection

    def close(self) -> None:
        """End the connection."""
        self._connection.close()


def _notice_silence(connection: socket.socket) -> None:
    """Let the kernel end the connection to a machine that is gone, within six seconds or so."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (
        (socket.TCP_KEEPIDLE, 2),
        (socket.TCP_KEEPINTVL, 1),
        (socket.TCP_KEEPCNT, 4),
        (socket.TCP_USER_TIMEOUT, 6000),  # milliseconds
        (socket.TCP_NODELAY, 1),
    ):
        connection.setsockopt(socket.IPPROTO_TCP, option, value)


def _proof(token: str, who: bytes, first: bytes, second: bytes) -> bytes:
    return hmac.digest(token.encode(), b"|".join((_PROTOCOL, who, first, second)), hashlib.sha256)


def examine(link: NodeLink, token: str) -> None:
    """Machine 0's half of the introduction. Raises LinkLost for strangers."""
    nonce = secrets.token_bytes(_NONCE_BYTES)
    link.send(Challenge(nonce))
    answer = link.receive()
    if not isinstance(answer, Answer) or len(answer.nonce) != _NONCE_BYTES:
        raise LinkLost("it does not speak our language")
    if not hmac.compare_digest(answer.proof, _proof(token, b"node", nonce, answer.nonce)):
        link.send(TurnedAway("--master-token is not the one of node 0"))
        raise LinkLost("it does not know the --master-token")
    link.send(Proof(_proof(token, b"first", nonce, answer.nonce)))
    link.trust()


def introduce(link: NodeLink, token: str) -> str | None:
    """A further machine's half; why it was turned away, or None. Raises LinkLost."""
    challenge = link.receive()
    if not isinstance(challenge, Challenge) or len(challenge.nonce) != _NONCE_BYTES:
        raise LinkLost("what listens there is no node 0")
    nonce = secrets.token_bytes(_NONCE_BYTES)
    link.send(Answer(nonce, _proof(token, b"node", challenge.nonce, nonce)))
    reply = link.receive()
    if isinstance(reply, TurnedAway):
        return reply.reason
    expected = _proof(token, b"first", challenge.nonce, nonce)
    if not isinstance(reply, Proof) or not hmac.compare_digest(reply.proof, expected):
        raise LinkLost("what listens there does not know the --master-token")
    link.trust()
    return None
