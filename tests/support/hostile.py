"""Asking a running server as nobody should, and the canary that must sing after each question."""

import contextlib
import http.client
import json
import socket
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import psutil

from tests.support.serving import Serving

HANGS_S = 60  # an answer that takes so long does not come, however loaded the machine
CHAT = "/v1/chat/completions"
GAUGES = (
    "vllm:num_requests_running{",
    "vllm:num_requests_waiting{",
    "vllm:kv_cache_usage_perc{",
    "glimt:num_media_waiting{",
    "glimt:num_requests_preparing{",
)


@dataclass(frozen=True)
class Reply:
    """An HTTP answer."""

    status: int
    headers: dict[str, str]  # names in lower case
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        return dict(self.json["error"])

    @property
    def text(self) -> str:
        return str(self.json["choices"][0]["message"]["content"])


def chat_body(**fields: Any) -> dict[str, Any]:
    """A small chat request; fields that are ... are left out."""
    body = {
        "model": "tiny",
        "messages": [{"role": "user", "content": "hi"}],
        "max_tokens": 2,
        **fields,
    }
    return {name: value for name, value in body.items() if value is not ...}


def image_part(url: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def with_parts(*parts: Any, **fields: Any) -> dict[str, Any]:
    return chat_body(messages=[{"role": "user", "content": list(parts)}], **fields)


def ask(
    serving: Serving,
    body: Any = None,
    *,
    path: str = CHAT,
    method: str = "POST",
    headers: dict[str, Any] | None = None,
    timeout: float = HANGS_S,
) -> Reply:
    """One request. `body` is bytes as they are, or anything else as JSON."""
    data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    address = urlsplit(serving.url)
    connection = http.client.HTTPConnection(str(address.hostname), address.port, timeout=timeout)
    try:
        connection.request(
            method, path, data, {"Content-Type": "application/json", **(headers or {})}
        )
        response = connection.getresponse()
        content = response.read()
    finally:
        connection.close()
    names = {name.lower(): value for name, value in response.getheaders()}
    return Reply(response.status, names, content)


def connect(serving: Serving, timeout: float = 20) -> socket.socket:
    address = urlsplit(serving.url)
    return socket.create_connection((str(address.hostname), address.port or 0), timeout)


def ask_raw(serving: Serving, data: bytes, timeout: float = 20) -> bytes:
    """The bytes that come back for these bytes, until the server closes or stays silent."""
    with connect(serving, timeout) as sock:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            sock.sendall(data)  # unless it is refused before it was all said
        received = b""
        with contextlib.suppress(ConnectionResetError):
            while piece := sock.recv(65536):
                received += piece
        return received


LITTLE_WORK_S = 1.0  # of processors; what is refused here takes less than a tenth of it


class Canary:
    """What must be the same after whatever a client did: the answer, the engine, the gauges.

    `headers`: a key, where one is asked for.
    """

    def __init__(self, serving: Serving, headers: dict[str, Any] | None = None) -> None:
        self._serving = serving
        self._headers = headers
        self._body = chat_body(
            messages=[{"role": "user", "content": "Sing."}],
            max_tokens=8,
            temperature=0,
            ignore_eos=True,
        )
        self._text = ask(serving, self._body, headers=headers).text
        self._pids = {each.pid for each in serving.children()}
        serving.wait_for(self._is_idle, HANGS_S)

    def sings(self) -> None:
        """Fails if the server is not what it was."""
        assert ask(self._serving, self._body, headers=self._headers).text == self._text
        assert ask(self._serving, method="GET", path="/readyz").status == 200
        assert {each.pid for each in self._serving.children()} == self._pids
        self._serving.wait_for(self._is_idle, HANGS_S)

    def memory_bytes(self) -> int:
        """Resident memory of the server, the engine and the workers."""
        return sum(psutil.Process(pid).memory_info().rss for pid in self._pids)

    def work_s(self) -> float:
        """Processor seconds of the same so far: what others do on the machine is not in it."""
        times = [psutil.Process(pid).cpu_times() for pid in self._pids]
        return float(sum(each.user + each.system for each in times))

    def _is_idle(self) -> bool:
        """The engine's gauges follow its answers within a second."""
        reply = ask(self._serving, method="GET", path="/metrics", headers=self._headers)
        metrics = reply.body.decode()
        values = [line for line in metrics.splitlines() if line.startswith(GAUGES)]
        return len(values) == len(GAUGES) and all(line.endswith(" 0.0") for line in values)
