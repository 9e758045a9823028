"""SamplingParams: how the offline API's answers are drawn, and when they end."""

from typing import Any

import msgspec

from glimt.api.body import named
from glimt.api.schema import ChatRequest


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True):
    """vLLM's names. None = the checkpoint's default (generation_config.json), or off.

    `max_tokens` None lets an answer have the rest of the context (vLLM: 16 tokens). Ranges are
    those of the HTTP API; they are checked when the parameters are used.
    """

    n: int = 1
    temperature: float | None = None  # 0 = greedy
    top_p: float | None = None
    top_k: int | None = None  # 0 and -1 = off
    min_p: float | None = None
    seed: int | None = None  # None = another one for each request
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float | None = None
    max_tokens: int | None = None
    min_tokens: int = 0
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    bad_words: list[str] | None = None
    allowed_token_ids: list[int] | None = None
    logit_bias: dict[int, float] | None = None
    logprobs: int | None = None  # None = off, 0 = the chosen token's, k = and of the k most likely
    skip_special_tokens: bool = True
    thinking_token_budget: int | None = None  # under a reasoning_parser
    # One of json, regex, choice, grammar, json_object; as in the HTTP API.
    structured_outputs: dict[str, Any] | None = None


# A bare prompt has no messages; the rules of all other fields are the same.
_NO_MESSAGES = ({"role": "user", "content": ""},)


def request_of(params: SamplingParams, messages: Any = _NO_MESSAGES, **fields: Any) -> ChatRequest:
    """The chat request that says the same, checked by its rules.

    Raises InvalidRequest naming the field.
    """
    fields |= msgspec.structs.asdict(params)
    if isinstance(params.logit_bias, dict):
        fields["logit_bias"] = {str(key): bias for key, bias in params.logit_bias.items()}
    count = fields.pop("logprobs")
    if count is not None:
        fields |= {"logprobs": True, "top_logprobs": count}
    try:
        return msgspec.convert({"messages": messages, **fields}, ChatRequest)
    except msgspec.ValidationError as error:
        raise named(error) from None
