"""Bytes of an event stream -> its messages, each with the time at which it was complete.

Runs after the request (the hot path only stamps and keeps what it reads), over bytes, so it does
not matter where a read cuts a character or a message.
"""

import re
from collections.abc import Iterator, Sequence

Reads = Sequence[tuple[int, bytes]]  # (time, bytes), in order

_END = re.compile(rb"\r\n\r\n|\n\n|\r\r")
_LINE_END = re.compile(rb"\r\n|\n|\r")


def messages(reads: Reads) -> Iterator[tuple[int, bytes]]:
    """Each message's time and data.

    The time is that of the read which brought the message's end; messages of one read share it. A
    message that the stream's end cuts short is given too. Comments and messages without data are
    left out; the data lines of one message are joined.
    """
    stream = b"".join(read for _, read in reads)
    ends = _ends(reads)
    position = 0
    for message, after in _split(stream):
        while ends[position] < after:
            position += 1
        data = _data(message)
        if data is not None:
            yield reads[position][0], data


def _ends(reads: Reads) -> list[int]:
    """How many bytes had arrived after each read."""
    total, ends = 0, []
    for _, read in reads:
        total += len(read)
        ends.append(total)
    return ends


def _split(stream: bytes) -> Iterator[tuple[bytes, int]]:
    """Messages without their ends, and the position after each end."""
    start = 0
    if b"\r" not in stream:  # nearly all servers; three times as fast
        while (found := stream.find(b"\n\n", start)) >= 0:
            yield stream[start:found], found + 2
            start = found + 2
    else:
        for end in _END.finditer(stream):
            yield stream[start : end.start()], end.end()
            start = end.end()
    if start < len(stream):
        yield stream[start:], len(stream)


def _data(message: bytes) -> bytes | None:
    """The data of a message; None if it has none."""
    if message.startswith(b"data: ") and b"\n" not in message and b"\r" not in message:
        return message[6:]
    lines = [
        line[5:].removeprefix(b" ")
        for line in _LINE_END.split(message)
        if line.startswith(b"data:")
    ]
    return b"\n".join(lines) if lines else None
