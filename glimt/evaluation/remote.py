"""A model behind an OpenAI-compatible server."""

import asyncio
import math
import os
from contextlib import suppress
from typing import Any

import aiohttp
import msgspec

from glimt.errors import BadSettings
from glimt.evaluation.replies import (
    Alternatives,
    Json,
    ModelGone,
    Question,
    Reply,
    call_of,
    split_thoughts,
)

_TIMEOUT = aiohttp.ClientTimeout(total=1800, connect=30)
_MAX_TRIES = 6
_MAX_CUT_OFF = 2  # the same request might end one server after the other
_FIRST_WAIT_S, _MAX_WAIT_S = 1.0, 30.0  # it doubles
_BUSY = (429, 503)
_OTHER_NAMES = {"max_tokens": "max_completion_tokens"}  # what OpenAI's newer models want
_SIGNS = {"chat_template_kwargs": "chat_template_kwargs", **_OTHER_NAMES}  # words of a refusal


class RemoteModel:
    """Asks `POST {base}/chat/completions`. Full servers, and such as start anew, are asked again,
    up to five times.
    """

    def __init__(self, base_url: str, model: str | None, api_key: str | None) -> None:
        """`base_url` with or without /v1. `model` None: the first that the server lists."""
        base = base_url.rstrip("/")
        self._base = base if base.endswith("/v1") else f"{base}/v1"
        self._model = model
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._session: aiohttp.ClientSession | None = None
        self._refused: set[str] = set()
        self.name = model or base_url

    async def start(self) -> None:
        """Connect, and find the model's name. Raises BadSettings."""
        self._session = aiohttp.ClientSession(headers=self._headers, timeout=_TIMEOUT)
        where = f"{self._base}/models"
        try:
            async with self._session.get(where) as response:
                body = await response.read()
                if response.status != 200:
                    error = error_of(response.status, body)
                    raise BadSettings(f"{where} answers {response.status}: {error.error_message}")
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise BadSettings(f"no server answers at {where} ({_reason(error)})") from None
        if self._model is None:
            try:
                self._model = str(msgspec.json.decode(body)["data"][0]["id"])
            except (msgspec.DecodeError, LookupError, TypeError):
                raise BadSettings(f"{where} lists no model; name one with --model") from None
        self.name = self._model

    async def answer(self, question: Question) -> Reply:
        """The reply; refusals and broken connections are replies with an error.

        Raises ModelGone where the connection failed each time, and no server is there after that.
        """
        session = self._connected()
        fields = self._body(question)
        wait_s, num_cut_off = _FIRST_WAIT_S, 0
        for number in range(1, _MAX_TRIES + 1):
            asked_s: str | None = None
            try:
                async with session.post(
                    f"{self._base}/chat/completions",
                    data=msgspec.json.encode(fields),
                    headers={"Content-Type": "application/json"},
                ) as response:
                    data = await response.read()
            except TimeoutError:
                return Reply(error="timeout", error_message="no answer in time")
            except aiohttp.ClientError as error:
                failed = Reply(error="connection_failed", error_message=_reason(error))
                num_cut_off += not isinstance(error, aiohttp.ClientConnectorError)
            else:
                asked_s = response.headers.get("Retry-After")
                failed = error_of(response.status, data)
                if response.status == 400 and self._adapt(fields, failed.error_message):
                    continue
                if response.status not in _BUSY:
                    return reply_of(data) if response.status == 200 else failed
            if number == _MAX_TRIES or num_cut_off == _MAX_CUT_OFF:
                break
            await asyncio.sleep(_wait_s(asked_s, wait_s))
            wait_s *= 2
        if failed.error == "connection_failed" and not await self._is_there():
            raise ModelGone(f"{self._base} does not answer any more ({failed.error_message})")
        return failed

    def _adapt(self, fields: Json, message: str) -> bool:
        """Whether `message` refuses a field that can be left out; then it is, from now on."""
        for name, sign in _SIGNS.items():
            if name in fields and sign in message:
                self._refused.add(name)
                _leave_out(fields, name)
                return True
        return False

    def _connected(self) -> aiohttp.ClientSession:
        if self._session is None:
            raise RuntimeError("not started")
        return self._session

    async def _is_there(self) -> bool:
        try:
            async with self._connected().get(f"{self._base}/models"):
                return True
        except (aiohttp.ClientError, TimeoutError):
            return False

    def facts(self) -> Json:
        """Address and name, and fields that had to be left out; the key is nobody's business."""
        facts: Json = {"kind": "server", "base_url": self._base, "model": self._model}
        return facts | ({"refused_fields": sorted(self._refused)} if self._refused else {})

    async def close(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()

    def _body(self, question: Question) -> Json:
        body: Json = {
            "model": self._model,
            "messages": question.messages,
            "temperature": question.temperature,
            "max_tokens": question.max_tokens,
            "seed": question.seed,
            "chat_template_kwargs": {"enable_thinking": question.thinking},
        }
        for name in self._refused:
            _leave_out(body, name)
        if question.tools:
            body["tools"] = question.tools
        if question.top_logprobs is not None:
            body |= {"logprobs": True, "top_logprobs": question.top_logprobs}
        return body


def _leave_out(fields: Json, name: str) -> None:
    value = fields.pop(name)
    if name in _OTHER_NAMES:
        fields[_OTHER_NAMES[name]] = value


def reply_of(data: bytes) -> Reply:
    """A chat completion's body as a reply."""
    try:
        body = msgspec.json.decode(data)
        choice = body["choices"][0]
        message = choice["message"]
        usage = body.get("usage") or {}
        thoughts = message.get("reasoning") or message.get("reasoning_content") or ""
        text, reasoning = split_thoughts(message.get("content") or "", thoughts)
        return Reply(
            text=text,
            reasoning=reasoning,
            calls=tuple(
                call_of(call["function"]["name"], call["function"]["arguments"])
                for call in message.get("tool_calls") or ()
            ),
            finish_reason=choice.get("finish_reason") or "",
            prompt_tokens=usage.get("prompt_tokens") or 0,
            completion_tokens=usage.get("completion_tokens") or 0,
            alternatives=_alternatives(choice.get("logprobs")),
        )
    except (msgspec.DecodeError, LookupError, TypeError, AttributeError):
        return Reply(error="bad_response", error_message="the body is no chat completion")


def _alternatives(logprobs: Json | None) -> tuple[Alternatives, ...]:
    return tuple(
        Alternatives(
            each["token"],
            each["logprob"],
            tuple((top["token"], top["logprob"]) for top in each["top_logprobs"]),
        )
        for each in (logprobs or {}).get("content") or ()
    )


def error_of(status: int, data: bytes) -> Reply:
    """The class and the sentence of an error body, whatever shape it has."""
    error: Any = None
    with suppress(msgspec.DecodeError):
        error = msgspec.json.decode(data)
    if isinstance(error, dict):
        error = error.get("error", error)
    if not isinstance(error, dict):
        return Reply(error=f"http_{status}", error_message=str(error or "")[:500])
    code = error.get("code")
    return Reply(
        error=code if isinstance(code, str) else f"http_{status}",
        error_message=str(error.get("message") or "")[:500],
    )


def _wait_s(retry_after: str | None, otherwise: float) -> float:
    try:
        seconds = float(retry_after or otherwise)
    except ValueError:
        seconds = otherwise
    return min(seconds, _MAX_WAIT_S) if math.isfinite(seconds) and seconds >= 0 else otherwise


def _reason(error: Exception) -> str:
    if isinstance(error, aiohttp.ClientConnectorError):
        code, text = error.os_error.errno, error.os_error.strerror
        return os.strerror(code) if code is not None and code > 0 else text or str(error)
    return str(error) or type(error).__name__
