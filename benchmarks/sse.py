"""How many tokens a second the server streams, with an engine that costs nothing.

    python benchmarks/sse.py [--streams 64 256] [--tokens 400]

The application runs under uvicorn in a process of its own, pinned to one core; in its loop a
simulated engine gives every stream one token per step, as fast as the loop turns, through msgpack
as on the wire. The client, on another core, reads raw sockets and counts events. Printed: tokens
per second of wall time, and microseconds of the server's CPU per token.
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import selectors
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec
import uvicorn
import uvloop

import glimt.tiny
from glimt.api.app import create_app
from glimt.api.params import SamplingDefaults
from glimt.api.state import ApiState, Lifecycle
from glimt.frontend.client import EngineClient
from glimt.frontend.render import Renderer
from glimt.frontend.template import ChatTemplate
from glimt.frontend.tokenizer import Tokenizer
from glimt.log import set_up
from glimt.metrics import Metrics
from glimt.tiny.tokenizer import make_tokenizer
from glimt.wire import Abort, EngineInfo, ImageSettings, Output, Outputs, Submit

# Were the client asleep in select, each event would also pay for waking it, which on virtual
# machines costs more than everything else; a network card would collect packets, too.
LOOK_EVERY_S = 0.002
TEXT = "The quick brown fox jumps over the lazy dog, and then it sleeps for a while. "
INFO = EngineInfo(
    max_model_len=8192,
    vocab_size=700,
    num_pages=65536,
    page_size=16,
    max_num_batched_tokens=8192,
    max_num_seqs=1024,
    max_image_tokens=4096,
)


class FreeEngine:
    """One token per step for each request, until max_tokens."""

    def __init__(self, client: EngineClient, token_ids: list[int]) -> None:
        self._client = client
        self._token_ids = token_ids
        self._left: dict[int, int] = {}
        self._work = asyncio.Event()

    def send(self, message: msgspec.Struct) -> bool:
        """Take a message of the client."""
        if isinstance(message, Submit):
            self._left[message.request_id] = message.sampling.max_tokens
        elif isinstance(message, Abort):
            self._left.pop(message.request_id, None)
        self._work.set()
        return True

    async def run(self) -> None:
        """Step for ever, resting while there is nothing to do."""
        decode = msgspec.msgpack.Decoder(Outputs).decode
        while True:
            if not self._left:
                self._work.clear()
                await self._work.wait()
            outputs = [self._next(request_id) for request_id in list(self._left)]
            self._client.deliver(0, decode(msgspec.msgpack.encode(Outputs(tuple(outputs)))))
            await asyncio.sleep(0)

    def _next(self, request_id: int) -> Output:
        left = self._left[request_id] = self._left[request_id] - 1
        if not left:
            del self._left[request_id]
        token_id = self._token_ids[left % len(self._token_ids)]
        return Output(request_id, (token_id,), None if left else "length", scheduled_s=1.0)


class NoMedia:
    """There are no images here."""

    async def prepare(self, source: Any) -> Any:
        """Never asked."""
        raise NotImplementedError


def make_state(folder: Path) -> ApiState:
    make_tokenizer("4.5").save(str(folder / "tokenizer.json"))
    tokenizer = Tokenizer(folder / "tokenizer.json")
    source = (Path(glimt.tiny.__file__).parent / "chat_template.jinja").read_text("utf-8")
    metrics = Metrics(model_name="tiny")
    return ApiState(
        served_names=("tiny",),
        model_name="tiny",
        version="0",
        client=EngineClient(clock=time.monotonic, metrics=metrics),
        renderer=Renderer(tokenizer, ChatTemplate(source), ImageSettings(), INFO.max_model_len),
        media=NoMedia(),
        tokenizer=tokenizer,
        metrics=metrics,
        lifecycle=Lifecycle(),
        defaults=SamplingDefaults(),
        clock=time.monotonic,
        wall_clock=time.time,
        random=random.SystemRandom(),
        started_at=0,
        parse_reasoning=True,
    )


async def serve(listener: socket.socket) -> None:
    with tempfile.TemporaryDirectory() as folder:
        state = make_state(Path(folder))
    engine = FreeEngine(state.client, state.tokenizer.encode_text(TEXT))
    state.client.add_engine(0, engine.send, INFO)
    config = uvicorn.Config(
        create_app(state), http="httptools", lifespan="off", log_config=None, access_log=False
    )
    stepping = asyncio.create_task(engine.run())
    await uvicorn.Server(config).serve(sockets=[listener])
    stepping.cancel()


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text("utf-8").rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def request_bytes(max_tokens: int) -> bytes:
    body = json.dumps(
        {
            "model": "tiny",
            "messages": [{"role": "user", "content": "hi"}],
            "max_tokens": max_tokens,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    ).encode()
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def drive(port: int, num_streams: int, max_tokens: int) -> tuple[float, int]:
    """Read all streams to their end; seconds from the first answer to the last, and events."""
    selector = selectors.DefaultSelector()
    for _ in range(num_streams):
        connection = socket.create_connection(("127.0.0.1", port))
        connection.sendall(request_bytes(max_tokens))
        selector.register(connection, selectors.EVENT_READ)
    started_s, num_events = None, 0
    while selector.get_map():
        time.sleep(LOOK_EVERY_S)
        for key, _ in selector.select():
            connection = key.fileobj
            data = connection.recv(1 << 20)
            started_s = started_s or time.perf_counter()
            num_events += data.count(b"data: {")
            if not data or data.endswith(b"0\r\n\r\n"):
                selector.unregister(connection)
                connection.close()
    return time.perf_counter() - (started_s or 0.0), num_events


def pin(core: int) -> None:
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[core % len(cores)]})


def loop_ns() -> float:
    """How fast the core is just now: on a busy machine all numbers are worse by as much."""
    before_s, total = time.process_time(), 0
    for i in range(1_000_000):
        total += i
    return (time.process_time() - before_s) * 1e3


def wait_until_ready(port: int) -> None:
    while True:
        with contextlib.suppress(OSError):
            drive(port, 4, 200)  # which also warms it up
            return
        time.sleep(0.05)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--tokens", type=int, default=400, help="tokens of each answer")
    parser.add_argument("--serve-fd", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve_fd is not None:
        pin(0)
        set_up("warning", as_json=False)
        uvloop.run(serve(socket.socket(fileno=options.serve_fd)))
        return
    listener = socket.create_server(("127.0.0.1", 0), backlog=2048)
    port = listener.getsockname()[1]
    command = [sys.executable, __file__, "--serve-fd", str(listener.fileno())]
    server = subprocess.Popen(command, pass_fds=[listener.fileno()])
    pin(1)
    try:
        wait_until_ready(port)
        print(f"this core takes {loop_ns():.0f} ns for a turn of an empty loop (idle: 30 to 60)")
        print(f"{'streams':>8} {'tokens/s':>10} {'server us/token':>16} {'tokens/event':>13}")
        for num_streams in options.streams:
            before_s = cpu_seconds(server.pid)
            seconds, num_events = drive(port, num_streams, options.tokens)
            num_tokens = num_streams * options.tokens
            cpu_us = (cpu_seconds(server.pid) - before_s) / num_tokens * 1e6
            # Each stream has two more events: its end and its usage.
            per_event = num_tokens / (num_events - 2 * num_streams)
            print(f"{num_streams:8} {num_tokens / seconds:10,.0f} {cpu_us:16.1f} {per_event:13.2f}")
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main()
