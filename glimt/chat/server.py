"""The HTTP side: which models a server has, and one streamed answer as deltas."""

import ipaddress
import os
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, NoReturn
from urllib.parse import urlsplit

import aiohttp
import msgspec

from glimt.chat.sse import BadStream, EventReader
from glimt.errors import BadSettings, GlimtError

_CONNECT_TIMEOUT_S = 10.0
_SILENCE_TIMEOUT_S = 600.0  # a long prompt on a slow machine is silent for minutes
_MAX_ERROR_BYTES = 64 << 10
_MAX_MODELS_BYTES = 4 << 20
_MAX_SHOWN = 300


class AskFailed(GlimtError):
    """There was no answer, or not a whole one; the message says why and what to do."""

    def __init__(self, message: str, *, is_unreachable: bool = False) -> None:
        super().__init__(message)
        self.is_unreachable = is_unreachable  # nobody answered at all


class PromptDetails(msgspec.Struct, frozen=True):
    """Part of `usage`."""

    cached_tokens: int | None = None


class Usage(msgspec.Struct, frozen=True):
    """How many tokens an exchange took."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: PromptDetails | None = None


class _Text(msgspec.Struct, frozen=True):
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None  # the older name; some servers send both
    refusal: str | None = None


class _Choice(msgspec.Struct, frozen=True):
    delta: _Text | None = None
    finish_reason: str | None = None


class _Chunk(msgspec.Struct, frozen=True):
    choices: Sequence[_Choice] | None = None
    usage: Usage | None = None
    error: Any = None


class _Card(msgspec.Struct, frozen=True):
    id: str


class _Cards(msgspec.Struct, frozen=True):
    data: list[_Card]


@dataclass(frozen=True, slots=True)
class Delta:
    """What one event adds to an answer."""

    reasoning: str = ""
    content: str = ""
    finish_reason: str | None = None
    usage: Usage | None = None


def base_url_of(text: str) -> str:
    """The address below which the API lies, from what people write: `localhost:8000` will do.

    Raises BadSettings for what is no http(s) address.
    """
    url = text if "://" in text else f"http://{text}"
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as error:
        raise BadSettings(f"--base-url {text}: {error}") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise BadSettings(f"--base-url {text}: write it like http://127.0.0.1:8000/v1")
    if parts.username is not None or parts.query or parts.fragment:
        raise BadSettings(f"--base-url {text}: a key goes to --api-key, and nothing follows a path")
    return url.rstrip("/") if parts.path.strip("/") else f"{url.rstrip('/')}/v1"


class ChatServer:
    """An OpenAI-compatible server. Each call makes a connection of its own."""

    def __init__(self, base_url: str, api_key: str | None = None) -> None:
        self.base_url = base_url
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        # No proxy leads to this machine itself, whatever the environment says.
        self._may_use_proxy = not _is_loopback(urlsplit(base_url).hostname or "")

    async def model_names(self) -> list[str]:
        """The names under which it serves models. Raises AskFailed."""
        async with self._answer("GET", "/models") as response:
            body = await response.content.read(_MAX_MODELS_BYTES)
        try:
            names = [card.id for card in msgspec.json.decode(body, type=_Cards).data]
        except msgspec.MsgspecError as error:
            raise AskFailed(f"{self.base_url}/models is no list of models ({error})") from None
        if not names:
            raise AskFailed(f"{self.base_url} serves no model; name one with --model")
        return names

    async def ask(self, body: Mapping[str, Any]) -> AsyncGenerator[Delta, None]:
        """The deltas of the answer to the request `body`, which says `stream`.

        Raises AskFailed, also when the stream ends before the answer does.
        """
        reader = EventReader()
        is_finished = is_done = False
        async with self._answer("POST", "/chat/completions", body) as response:
            if response.content_type != "text/event-stream":
                raise AskFailed(
                    f"{self.base_url} sent {response.content_type}, not a stream of events"
                )
            async for piece in response.content.iter_any():
                for event in self._events(reader, piece):
                    is_done = is_done or event == "[DONE]"
                    if not is_done:
                        delta = _delta_of(event)
                        is_finished = is_finished or delta.finish_reason is not None
                        yield delta
                if is_done:
                    break
        if not is_finished:
            raise AskFailed("the server ended the stream before the answer was complete")

    def _events(self, reader: EventReader, piece: bytes) -> list[str]:
        try:
            return reader.feed(piece)
        except BadStream as error:
            raise AskFailed(f"{self.base_url} sent {error}") from None

    @asynccontextmanager
    async def _answer(
        self, method: str, path: str, body: Mapping[str, Any] | None = None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """A response with status 200; whatever goes wrong until it is read becomes AskFailed."""
        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=_CONNECT_TIMEOUT_S, sock_read=_SILENCE_TIMEOUT_S
        )
        try:
            async with (
                aiohttp.ClientSession(
                    timeout=timeout, headers=self._headers, trust_env=self._may_use_proxy
                ) as session,
                session.request(
                    method, f"{self.base_url}{path}", json=body, allow_redirects=False
                ) as response,
            ):
                if response.status != 200:
                    await self._refuse(response, path)
                yield response
        except aiohttp.ClientConnectorError as error:
            raise AskFailed(
                f"nothing answers at {self.base_url} ({_reason(error)}); start a server there "
                "(glimt serve MODEL --port PORT), or name another with --base-url",
                is_unreachable=True,
            ) from None
        except aiohttp.ServerTimeoutError:
            raise AskFailed(
                f"{self.base_url} did not answer in time", is_unreachable=True
            ) from None
        except (aiohttp.ClientError, OSError) as error:
            raise AskFailed(
                f"the connection to {self.base_url} broke ({error or type(error).__name__})",
                is_unreachable=True,
            ) from None

    async def _refuse(self, response: aiohttp.ClientResponse, path: str) -> NoReturn:
        status = response.status
        if 300 <= status < 400:
            where = response.headers.get("Location", "elsewhere")
            raise AskFailed(f"{self.base_url} sends on to {where}; give that as --base-url")
        text = (await response.content.read(_MAX_ERROR_BYTES)).decode("utf-8", "replace")
        message = f"the server refused ({status} {response.reason}): {_error_text(text)}"
        if status == 401:
            message += "; give a key with --api-key or GLIMT_API_KEY"
        if status == 404 and path == "/models":
            message += "; name the model with --model, or see whether --base-url is right"
        if (wait := response.headers.get("Retry-After")) is not None:
            message += f" (try again in {wait} s)"
        raise AskFailed(message)


def _delta_of(event: str) -> Delta:
    try:
        chunk = msgspec.json.decode(event, type=_Chunk)
    except msgspec.MsgspecError as error:
        raise AskFailed(
            f"the server sent an event that is no part of an answer ({error})"
        ) from None
    if chunk.error is not None:
        raise AskFailed(f"the server failed: {_error_of(chunk.error)}")
    choice = chunk.choices[0] if chunk.choices else _Choice()
    text = choice.delta or _Text()
    return Delta(
        reasoning=text.reasoning or text.reasoning_content or "",
        content=text.content or text.refusal or "",
        finish_reason=choice.finish_reason,
        usage=chunk.usage,
    )


def _error_text(body: str) -> str:
    """The message of an error's body, in whichever of the usual forms."""
    try:
        content = msgspec.json.decode(body)
    except msgspec.MsgspecError:
        return body.strip()[:_MAX_SHOWN] or "no reason given"
    if isinstance(content, dict):
        for key in ("error", "detail"):
            if content.get(key):
                return _error_of(content[key])
    return _error_of(content)


def _error_of(error: Any) -> str:
    if isinstance(error, str):
        return error[:_MAX_SHOWN]
    if isinstance(error, dict) and error.get("message"):
        field = error.get("param")
        return f"{error['message']}" + (f" [field {field}]" if field else "")
    return msgspec.json.encode(error).decode()[:_MAX_SHOWN]


def _reason(error: aiohttp.ClientConnectorError) -> str:
    cause = error.os_error
    if isinstance(cause, socket.gaierror) or not cause.errno:
        return cause.strerror or str(cause) or type(cause).__name__
    return os.strerror(cause.errno)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
