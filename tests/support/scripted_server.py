"""An HTTP server that answers as a script says, and remembers what it was asked."""

import json
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any


@dataclass
class Scripted:
    """One answer. With `hangs`, it stays open after its pieces until the client has left."""

    pieces: Iterable[bytes] = ()
    status: int = 200
    content_type: str = "text/event-stream"
    headers: dict[str, str] = field(default_factory=dict)
    hangs: bool = False


def event(value: Any) -> bytes:
    """One server-sent event."""
    return f"data: {value if isinstance(value, str) else json.dumps(value)}\n\n".encode()


def delta(**fields: Any) -> bytes:
    """A chunk of an answer."""
    return event({"choices": [{"index": 0, "delta": fields, "finish_reason": None}]})


def end(reason: str = "stop", **usage: Any) -> bytes:
    """The last chunks of an answer."""
    finish = event({"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]})
    counts = event({"choices": [], "usage": usage}) if usage else b""
    return finish + counts + event("[DONE]")


def answer(text: str, **usage: Any) -> Scripted:
    """A whole answer, a word at a time."""
    return Scripted([*(delta(content=f"{word} ") for word in text.split()), end(**usage)])


def refusal(status: int, message: str, param: str | None = None, **headers: str) -> Scripted:
    """An error in OpenAI's form."""
    body = {"error": {"message": message, "type": "x", "param": param, "code": None}}
    return Scripted([json.dumps(body).encode()], status, "application/json", headers)


def texts(request: Any) -> list[str]:
    """What the messages of a request say."""
    contents = [message["content"] for message in request["messages"]]
    return [each if isinstance(each, str) else each[-1]["text"] for each in contents]


class ScriptedServer:
    """On a free port of the loopback. `script` holds the answers to come, `requests` the bodies."""

    def __init__(self, *models: str) -> None:
        cards = {"object": "list", "data": [{"id": name, "object": "model"} for name in models]}
        self.models = Scripted([json.dumps(cards).encode()], content_type="application/json")
        self.script: list[Scripted] = []
        self.requests: list[Any] = []
        self.headers: list[dict[str, str]] = []
        self.client_left = threading.Event()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.05,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._http.server_port}/v1"

    def __enter__(self) -> "ScriptedServer":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.headers.append(dict(self.headers))
                self._send(server.models)

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                server.headers.append(dict(self.headers))
                server.requests.append(json.loads(body))
                self._send(server.script.pop(0))

            def _send(self, scripted: Scripted) -> None:
                self.send_response(scripted.status)
                self.send_header("Content-Type", scripted.content_type)
                for name, value in scripted.headers.items():
                    self.send_header(name.replace("_", "-"), value)
                self.end_headers()
                for piece in scripted.pieces:
                    self.wfile.write(piece)
                    self.wfile.flush()
                if scripted.hangs and not self.rfile.read(1):
                    server.client_left.set()

            def log_message(self, *arguments: Any) -> None:
                """Quiet."""

        return Handler
