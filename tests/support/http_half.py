"""The whole HTTP half in one process: application, client, simulated engine; and ways to ask it."""

import asyncio
import contextlib
import json
import random
import socket
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import uvicorn

from glimt.api.app import create_app
from glimt.api.params import SamplingDefaults
from glimt.api.state import ApiState, Lifecycle
from glimt.frontend.client import EngineClient
from glimt.frontend.grammars import GrammarChecker
from glimt.metrics import Metrics
from glimt.wire import EngineInfo, ImageSettings, Submit
from tests.support.fake_engine import FakeEngine, Running
from tests.support.grammars import tiny_compiler
from tests.support.prompts import FakeMedia, renderer, tokenizer

INFO = EngineInfo(
    max_model_len=512,
    vocab_size=640,
    num_pages=256,
    page_size=16,
    max_num_batched_tokens=1024,
    max_num_seqs=8,
    max_image_tokens=1024,
)
VIDEO = ImageSettings(max_pixels=47_040_000)
MODEL = "tiny"
EOS = tokenizer().control_tokens["<|endoftext|>"]
USER = tokenizer().control_tokens["<|user|>"]
HEADERS = [(b"host", b"localhost:8000"), (b"content-type", b"application/json")]


def spoken(text: str, *end: int) -> list[int]:
    """Token ids of a model's answer, control tokens included; a plain end unless said."""
    return [*tokenizer().encode_template(text), *(end or (EOS,))]


class Clock:
    """Time that moves only when told to."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@dataclass
class Reply:
    """An HTTP answer as it came."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    pieces: list[bytes] = field(default_factory=list)

    @property
    def body(self) -> bytes:
        return b"".join(self.pieces)

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def events(self) -> list[Any]:
        """The data of all events; the last is the text [DONE]."""
        lines = self.body.decode().split("\n\n")
        assert lines.pop() == ""
        assert all(line.startswith("data: ") for line in lines)
        data = [line.removeprefix("data: ") for line in lines]
        return [json.loads(each) for each in data[:-1]] + data[-1:]

    @property
    def error(self) -> Any:
        return self.json()["error"]


class Serving:
    """An application over a simulated engine that says what `script` says."""

    def __init__(self, *answers: Sequence[int], max_waiting: int = 1024, **state: Any) -> None:
        self.clock = Clock()
        self.metrics = Metrics(model_name=MODEL, max_model_len=INFO.max_model_len)
        self.client = EngineClient(clock=self.clock, metrics=self.metrics, max_waiting=max_waiting)
        self.answers = [list(answer) for answer in answers] or [spoken("Hello, world!")]
        self.engine = FakeEngine(self.client, self._script, info=INFO)
        self.engine.start()
        self.media = FakeMedia({"data:a": (8, 8), "data:v": [(4, 4, "0"), (4, 4, "1")]})
        self.lifecycle = Lifecycle()
        self.state = ApiState(
            **{
                "served_names": (MODEL, "alias"),
                "model_name": "/models/tiny",
                "version": "1.2.3",
                "client": self.client,
                "renderer": renderer(max_model_len=INFO.max_model_len),
                "media": self.media,
                "tokenizer": tokenizer(),
                "grammars": GrammarChecker(tiny_compiler()),
                "metrics": self.metrics,
                "lifecycle": self.lifecycle,
                "defaults": SamplingDefaults(eos_token_ids=(EOS, USER)),
                "clock": self.clock,
                "wall_clock": lambda: 1_700_000_000.5,
                "random": random.Random(0),
                "seeds": random.Random(0),
                "started_at": 1_600_000_000,
                "forget_pixels": self.media.forget,
                "media_settings": {"image": ImageSettings(), "video": VIDEO},
                **state,
            }
        )
        self.app = create_app(self.state)

    def _script(self, submit: Submit) -> Sequence[int]:
        """Request i gets answer i, the last one from then on."""
        return self.answers[min(len(self.engine.submits), len(self.answers)) - 1]

    async def ask(
        self,
        method: str = "POST",
        path: str = "/v1/chat/completions",
        *,
        body: bytes = b"",
        headers: Sequence[tuple[bytes, bytes]] = HEADERS,
        leave: asyncio.Event | None = None,
    ) -> Reply:
        """One request, straight into the application, while the engine runs."""
        async with Running(self.engine):
            return await self.call(method, path, body=body, headers=headers, leave=leave)

    async def chat(self, **fields: Any) -> Reply:
        """One chat request; `fields` over a small one."""
        return await self.ask(body=chat_body(**fields))

    async def call(
        self,
        method: str = "POST",
        path: str = "/v1/chat/completions",
        *,
        body: bytes = b"",
        headers: Sequence[tuple[bytes, bytes]] = HEADERS,
        leave: asyncio.Event | None = None,
        root_path: str = "",
    ) -> Reply:
        """As `ask`, without moving the engine. The client leaves when `leave` is set."""
        reply = Reply()
        parts = [{"type": "http.request", "body": body, "more_body": False}]
        length = [(b"content-length", str(len(body)).encode())] if body else []

        async def receive() -> dict[str, Any]:
            if parts:
                return parts.pop(0)
            await (leave or asyncio.Event()).wait()
            return {"type": "http.disconnect"}

        async def send(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                reply.status = message["status"]
                reply.headers = {k.decode(): v.decode() for k, v in message["headers"]}
            else:
                reply.pieces.append(message.get("body", b""))

        path, _, query = path.partition("?")
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "root_path": root_path,
            "query_string": query.encode(),
            "headers": [*headers, *length],
            "client": ("127.0.0.1", 5000),
        }
        await self.app(scope, receive, send)
        return reply

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[str]:
        """A real uvicorn on a loopback port, and the engine running; gives the address."""
        listener = socket.create_server(("127.0.0.1", 0))
        config = uvicorn.Config(
            self.app, http="httptools", lifespan="off", log_config=None, access_log=False
        )
        server = uvicorn.Server(config)
        server.capture_signals = contextlib.nullcontext  # type: ignore[assignment, method-assign]
        async with Running(self.engine):
            task = asyncio.create_task(server.serve(sockets=[listener]))
            try:
                yield f"http://127.0.0.1:{listener.getsockname()[1]}"
            finally:
                server.should_exit = True
                await task
                listener.close()


def chat_body(**fields: Any) -> bytes:
    """A small chat request as JSON; `fields` replace its own, `...` removes one."""
    request = {
        "model": MODEL,
        "messages": [{"role": "user", "content": "hi"}],
        "max_tokens": 64,
        **fields,
    }
    return json.dumps({k: v for k, v in request.items() if v is not ...}).encode()
