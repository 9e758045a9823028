"""An OpenAI-like server without a model, whose answers come at exactly known times.

    python benchmarks/mock_server.py --port 18731 --ttft-ms 100 --gap-ms 10

It prints its address and serves until it is stopped. Chunk k of an answer is due `ttft + k * gap`
after the request's last byte arrived: deadlines are absolute, so that lateness does not add up.
What an answer looks like can be said for each request, in a field `script` of its body (see
`Script`), which a benchmark client sends with `--extra-body '{"script": {...}}'`. GET /log gives
every request so far: arrival (seconds on the monotonic clock), headers, body without its media.

The tests of `glimt bench` run against it, and so did the comparisons of docs/benchmarking.md.
"""

import argparse
import asyncio
import json
import sys
import time
from typing import Any, Literal, cast

import httptools
import msgspec
import uvloop

WORDS = ("alpha ", "beta ", "gamma ", "delta ")
EXOTIC = ("naïve ", "日本語", "🙂 ", "line\u2028separator ")


class Script(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """How one answer goes. Times in milliseconds from the end of the request."""

    ttft_ms: float = 100.0
    gap_ms: float = 10.0
    tokens: int | None = None  # default: what the request allows
    tokens_per_chunk: int = 1
    reasoning_tokens: int = 0  # of the tokens, the first so many are thinking
    reasoning_field: Literal["reasoning", "reasoning_content", "both"] = "reasoning"
    role: Literal["first", "early", "none"] = "first"  # early: a chunk of its own, at once
    empty_every: int = 0  # each so many-th token has no text
    exotic: bool = False  # text of several bytes a character
    finish: Literal["own", "content", "last"] = "own"  # {} delta, "" content, or the last chunk
    finish_reason: str | None = "length"
    usage: Literal["own", "last", "none", "continuous"] = "own"
    usage_delay_ms: float = 0.0
    hidden_end: bool = False  # one token more is counted than is sent
    pings: bool = False  # comments between the chunks
    crlf: bool = False
    split: int = 0  # write so many bytes at a time, each in a packet of its own
    headers_ms: float | None = None  # send the headers so early; default: with the first chunk
    status: int = 200  # another: this error at ttft_ms
    retry_after: str | None = None
    end: Literal["done", "error", "reset", "close", "hang", "no_done"] = "done"
    end_after: int | None = None  # after so many chunks; default: after the last
    garbage_after: int | None = None  # an unreadable message after so many chunks


class Server:
    """What all connections share."""

    def __init__(self, default: Script) -> None:
        self.default = default
        self.log: list[dict[str, Any]] = []
        self.num_generated = 0
        self.running = 0


class Connection(asyncio.Protocol):
    """One client connection; requests on it are answered one after the other."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._task: asyncio.Task[None] | None = None
        self._reset()

    def _reset(self) -> None:
        self._path = b""
        self._body: list[bytes] = []
        self._headers: dict[str, str] = {}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        if self._task is not None:
            self._task.cancel()

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_url(self, url: bytes) -> None:
        self._path += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        now_s = time.monotonic()
        path, body, headers = self._path.decode(), b"".join(self._body), self._headers
        self._reset()
        self._task = asyncio.get_running_loop().create_task(
            self._answer(path, body, headers, now_s)
        )

    def leave(self, *, abruptly: bool) -> None:
        if self._transport is not None:
            self._transport.abort() if abruptly else self._transport.close()

    # -- answers

    def _write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)

    def _whole(self, status: int, body: bytes, kind: str = "application/json") -> None:
        head = f"HTTP/1.1 {status} X\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
        self._write(head.encode() + body)

    async def _answer(self, path: str, body: bytes, headers: dict[str, str], now_s: float) -> None:
        server = self._server
        if path == "/v1/models":
            card = {"id": "mock-model", "object": "model", "root": "mock-model"}
            self._whole(200, json.dumps({"object": "list", "data": [card]}).encode())
        elif path == "/health":
            self._whole(200, b"")
        elif path == "/version":
            self._whole(200, b'{"version": "mock"}')
        elif path == "/metrics":
            self._whole(200, self._metrics(), "text/plain")
        elif path == "/log":
            self._whole(200, json.dumps(server.log).encode())
        elif path in ("/start_profile", "/stop_profile"):
            server.log.append({"at_s": now_s, "path": path, "headers": headers, "body": {}})
            self._whole(200, b"{}")
        elif path.endswith(("/completions", "/responses")):
            server.running += 1
            try:
                await self._generate(path, body, headers, now_s)
            finally:
                server.running -= 1
        else:
            self._whole(404, b'{"error": {"message": "no such route"}}')

    def _metrics(self) -> bytes:
        server = self._server
        return (
            f"# TYPE vllm:num_requests_running gauge\n"
            f'vllm:num_requests_running{{model_name="mock"}} {server.running}.0\n'
            f'vllm:generation_tokens_total{{model_name="mock"}} {server.num_generated}.0\n'
            f'vllm:generation_tokens_created{{model_name="mock"}} 1.7e9\n'
        ).encode()

    async def _generate(self, path: str, raw: bytes, headers: dict[str, str], now_s: float) -> None:
        body = json.loads(raw)
        merged = msgspec.to_builtins(self._server.default) | body.get("script", {})
        script = msgspec.convert(merged, Script)
        self._server.log.append(
            {"at_s": now_s, "path": path, "headers": headers, "body": without_media(body)}
        )
        if script.status != 200:
            await until(now_s + script.ttft_ms / 1e3)
            extra = f"Retry-After: {script.retry_after}\r\n" if script.retry_after else ""
            words = json.dumps({"error": {"message": "scripted failure", "code": "x"}}).encode()
            self._write(
                f"HTTP/1.1 {script.status} X\r\n{extra}Content-Type: application/json\r\n"
                f"Content-Length: {len(words)}\r\n\r\n".encode()
                + words
            )
            return
        stream = Stream(self, path, body, script)
        await stream.send(now_s)
        self._server.num_generated += stream.num_tokens


class Stream:
    """The events of one answer, in their dialect."""

    def __init__(
        self, connection: Connection, path: str, body: dict[str, Any], script: Script
    ) -> None:
        self._connection = connection
        self._script = script
        self._is_chat = path.endswith("/chat/completions")
        self._is_responses = path.endswith("/responses")
        allowed = body.get("max_completion_tokens") or body.get("max_tokens")
        allowed = allowed or body.get("max_output_tokens") or 16
        self.num_tokens = allowed if script.tokens is None else script.tokens
        self._prompt_tokens = prompt_tokens(body)
        self._sent = 0
        self._head_is_sent = False

    async def send(self, began_s: float) -> None:
        script = self._script
        if script.headers_ms is not None:
            await until(began_s + script.headers_ms / 1e3)
            self._send_head()
        if script.role == "early" and self._is_chat:
            await self._event(self._choice({"role": "assistant", "content": ""}))
        num_chunks = -(-self.num_tokens // script.tokens_per_chunk)
        stop = num_chunks if script.end_after is None else min(script.end_after, num_chunks)
        for chunk in range(stop):
            await until(began_s + (script.ttft_ms + chunk * script.gap_ms) / 1e3)
            if script.garbage_after == chunk:
                await self._raw(b"data: {not json\n\n")
            await self._chunk(chunk, is_last=chunk == num_chunks - 1)
        await self._finish()

    async def _finish(self) -> None:
        script, connection = self._script, self._connection
        if script.end == "hang":
            await asyncio.sleep(3600)
        if script.end in ("reset", "close"):
            connection.leave(abruptly=script.end == "reset")
            return
        if script.end == "error":
            await self._event({"error": {"message": "scripted trouble", "type": "server_error"}})
        elif self._is_responses:
            await self._event({"type": "response.completed", "response": self._response()})
        else:
            await self._closing()
        if script.end != "no_done" and not self._is_responses:
            await self._raw(b"data: [DONE]\n\n")
        if not self._head_is_sent:
            self._send_head()
        connection._write(b"0\r\n\r\n")

    async def _closing(self) -> None:
        """The finish reason and the counts, as the script wants them."""
        script = self._script
        if script.finish != "last":
            delta = {"content": ""} if script.finish == "content" else {}
            await self._event(self._choice(delta, script.finish_reason))
        if script.usage == "own" or script.usage == "continuous":
            if script.usage_delay_ms:
                await asyncio.sleep(script.usage_delay_ms / 1e3)
            await self._event({"choices": [], "usage": self._usage(hidden=script.hidden_end)})

    async def _chunk(self, number: int, *, is_last: bool) -> None:
        script = self._script
        count = min(script.tokens_per_chunk, self.num_tokens - self._sent)
        places = range(self._sent, self._sent + count)
        self._sent += count
        words = EXOTIC if script.exotic else WORDS
        text = "".join(
            ""
            if script.empty_every and (place + 1) % script.empty_every == 0
            else words[place % len(words)]
            for place in places
        )
        is_thought = places.start < script.reasoning_tokens
        if self._is_responses:
            kind = "reasoning_text" if is_thought else "output_text"
            await self._event({"type": f"response.{kind}.delta", "delta": text})
            return
        delta: dict[str, Any] = {"role": "assistant"} if self._leads(number) else {}
        if not is_thought:
            delta["content"] = text
        elif script.reasoning_field == "both":
            delta |= {"reasoning": text, "reasoning_content": text}
        else:
            delta[script.reasoning_field] = text
        reason = script.finish_reason if is_last and script.finish == "last" else None
        event = self._choice(delta, reason)
        if script.usage == "continuous" or (script.usage == "last" and is_last):
            event["usage"] = self._usage()
        await self._event(event)

    def _leads(self, number: int) -> bool:
        return number == 0 and self._script.role == "first" and self._is_chat

    def _choice(self, delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
        content = {"delta": delta} if self._is_chat else {"text": delta.get("content", "")}
        return {
            "id": "x",
            "object": "chat.completion.chunk" if self._is_chat else "text_completion",
            "created": 1,
            "model": "mock-model",
            "choices": [{"index": 0, **content, "finish_reason": reason}],
        }

    def _usage(self, *, hidden: bool = False) -> dict[str, Any]:
        completion = self._sent + hidden
        return {
            "prompt_tokens": self._prompt_tokens,
            "completion_tokens": completion,
            "total_tokens": self._prompt_tokens + completion,
            "prompt_tokens_details": {"cached_tokens": 0},
            "completion_tokens_details": {
                "reasoning_tokens": min(self._script.reasoning_tokens, completion)
            },
        }

    def _response(self) -> dict[str, Any]:
        return {
            "status": "incomplete",
            "incomplete_details": {"reason": "max_output_tokens"},
            "usage": {"input_tokens": self._prompt_tokens, "output_tokens": self._sent},
        }

    async def _event(self, content: dict[str, Any]) -> None:
        text = json.dumps(content, ensure_ascii=False)
        named = f"event: {content['type']}\n" if self._is_responses and "type" in content else ""
        ping = ": ping\n\n" if self._script.pings else ""
        await self._raw(f"{ping}{named}data: {text}\n\n".encode())

    async def _raw(self, event: bytes) -> None:
        if not self._head_is_sent:
            self._send_head()
        if self._script.crlf:
            event = event.replace(b"\n", b"\r\n")
        size = self._script.split or len(event)
        for start in range(0, len(event), size):
            part = event[start : start + size]
            self._connection._write(b"%x\r\n%b\r\n" % (len(part), part))
            if self._script.split:
                await asyncio.sleep(0)

    def _send_head(self) -> None:
        self._head_is_sent = True
        self._connection._write(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n"
        )


async def until(due_s: float) -> None:
    left_s = due_s - time.monotonic()
    if left_s > 0:
        await asyncio.sleep(left_s)


def prompt_tokens(body: dict[str, Any]) -> int:
    """A count that depends on the texts and images and on nothing else."""
    prompt = body.get("prompt")
    if isinstance(prompt, list):
        return len(prompt)
    said = prompt or body.get("messages") or body.get("input") or ""
    if isinstance(said, str):
        return 1 + len(said) // 4
    total = 0
    for message in said:
        content = message["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        for part in parts:
            total += 100 if "image" in part["type"] else 1 + len(part.get("text", "")) // 4
    return total


def without_media(body: Any) -> Any:
    """The body with its data: addresses cut short."""
    if isinstance(body, dict):
        return {key: without_media(value) for key, value in body.items()}
    if isinstance(body, list):
        return [without_media(value) for value in body]
    if isinstance(body, str) and body.startswith("data:"):
        return f"{body[:40]}… {len(body)}"
    return body


async def serve(host: str, port: int, default: Script) -> None:
    server = Server(default)
    listener = await asyncio.get_running_loop().create_server(
        lambda: Connection(server), host, port, backlog=4096
    )
    print(f"http://{host}:{listener.sockets[0].getsockname()[1]}", flush=True)
    await listener.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--ttft-ms", type=float, default=100.0)
    parser.add_argument("--gap-ms", type=float, default=10.0)
    parser.add_argument("--script", default="{}", help="JSON with further defaults of Script")
    options = parser.parse_args()
    fields = {"ttft_ms": options.ttft_ms, "gap_ms": options.gap_ms} | json.loads(options.script)
    try:
        uvloop.run(serve(options.host, options.port, msgspec.convert(fields, Script)))
    except KeyboardInterrupt:
        sys.exit(0)


if __name__ == "__main__":
    main()
