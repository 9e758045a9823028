"""One server of a Ray Serve application: `glimt serve` on a socket of its machine, and before it
an actor that passes requests on.

Bodies and streams pass as they come; a client that leaves takes its request along. The actor
reports what waits, and is replaced by Ray when its server is gone.
"""

import asyncio
import secrets
import shutil
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import aiohttp
import msgspec
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from glimt.api.errors import HttpError, body_of, status_of
from glimt.api.routes import Load
from glimt.placement.orders import decode, encode
from glimt.placement.scaling import work_of
from glimt.processes.children import exit_text
from glimt.processes.folders import make_folder, remove_stale_folders

LOOK_S = 0.2
ASK_LIMIT_S = 5.0
_REFUSAL, _READY = "glimt: ", "ready after "
# Of one connection, and not of what is said over it.
_HOP_BY_HOP = {
    *(b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"upgrade"),
    b"transfer-encoding",
}
_RAYS_OWN = {b"date", b"server", b"x-request-id"}  # it adds these to every answer, too


class _Server:
    """`glimt serve` as a child. The kernel ends it with the thread that starts it, so with us."""

    def __init__(self, settings: bytes) -> None:
        self._settings = settings
        self._process: subprocess.Popen[bytes] | None = None
        self.is_ready = False
        self.end = ""  # how it ended, and why if it said so
        self._refusal = ""
        self._thread = threading.Thread(target=self._run, name="server", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        self._process = process = subprocess.Popen(
            [sys.executable, "-m", "glimt.placement.worker"],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        if process.stdin is None or process.stderr is None:
            raise RuntimeError("a process without pipes")
        with process.stdin as stdin:
            stdin.write(self._settings)
        with process.stderr as output:
            for data in output:
                line = data.decode(errors="replace")
                sys.stderr.write(line)
                self.is_ready |= line.startswith(_READY)
                if line.startswith(_REFUSAL):
                    self._refusal = line.removeprefix(_REFUSAL).rstrip()
        self.end = f"{exit_text(process.wait())} {self._refusal}".rstrip()

    def stop(self) -> None:
        """Let it finish what it has."""
        if self._process is not None and not self.end:
            self._process.terminate()
        self._thread.join()


class Replica:
    """What Ray Serve deploys. `target_tokens`: prompt tokens that may wait here."""

    async def __init__(self, settings: bytes, target_tokens: int) -> None:  # type: ignore[misc]
        """Ready when the server is. Raises RuntimeError if it does not start."""
        remove_stale_folders()
        self._target_tokens = target_tokens
        self._folder = make_folder()
        socket = f"{self._folder}/http"
        wished = decode(settings)
        server, own_key = replace(wished.server, uds=socket), secrets.token_urlsafe()
        self._key = {"authorization": f"Bearer {own_key}"}
        if server.api_key or server.api_key_file:
            server = replace(server, api_key=[*(server.api_key or ()), own_key])
        self._server = _Server(encode(replace(wished, server=server)))
        self._session = aiohttp.ClientSession(
            "http://glimt",
            connector=aiohttp.UnixConnector(socket, limit=0),
            timeout=aiohttp.ClientTimeout(total=None),
            auto_decompress=False,
            skip_auto_headers=("user-agent", "accept", "accept-encoding", "content-type"),
        )
        while not self._server.is_ready:
            await self.check_health()
            await asyncio.sleep(LOOK_S)

    async def __call__(self, request: Request) -> Response:
        """Pass a request on, and its answer back as it comes."""
        headers = [
            (name.decode("latin-1"), value.decode("latin-1"))
            for name, value in request.headers.raw
            if name not in _HOP_BY_HOP
        ]
        has_body = "content-length" in request.headers or "transfer-encoding" in request.headers
        try:
            answer = await self._session.request(
                request.method,
                _target(request.scope),
                headers=headers,
                data=request.stream() if has_body else None,
                allow_redirects=False,
            )
        except aiohttp.ClientError:
            error = HttpError("not_ready", "this server is gone, and is being replaced")
            body = msgspec.json.encode(body_of(error, ""))
            return Response(body, status_of(error), {"content-type": "application/json"})
        response = StreamingResponse(_passed(answer), answer.status)
        response.raw_headers = [
            (name.lower(), value)
            for name, value in answer.raw_headers
            if name.lower() not in _HOP_BY_HOP | _RAYS_OWN
        ]
        return response

    async def check_health(self) -> None:
        """Raises RuntimeError if the server is gone; Ray then replaces this actor."""
        if self._server.end:
            raise RuntimeError(f"glimt serve ended: {self._server.end}")

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """What `placement/scaling.py` asks for."""
        limit = aiohttp.ClientTimeout(total=ASK_LIMIT_S)
        async with self._session.get("/load", timeout=limit, headers=self._key) as answer:
            load = msgspec.json.decode(await answer.read(), type=Load)
        return {
            "work": work_of(load.queued_tokens, load.usage, self._target_tokens),
            "queued_tokens": float(load.queued_tokens),
            "usage": load.usage,
        }

    async def __del__(self) -> None:
        """Let running requests finish; Ray sends no new ones any more."""
        await asyncio.to_thread(self._server.stop)
        await self._session.close()
        shutil.rmtree(self._folder, ignore_errors=True)


def _target(scope: Any) -> str:
    """Path and query below the application's prefix."""
    path = str(scope["path"]).removeprefix(scope.get("root_path", "")) or "/"
    query = scope.get("query_string", b"").decode("latin-1")
    return f"{path}?{query}" if query else path


async def _passed(answer: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """Its bytes; when nobody wants them any more, its connection ends."""
    try:
        async for data in answer.content.iter_any():
            yield data
    finally:
        answer.close()
