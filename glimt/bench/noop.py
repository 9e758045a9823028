"""A server that costs next to nothing, to measure the client against: `python -m glimt.bench.noop`.

It answers every POST with as many tokens as were asked for. All answers in progress get their next
chunk in turn, one write each, as an engine's steps would give them; the reader sees each chunk on
its own unless it falls behind. It prints its address and serves until its input ends.
"""

import asyncio
import re
import sys
from typing import cast

import uvloop

_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
_TOKENS = re.compile(rb'"max_(?:completion_)?tokens": *(\d+)')


def _chunk(event: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(event), event)


def _event(text: bytes) -> bytes:
    """As long as those of a real server."""
    return (
        b'data: {"id":"chatcmpl-0123456789abcdef0123456789abcdef","object":"chat.completion.chunk",'
        b'"created":1760000000,"model":"noop","choices":[' + text + b"]}\n\n"
    )


_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
_TOKEN = _chunk(
    _event(
        b'{"index":0,"delta":{"content":" word"},"logprobs":null,"finish_reason":null,'
        b'"stop_reason":null,"token_ids":null}'
    )
)
_FINISH = _chunk(_event(b'{"index":0,"delta":{},"finish_reason":"length"}'))
_MODELS = b'{"object":"list","data":[{"id":"noop","object":"model"}]}'


def _last(num_tokens: int) -> bytes:
    usage = b'data: {"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":%d}}\n\n'
    return _FINISH + _chunk(usage % num_tokens) + _chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"


class Streams:
    """All answers in progress; each turn gives every one its next chunk."""

    def __init__(self) -> None:
        self._left: dict[asyncio.Transport, tuple[int, int]] = {}  # (tokens left, tokens in all)

    def add(self, transport: asyncio.Transport, num_tokens: int) -> None:
        """Begin an answer; the head goes with its first token."""
        if num_tokens == 1:
            transport.write(_HEAD + _TOKEN + _last(1))
            return
        transport.write(_HEAD + _TOKEN)
        if not self._left:
            asyncio.get_running_loop().call_soon(self._turn)
        self._left[transport] = (num_tokens - 1, num_tokens)

    def _turn(self) -> None:
        for transport, (left, total) in list(self._left.items()):
            if transport.is_closing() or left == 0:
                del self._left[transport]
                if left == 0:
                    transport.write(_last(total))
            elif transport.get_write_buffer_size() < 65536:
                transport.write(_TOKEN)
                self._left[transport] = (left - 1, total)
        if self._left:
            asyncio.get_running_loop().call_soon(self._turn)


class Connection(asyncio.Protocol):
    """One connection: requests one after the other."""

    def __init__(self, streams: Streams) -> None:
        self._streams = streams
        self._data = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Answer as soon as a request is whole."""
        self._data += data
        head, found, body = self._data.partition(b"\r\n\r\n")
        length = _LENGTH.search(head)
        if not found or self._transport is None or len(body) < int(length[1] if length else 0):
            return
        self._data = b""
        if head.startswith(b"POST"):
            wanted = _TOKENS.search(body)
            self._streams.add(self._transport, int(wanted[1]) if wanted else 1)
        else:
            self._transport.write(
                b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(_MODELS), _MODELS)
            )


async def serve() -> None:
    """Serve on a free port of the loopback until standard input ends."""
    loop = asyncio.get_running_loop()
    streams = Streams()
    server = await loop.create_server(lambda: Connection(streams), "127.0.0.1", 0, backlog=4096)
    sys.stdout.write(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    await loop.run_in_executor(None, sys.stdin.read)
    server.close()


if __name__ == "__main__":
    uvloop.run(serve())
