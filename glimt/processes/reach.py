"""Whether machines reach each other as their ranks will: at ports that the system chooses.

A firewall that leaves only the port of machine 0 open, or a route that is missing between two of
the others, would let ranks wait for each other without a word.
"""

import array
import errno
import fcntl
import os
import selectors
import socket
import struct
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

REACH_LIMIT_S = 5.0
_SIOCGIFADDR = 0x8915  # of an interface: its first IPv4 address
_ADDRESS_AT = slice(20, 24)  # of the answer's bytes


class Where(msgspec.Struct, frozen=True):
    """A machine's door."""

    name: str
    address: str
    port: int


class Door:
    """A port of the system's choice at which the kernel answers while machines gather."""

    def __init__(self, address: str) -> None:
        """Raises OSError."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._listener = socket.socket(family)
        self._listener.bind((address, 0))
        self._listener.listen(128)
        self.port = int(self._listener.getsockname()[1])

    def close(self) -> None:
        """Doing it again does nothing."""
        self._listener.close()


def unreachable(others: Sequence[Where], limit_s: float = REACH_LIMIT_S) -> list[str]:
    """Tries all at once, for `limit_s` at most: who cannot be reached, and why, a line each."""
    failed: dict[int, str] = {}
    deadline_s = time.monotonic() + limit_s
    with selectors.DefaultSelector() as selector:
        for index, other in enumerate(others):
            attempt = socket.socket(socket.AF_INET6 if ":" in other.address else socket.AF_INET)
            attempt.setblocking(False)
            code = attempt.connect_ex((other.address, other.port))
            if code in (0, errno.EINPROGRESS):
                selector.register(attempt, selectors.EVENT_WRITE, index)
            else:
                failed[index] = os.strerror(code)
                attempt.close()
        while selector.get_map() and (left_s := deadline_s - time.monotonic()) > 0:
            for key, _ in selector.select(left_s):
                attempt = key.fileobj  # type: ignore[assignment]
                code = attempt.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if code:
                    failed[key.data] = os.strerror(code)
                selector.unregister(attempt)
                attempt.close()
        for key in list(selector.get_map().values()):
            failed[key.data] = f"no answer within {limit_s:.0f} s"
            key.fileobj.close()  # type: ignore[union-attr]
    return [
        f"{other.name} at {other.address} ({failed[index]})"
        for index, other in enumerate(others)
        if index in failed
    ]


def interface_of(address: str) -> str:
    """The name of the interface of this machine that has `address`; "" if none is found."""
    if ":" in address:
        return _interface_of_six(address)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        for _, name in socket.if_nameindex():
            answer = array.array("b", struct.pack("256s", name.encode()[:15]))
            try:
                fcntl.ioctl(asked, _SIOCGIFADDR, answer)
            except OSError:  # it has no such address
                continue
            if socket.inet_ntoa(answer.tobytes()[_ADDRESS_AT]) == address:
                return name
    return ""


def _interface_of_six(address: str) -> str:
    wanted = socket.inet_pton(socket.AF_INET6, address.partition("%")[0]).hex()
    table = Path("/proc/net/if_inet6")
    for line in table.read_text().splitlines() if table.exists() else ():
        number, *_, name = line.split()
        if number == wanted:
            return name
    return ""
