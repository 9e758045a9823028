"""What a model is asked, and what came back: the same for local models and servers."""

from contextlib import suppress
from typing import Any, NamedTuple, Protocol

import msgspec

Json = dict[str, Any]


class Call(msgspec.Struct, frozen=True):
    """A tool call; `arguments` is a JSON object, or the text that should have been one."""

    name: str
    arguments: Any


class Alternatives(msgspec.Struct, frozen=True):
    """One drawn token, its log-probability in nats, and the likeliest tokens at its place."""

    token: str
    logprob: float
    top: tuple[tuple[str, float], ...]


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """An answer, or with `error` (the class) and `error_message` its failure."""

    text: str = ""  # without thoughts and calls
    reasoning: str = ""
    calls: tuple[Call, ...] = ()
    finish_reason: str = ""  # stop · length · tool_calls
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    error: str | None = None
    error_message: str = ""
    token_ids: tuple[int, ...] = ()  # of local models, the one that ended the answer included
    alternatives: tuple[Alternatives, ...] = ()  # if asked for


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """One request: OpenAI messages whose media are data: URLs, and how to answer."""

    messages: list[Json]
    tools: list[Json]
    thinking: bool
    max_tokens: int
    temperature: float
    seed: int
    top_logprobs: int | None = None


class Script(NamedTuple):
    """A question, and the tokens of the answer that models are led through."""

    question: Question
    token_ids: tuple[int, ...]


class ModelGone(Exception):
    """Nothing answers any more. What was answered until then counts, nothing else."""


class Respondent(Protocol):
    """A model that answers questions."""

    name: str

    async def start(self) -> None:
        """Get ready. Raises StartupError where nothing could be answered."""

    async def answer(self, question: Question) -> Reply:
        """The reply; failures of the request are replies, too. Raises ModelGone."""

    def facts(self) -> Json:
        """What it is, for the results: names, versions, types."""

    async def close(self) -> None:
        """Give everything back; whoever still waits for an answer gets a failure."""


def call_of(name: str, arguments: Any) -> Call:
    """A call whose arguments came as JSON text; what is no JSON stays text."""
    if isinstance(arguments, str):
        with suppress(msgspec.DecodeError):
            arguments = msgspec.json.decode(arguments)
    return Call(name, arguments)


def split_thoughts(text: str, reasoning: str) -> tuple[str, str]:
    """(text, reasoning) of an answer whose server may not have told them apart.

    Grammar of GLM: ["<think>"] thoughts "</think>" answer. Thoughts that are not closed leave an
    empty answer.
    """
    if reasoning:
        return text, reasoning
    before, end, after = text.partition("</think>")
    if end:
        return after.strip(), before.replace("<think>", "", 1).strip()
    if text.lstrip().startswith("<think>"):
        return "", text.replace("<think>", "", 1).strip()
    return text, ""
