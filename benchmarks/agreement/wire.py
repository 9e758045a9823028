"""What the kernel saw of the requests to a local port: a witness that is neither client nor server.

    with Witness(port) as witness: ...
    witness.exchanges()

Needs root (CAP_NET_RAW) and Linux. Packets of the loopback device are read from a raw socket with
the kernel's time stamps, so that it does not matter when this program gets to read them.
"""

import contextlib
import socket
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass

_ETH_P_ALL = 3
_SO_TIMESTAMPNS = 35
_SO_RCVBUFFORCE = 33
_OUTGOING = 4  # each packet of the loopback device is seen twice: take it as it leaves
_BUFFER_BYTES = 64 << 20
_TOKENS = (b'"content":', b'"reasoning":', b'"reasoning_content":', b'"text":')


@dataclass
class Seen:
    """One request on the wire; seconds of one clock."""

    begun_s: float  # the first packet of the request
    sent_s: float  # the last
    first_s: float = 0.0  # the first packet of the answer with a token in it; 0: there is none
    last_s: float = 0.0  # the last


class Witness:
    """Watches a port while it is used as a context."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER_BYTES)
        self._socket.bind(("lo", 0))
        self._socket.settimeout(0.2)
        self._is_over = False
        self._packets: list[tuple[float, int, bool, bytes]] = []
        self._thread = threading.Thread(target=self._read, daemon=True)

    @classmethod
    def trouble(cls) -> str | None:
        """Why there can be none here; nothing if there can."""
        try:
            cls(0)._socket.close()
        except (OSError, AttributeError) as error:
            return f"raw packets of the loopback device cannot be read ({error}): be root, on Linux"
        return None

    def __enter__(self) -> "Witness":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over = True
        self._thread.join()
        self._socket.close()

    def exchanges(self, path: bytes) -> list[Seen]:
        """Every POST to a path that ends in `path`, in the order of their starts."""
        return sorted(self._exchanges(path), key=lambda seen: seen.begun_s)

    def _exchanges(self, path: bytes) -> Iterator[Seen]:
        current: dict[int, Seen | None] = {}
        for at_s, client, is_request, data in sorted(self._packets, key=lambda packet: packet[0]):
            seen = current.get(client)
            if is_request and data.startswith((b"POST ", b"GET ")):
                is_asked = data.startswith(b"POST ") and path in data.split(b"\r\n", 1)[0]
                current[client] = seen = Seen(at_s, at_s) if is_asked else None
                if seen is not None:
                    yield seen
            elif seen is None:
                continue
            elif is_request:
                seen.sent_s = at_s
            elif any(token in data for token in _TOKENS):
                seen.first_s = seen.first_s or at_s
                seen.last_s = at_s

    def _read(self) -> None:
        while not self._is_over:
            with contextlib.suppress(TimeoutError):
                data, extra, _, address = self._socket.recvmsg(1 << 17, 64)
                if address[2] == _OUTGOING:
                    self._keep(data, extra)

    def _keep(self, frame: bytes, extra: list[tuple[int, int, bytes]]) -> None:
        """Ethernet, IPv4, TCP: keep what carries data from or to the port."""
        if frame[12:14] != b"\x08\x00" or frame[23] != 6:
            return
        tcp = 14 + (frame[14] & 15) * 4
        source, target = struct.unpack_from("!HH", frame, tcp)
        if self._port not in (source, target):
            return
        end = 14 + struct.unpack_from("!H", frame, 16)[0]
        start = tcp + (frame[tcp + 12] >> 4) * 4
        if start >= (end if end > 14 else len(frame)):
            return
        seconds, nanoseconds = struct.unpack_from("qq", extra[0][2])
        is_request = target == self._port
        # Of a request the first line is enough, and of its later packets that they were there.
        kept = frame[start : start + 200] if is_request else frame[start:]
        client = source if is_request else target
        self._packets.append((seconds + nanoseconds / 1e9, client, is_request, kept))
