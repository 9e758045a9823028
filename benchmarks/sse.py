"""How many tokens a second the server streams, with an engine that costs nothing.

    python benchmarks/sse.py [--streams 64 256] [--tokens 400]

The application runs under uvicorn in a process of its own, pinned to one core. The engine is a
real loop and scheduler over an executor that draws without computing, in a second process, as fast
as it can; it shares the other core with the client, which reads raw sockets and counts events.
Where the server falls behind, several tokens travel in one event. Printed: tokens per second of
wall time, microseconds of the server's CPU per token, tokens per event.
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

import uvicorn
import uvloop

import glimt.tiny
from glimt.api.app import create_app
from glimt.api.params import SamplingDefaults
from glimt.api.state import ApiState, Lifecycle
from glimt.engine.limits import SchedulerLimits
from glimt.engine.loop import EngineLoop
from glimt.engine.scheduler import Scheduler
from glimt.engine.simulated import InstantExecutor
from glimt.frontend.client import EngineClient
from glimt.frontend.grammars import GrammarChecker
from glimt.frontend.render import Renderer
from glimt.frontend.template import ChatTemplate
from glimt.frontend.tokenizer import Tokenizer
from glimt.grammar.compiler import GrammarCompiler
from glimt.grammar.vocabulary import Vocabulary
from glimt.log import set_up
from glimt.metrics import Metrics
from glimt.tiny.tokenizer import make_tokenizer
from glimt.transport import AsyncInbox, Inbox, Outbox
from glimt.wire import EngineInbound, EngineInfo, ImageSettings, Outputs

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


class EnginePost:
    """The engine loop's mailbox: the sockets that a real engine has."""

    def __init__(self, folder: str, tokens_per_s: float) -> None:
        self._inbox: Inbox[EngineInbound] = Inbox(f"ipc://{folder}/engine", EngineInbound)
        self._outbox = Outbox(f"ipc://{folder}/server")
        self._token_s = 1 / tokens_per_s if tokens_per_s else 0.0
        self._due_s = 0.0

    def receive(self, timeout_s: float) -> list[EngineInbound]:
        """Messages of the server."""
        return self._inbox.receive(timeout_s)

    def send(self, server: int, outputs: Outputs) -> None:
        """Outputs of a step; waits as long as a device of the wanted speed would compute."""
        now_s = time.perf_counter()
        self._due_s = max(self._due_s, now_s - 0.05) + self._token_s * len(outputs.outputs)
        time.sleep(max(0.0, self._due_s - now_s))
        self._outbox.send(outputs)


def run_engine(folder: str, tokens_per_s: float) -> None:
    """A real loop and scheduler over an executor that draws without computing."""
    limits = SchedulerLimits(
        num_pages=INFO.num_pages,
        page_size=INFO.page_size,
        max_num_seqs=INFO.max_num_seqs,
        max_num_batched_tokens=INFO.max_num_batched_tokens,
        max_model_len=INFO.max_model_len,
        image_budget=0,
        image_cache_tokens=0,
        vocab_size=INFO.vocab_size,
    )
    EngineLoop(
        Scheduler(limits), InstantExecutor(vocab_size=256), EnginePost(folder, tokens_per_s)
    ).run()


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
        grammars=GrammarChecker(
            GrammarCompiler(Vocabulary.read(folder / "tokenizer.json", INFO.vocab_size))
        ),
        metrics=metrics,
        lifecycle=Lifecycle(),
        defaults=SamplingDefaults(),
        clock=time.monotonic,
        wall_clock=time.time,
        random=random.SystemRandom(),
        seeds=random.SystemRandom(),
        started_at=0,
        forget_pixels=lambda: None,
        parse_reasoning=True,
    )


async def serve(listener: socket.socket, folder: str) -> None:
    state = make_state(Path(folder))
    inbox: AsyncInbox[Outputs] = AsyncInbox(f"ipc://{folder}/server", Outputs)
    state.client.add_engine(0, Outbox(f"ipc://{folder}/engine").send, INFO)

    async def receive() -> None:
        while True:
            for outputs in await inbox.receive():
                state.client.deliver(0, outputs)

    config = uvicorn.Config(
        create_app(state), http="httptools", lifespan="off", log_config=None, access_log=False
    )
    receiving = asyncio.create_task(receive())
    await uvicorn.Server(config).serve(sockets=[listener])
    receiving.cancel()


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
    parser.add_argument("--tokens", type=int, default=600, help="tokens of each answer")
    parser.add_argument("--pace", type=float, default=40_000, help="the engine's tokens/s")
    parser.add_argument("--serve-fd", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--engine", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve_fd is not None:
        pin(0)
        set_up("warning", as_json=False)
        uvloop.run(serve(socket.socket(fileno=options.serve_fd), options.folder))
        return
    if options.engine is not None:
        pin(1)
        run_engine(options.engine, options.pace)
        return
    print(f"this core takes {loop_ns():.0f} ns for a turn of an empty loop (idle: 30 to 60)")
    for pace in (options.pace, 0.0):
        with tempfile.TemporaryDirectory() as folder:
            measure(options.streams, options.tokens, folder, pace)


def measure(streams: list[int], tokens: int, folder: str, pace: float) -> None:
    """Start engine and server, drive them, print a line for each number of streams."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=2048)
    port = listener.getsockname()[1]
    engine = subprocess.Popen([sys.executable, __file__, "--engine", folder, "--pace", str(pace)])
    command = [sys.executable, __file__, "--serve-fd", str(listener.fileno()), "--folder", folder]
    server = subprocess.Popen(command, pass_fds=[listener.fileno()])
    pin(1)
    try:
        wait_until_ready(port)
        print(f"engine of {pace:,.0f} tokens/s:" if pace else "engine without a limit:")
        print(f"{'streams':>8} {'tokens/s':>10} {'server us/token':>16} {'tokens/event':>13}")
        for num_streams in streams:
            before_s = cpu_seconds(server.pid)
            seconds, num_events = drive(port, num_streams, tokens)
            num_tokens = num_streams * tokens
            cpu_us = (cpu_seconds(server.pid) - before_s) / num_tokens * 1e6
            # Each stream has two more events: its end and its usage.
            per_event = num_tokens / (num_events - 2 * num_streams)
            print(f"{num_streams:8} {num_tokens / seconds:10,.0f} {cpu_us:16.1f} {per_event:13.2f}")
    finally:
        server.terminate()
        engine.terminate()
        server.wait()
        engine.wait()


if __name__ == "__main__":
    main()
