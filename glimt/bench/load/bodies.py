"""Request bodies of each API, encoded before the clock starts.

A chat body has the fields in vLLM's order and meaning: text first and images after it,
`max_completion_tokens`, `stream` with `include_usage`, then sampling parameters and what
--extra-body adds; completions also carry `repetition_penalty` 1.0. Bodies of a large run go to an
unnamed file that is mapped into memory, so that a run need not fit there.
"""

import mmap
import tempfile
from pathlib import Path
from typing import Any

import msgspec

from glimt.bench.data.prompt import Image, Turn
from glimt.bench.load.dialects import Dialect, read_chat, read_completion, read_responses
from glimt.bench.options import Backend, SamplingOptions, TargetOptions
from glimt.errors import BadSettings

_IN_MEMORY_BYTES = 1 << 30
_CHAT = "openai-chat"
_RESPONSES = "openai-responses"

Message = dict[str, Any]

DIALECTS: dict[Backend, Dialect] = {
    "openai": read_completion,
    "vllm": read_completion,
    "openai-chat": read_chat,
    "openai-responses": read_responses,
}
SUFFIXES: dict[Backend, str] = {
    "openai": "completions",
    "vllm": "completions",
    "openai-chat": "chat/completions",
    "openai-responses": "responses",
}


class BodyMaker:
    """Makes bodies for one run. Raises BadSettings for options that are not JSON."""

    def __init__(
        self, target: TargetOptions, sampling: SamplingOptions, model: str, *, ignore_eos: bool
    ) -> None:
        self._backend = target.backend
        self._model = model
        self._extra = _extra(target.backend, sampling, ignore_eos=ignore_eos)
        self._logprobs = sampling.logprobs

    def make(self, turn: Turn, history: list[Message], model: str | None = None) -> bytes:
        """The body of one turn after the messages of earlier turns."""
        make = {_CHAT: self._chat, _RESPONSES: self._responses}.get(self._backend, self._completion)
        body = make(turn, history)
        body["model"] = model or self._model
        body.update(self._extra)
        return msgspec.json.encode(body)

    def messages(self, turn: Turn) -> list[Message]:
        """The turn as messages of a conversation."""
        if self._backend == _RESPONSES:
            return [{"role": "user", "content": [_responses_part(part) for part in turn.parts]}]
        return [{"role": "user", "content": [_chat_part(part) for part in turn.parts]}]

    def answer(self, text: str) -> Message:
        """An answer as a message of the next turn's history."""
        return {"role": "assistant", "content": text}

    def probe(self) -> bytes:
        """The smallest request: one token for one word."""
        return self.make(Turn(parts=("Hi",), output_tokens=1), [])

    def _chat(self, turn: Turn, history: list[Message]) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": "",
            "messages": [*history, *self.messages(turn)],
            "max_completion_tokens": turn.output_tokens,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if self._logprobs is not None:
            body |= {"logprobs": True, "top_logprobs": self._logprobs}
        return body

    def _completion(self, turn: Turn, history: list[Message]) -> dict[str, Any]:
        return {
            "model": "",
            "prompt": list(turn.token_ids) or turn.text,
            "repetition_penalty": 1.0,
            "max_tokens": turn.output_tokens,
            "logprobs": self._logprobs,
            "stream": True,
            "stream_options": {"include_usage": True},
        }

    def _responses(self, turn: Turn, history: list[Message]) -> dict[str, Any]:
        is_text = not history and not turn.images
        return {
            "model": "",
            "input": turn.text if is_text else [*history, *self.messages(turn)],
            "max_output_tokens": turn.output_tokens,
            "stream": True,
            "store": False,
        }


def check_turn(backend: Backend, turn: Turn, *, is_conversation: bool) -> None:
    """Raises BadSettings if the API cannot carry the prompt."""
    if turn.token_ids and backend not in ("openai", "vllm"):
        raise BadSettings(f"--backend {backend}: prompts of token ids need --backend openai")
    if backend in ("openai", "vllm") and (turn.images or is_conversation):
        what = "conversations" if is_conversation else "images"
        raise BadSettings(
            f"--backend {backend} is /v1/completions, which takes no {what}: use --backend "
            "openai-chat --endpoint /v1/chat/completions"
        )


def _chat_part(part: str | Image) -> Message:
    if isinstance(part, Image):
        return {"type": "image_url", "image_url": {"url": part.url}}
    return {"type": "text", "text": part}


def _responses_part(part: str | Image) -> Message:
    if isinstance(part, Image):
        return {"type": "input_image", "image_url": part.url}
    return {"type": "input_text", "text": part}


def _extra(backend: Backend, sampling: SamplingOptions, *, ignore_eos: bool) -> dict[str, Any]:
    """Fields of every request: sampling parameters, then --extra-body, which wins."""
    names = ("top_p", "top_k", "min_p", "temperature", "frequency_penalty", "presence_penalty")
    fields = {name: getattr(sampling, name) for name in (*names, "repetition_penalty")}
    extra = {name: value for name, value in fields.items() if value is not None}
    if ignore_eos:
        extra["ignore_eos"] = True
    if sampling.chat_template_kwargs is not None and backend == _CHAT:
        extra["chat_template_kwargs"] = _object(
            "--chat-template-kwargs", sampling.chat_template_kwargs
        )
    if sampling.extra_body is not None:
        extra |= _object("--extra-body", sampling.extra_body)
    return extra


def _object(option: str, text: str) -> dict[str, Any]:
    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise BadSettings(f"{option}: must be a JSON object: {error}") from None


class BodyStore:
    """Keeps bodies: in memory up to a gibibyte, the rest in a file mapped into memory."""

    def __init__(self, in_memory_bytes: int = _IN_MEMORY_BYTES) -> None:
        self._left = in_memory_bytes
        self._kept: list[bytes | tuple[int, int]] = []
        self._file: Any = None
        self._map: mmap.mmap | None = None
        self.num_bytes = 0

    def add(self, body: bytes) -> int:
        """Keep a body; gives its number."""
        self.num_bytes += len(body)
        if len(body) <= self._left:
            self._left -= len(body)
            self._kept.append(body)
        else:
            if self._file is None:
                self._file = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the store
            self._kept.append((self._file.tell(), len(body)))
            self._file.write(body)
        return len(self._kept) - 1

    def seal(self) -> None:
        """No more bodies will come; they can be read from now on."""
        if self._file is not None:
            self._file.flush()
            self._map = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
            self._file.close()

    def write(self, path: Path) -> list[tuple[int, int]]:
        """Write all bodies to one file; (start, length) of each."""
        spans, start = [], 0
        with path.open("wb") as file:
            for number in range(len(self._kept)):
                body = self[number]
                file.write(body)
                spans.append((start, len(body)))
                start += len(body)
        return spans

    def __getitem__(self, number: int) -> bytes | memoryview:
        kept = self._kept[number]
        if isinstance(kept, bytes):
            return kept
        if self._map is None:
            raise RuntimeError("the store is not sealed")
        start, length = kept
        return memoryview(self._map)[start : start + length]
