"""What the offline API answers with."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from glimt.frontend.answer import Delta, UsageCounts, fold_deltas
from glimt.frontend.tokenizer import Tokenizer
from glimt.wire import TokenLogprobs


@dataclass(frozen=True, slots=True)
class Logprob:
    """Log-probability of one token, before temperature and penalties. `rank` 1 = most likely."""

    logprob: float
    rank: int
    decoded_token: str


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a function. `arguments` is a JSON object as text, cut if the answer was."""

    id: str
    name: str
    arguments: str

    def as_message(self) -> dict[str, Any]:
        """For the `tool_calls` of the assistant's message in the conversation that goes on."""
        function = {"name": self.name, "arguments": self.arguments}
        return {"id": self.id, "type": "function", "function": function}


@dataclass(frozen=True, slots=True)
class CompletionOutput:
    """One of a request's n answers.

    `token_ids` are all that were drawn, the token that ended the answer included. `logprobs`
    holds one mapping from token id for each of them, the chosen token first.
    """

    index: int
    text: str
    reasoning: str | None  # the thoughts, under reasoning_parser
    tool_calls: list[ToolCall]  # of the tools given; `text` has what stands around them
    boxes: list[str]  # what stood between box marks, under box_tokens="structured"
    token_ids: list[int]
    finish_reason: str  # stop · length · tool_calls
    stop_reason: int | str | None  # the stop string or token that matched; not a plain eos
    logprobs: list[dict[int, Logprob]] | None
    cumulative_logprob: float | None  # sum over the drawn tokens


@dataclass(frozen=True, slots=True)
class RequestOutput:
    """The answers to one prompt. `usage` counts tokens, images included."""

    prompt: str | None  # as given to `generate`; None for conversations and token ids
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    usage: UsageCounts

    @property
    def num_cached_tokens(self) -> int:
        """Prompt tokens found in the prefix cache."""
        return self.usage.cached_tokens


def completion_of(
    index: int, deltas: Sequence[Delta], tokenizer: Tokenizer, *, with_logprobs: bool
) -> CompletionOutput:
    """Fold all deltas of one choice; the last has its finish_reason."""
    reply = fold_deltas(deltas)
    drawn = [each for delta in deltas for each in delta.logprobs]
    return CompletionOutput(
        index=index,
        text=reply.content,
        reasoning=reply.reasoning or None,
        tool_calls=[ToolCall(call.id, call.name, call.arguments) for call in reply.calls],
        boxes=list(reply.boxes),
        token_ids=[token_id for delta in deltas for token_id in delta.token_ids],
        finish_reason=deltas[-1].finish_reason or "",
        stop_reason=deltas[-1].stop_reason,
        logprobs=[_by_token(each, tokenizer) for each in drawn] if with_logprobs else None,
        cumulative_logprob=sum(each.logprob for each in drawn) if with_logprobs else None,
    )


def _by_token(drawn: TokenLogprobs, tokenizer: Tokenizer) -> dict[int, Logprob]:
    chosen = Logprob(drawn.logprob, drawn.rank, tokenizer.token_text(drawn.token_id))
    likeliest = {
        token_id: Logprob(logprob, rank, tokenizer.token_text(token_id))
        for rank, (token_id, logprob) in enumerate(drawn.top, start=1)
    }
    return {drawn.token_id: chosen} | likeliest | {drawn.token_id: chosen}
