"""The shapes of a chat answer: one body for an unstreamed one, and the pieces of its chunks."""

from typing import Literal

import msgspec
from msgspec import UNSET, UnsetType


class LogprobToken(msgspec.Struct, frozen=True):
    """A token and its log-probability; -9999 stands for minus infinity."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(msgspec.Struct, frozen=True):
    """The token that was drawn, and the likeliest at its place."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[LogprobToken]


class ChoiceLogprobs(msgspec.Struct, frozen=True):
    """Log-probabilities of a choice's tokens, in order."""

    content: list[TokenLogprob]


class PromptLogprob(msgspec.Struct, frozen=True):
    """How likely the model found a token at its place in the prompt; rank 1 is the likeliest."""

    logprob: float
    rank: int | None
    decoded_token: str


# For each token of a prompt: it and the likeliest at its place, by id. The first has none.
PromptLogprobs = list[dict[str, PromptLogprob] | None]


class PromptDetails(msgspec.Struct, frozen=True):
    """Of the prompt's tokens."""

    cached_tokens: int


class CompletionDetails(msgspec.Struct, frozen=True):
    """Of the answer's tokens."""

    reasoning_tokens: int


class Usage(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Token counts. A prompt counts once, its images and videos included; choices are summed."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails | None = None
    completion_tokens_details: CompletionDetails | None = None


class AnswerFunction(msgspec.Struct, frozen=True, kw_only=True):
    """The function called, and its arguments: a JSON object as text, cut if the answer was."""

    name: str
    arguments: str


class AnswerCall(msgspec.Struct, frozen=True, kw_only=True):
    """A call of a tool."""

    id: str
    type: Literal["function"] = "function"
    function: AnswerFunction


class Box(msgspec.Struct, frozen=True, kw_only=True):
    """What stood between box marks, and the lists of numbers in it: `[x1, y1, x2, y2]`, or `[x, y]`
    of a point, from 0 to 1000 over a picture's width and height."""

    text: str
    coordinates: list[list[float]]


class AnswerMessage(msgspec.Struct, frozen=True, kw_only=True):
    """What the model said. `reasoning_content` is the older name of `reasoning`, always equal.
    `content` is null where there are calls and nothing else."""

    role: str = "assistant"  # or what --response-role says
    content: str | None
    refusal: str | None = None
    reasoning: str | None = None
    reasoning_content: str | UnsetType | None = UNSET
    tool_calls: list[AnswerCall] | UnsetType = UNSET
    boxes: list[Box] | UnsetType = UNSET  # under --box-tokens structured


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """One of the n answers. `stop_reason`: the stop text or token that ended it, if one did."""

    index: int
    message: AnswerMessage
    logprobs: ChoiceLogprobs | None = None
    finish_reason: str | None
    stop_reason: int | str | None = None
    token_ids: tuple[int, ...] | UnsetType = UNSET


class ChatCompletion(msgspec.Struct, frozen=True, kw_only=True):
    """Body of an unstreamed answer."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage
    service_tier: str | None = None
    system_fingerprint: str | None = None
    prompt_logprobs: PromptLogprobs | UnsetType = UNSET
    prompt_token_ids: tuple[int, ...] | UnsetType = UNSET


class ChunkFunction(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The name, in a call's first chunk, and fragments of the arguments' JSON."""

    name: str | UnsetType = UNSET
    arguments: str


class ChunkCall(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is new in a call; `id` and `type` come in its first chunk."""

    index: int
    id: str | UnsetType = UNSET
    type: Literal["function"] | UnsetType = UNSET
    function: ChunkFunction


class ChunkBox(Box, frozen=True, kw_only=True):
    """A box that is whole now, and its number in the answer."""

    index: int


class ChunkDelta(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is new in a choice; `{}` in its last chunk."""

    role: str | UnsetType = UNSET
    content: str | UnsetType = UNSET
    reasoning: str | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[ChunkCall] | UnsetType = UNSET
    boxes: list[ChunkBox] | UnsetType = UNSET


class ChunkChoice(msgspec.Struct, frozen=True, kw_only=True):
    """The news of one choice."""

    index: int
    delta: ChunkDelta
    logprobs: ChoiceLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: int | str | UnsetType | None = UNSET
    token_ids: tuple[int, ...] | UnsetType = UNSET
    prompt_token_ids: tuple[int, ...] | UnsetType = UNSET


class ChatChunk(msgspec.Struct, frozen=True, kw_only=True):
    """One event of a streamed answer. The last before [DONE] may have usage and no choices."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Usage | UnsetType = UNSET
