"""The fields that all requests for text share, as OpenAI and vLLM name them.

Types are strict: no text for a number, no number for a boolean.
"""

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from glimt.api.formats import Choices, GrammarText, Regex, ResponseFormat, StructuredOutputs

_NOT_DONE = Meta(description="Not done by this version: anything that asks for it is refused.")
NO_EFFECT = Meta(
    description="Accepted; has no effect, which x-glimt-ignored-fields says.",
    extra={"has_effect": False},
)
_LABEL = Meta(description="Accepted; there is nothing to do for it.")
NotDone = Annotated[Any, _NOT_DONE]
NoEffect = Annotated[Any, NO_EFFECT]
Label = Annotated[Any, _LABEL]

Count = Annotated[int, Meta(ge=1, le=2**31 - 1)]
Penalty = Annotated[float, Meta(ge=-2.0, le=2.0)]
TokenId = Annotated[int, Meta(ge=0, le=2**31 - 1)]
StopText = Annotated[str, Meta(min_length=1, max_length=256)]
BadWord = Annotated[str, Meta(min_length=1, max_length=256)]


class StreamOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What a stream tells beside the text."""

    include_usage: bool = False
    continuous_usage_stats: bool = False


class Repetition(msgspec.Struct, frozen=True, kw_only=True):
    """A pattern of so many tokens that comes so often without a pause ends the answer. A largest
    pattern of 0: nothing does."""

    max_pattern_size: Annotated[int, Meta(ge=0, le=256)] = 0
    min_pattern_size: Annotated[int, Meta(ge=0, le=256)] = 0  # 0 = 1
    min_count: Annotated[int, Meta(ge=0, le=2**20)] = 0  # at least 2


class SamplingFields(msgspec.Struct, frozen=True, kw_only=True):
    """How text is drawn and ended, in the words of OpenAI's APIs and vLLM. None = the server's or
    the checkpoint's default."""

    model: Annotated[str, Meta(max_length=1024)] | None = None
    stream: bool | None = None
    # End.
    min_tokens: Annotated[int, Meta(ge=0, le=2**31 - 1)] | None = None
    stop: StopText | Annotated[list[StopText], Meta(max_length=16)] | None = None
    stop_token_ids: Annotated[list[TokenId], Meta(max_length=64)] | None = None
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    repetition_detection: Repetition | None = None
    # Sampling.
    temperature: Annotated[float, Meta(ge=0.0, le=100.0)] | None = None
    top_p: Annotated[float, Meta(gt=0.0, le=1.0)] | None = None
    top_k: Annotated[int, Meta(ge=-1, le=2**31 - 1)] | None = None
    min_p: Annotated[float, Meta(ge=0.0, le=1.0)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: Annotated[float, Meta(gt=0.0, le=100.0)] | None = None
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    logit_bias: dict[str, Annotated[float, Meta(ge=-100.0, le=100.0)]] | None = None
    allowed_token_ids: Annotated[list[TokenId], Meta(min_length=1, max_length=65536)] | None = None
    bad_words: Annotated[list[BadWord], Meta(max_length=128)] | None = None
    # The answer's form.
    skip_special_tokens: bool = True
    structured_outputs: StructuredOutputs | None = None
    # Scheduling and labels.
    priority: Annotated[int, Meta(ge=-(2**31), le=2**31 - 1)] = 0
    cache_salt: Annotated[str, Meta(min_length=1, max_length=128, pattern="^[^\\x00]*$")] | None = (
        None
    )
    request_id: Annotated[str, Meta(max_length=1024)] | None = None
    user: Annotated[str, Meta(max_length=1024)] | None = None
    metadata: Annotated[dict[str, str], Meta(max_length=16)] | None = None


class RequestFields(SamplingFields, frozen=True, kw_only=True):
    """The fields that chat and completions share beside these."""

    max_tokens: Count | None = None
    n: Annotated[int, Meta(ge=1, le=16)] | None = None
    truncate_prompt_tokens: Annotated[int, Meta(ge=-1, le=2**31 - 1)] | None = None  # -1 = fit
    # The answer's form.
    stream_options: StreamOptions | None = None
    prompt_logprobs: Annotated[int, Meta(ge=0, le=2**31 - 1)] | None = None
    return_tokens_as_token_ids: bool | None = None
    return_token_ids: bool | None = None
    # What the answer must look like: one of these, or structured_outputs.
    response_format: ResponseFormat | None = None
    guided_json: dict[str, Any] | bool | str | None = None
    guided_regex: Regex | None = None
    guided_choice: Choices | None = None
    guided_grammar: GrammarText | None = None
