"""The chat request, as OpenAI and vLLM name its fields; validated while it is decoded.

Types are strict: no text for a number, no number for a boolean. Fields of work that Glimt does
not do are known by name and refused by `check_supported`, never ignored; fields nobody knows are
reported in the answer's headers (`body.decode_body` finds them).
"""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from glimt.api.messages import Message
from glimt.errors import Unsupported

_NOT_DONE = Meta(description="Not done by this version: anything that asks for it is refused.")
_NO_EFFECT = Meta(description="Accepted; has no effect.")
NotDone = Annotated[Any, _NOT_DONE]
NoEffect = Annotated[Any, _NO_EFFECT]

Count = Annotated[int, Meta(ge=1, le=2**31 - 1)]
Penalty = Annotated[float, Meta(ge=-2.0, le=2.0)]
TokenId = Annotated[int, Meta(ge=0, le=2**31 - 1)]
StopText = Annotated[str, Meta(min_length=1, max_length=256)]
BadWord = Annotated[str, Meta(min_length=1, max_length=256)]


class StreamOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What a stream tells beside the text."""

    include_usage: bool = False
    continuous_usage_stats: bool = False


class ChatRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Body of POST /v1/chat/completions. None = the server's or the checkpoint's default."""

    messages: Annotated[list[Message], Meta(min_length=1, max_length=4096)]
    model: Annotated[str, Meta(max_length=1024)] | None = None
    # Length and end.
    max_completion_tokens: Count | None = None
    max_tokens: Count | None = None
    min_tokens: Annotated[int, Meta(ge=0, le=2**31 - 1)] | None = None
    stop: StopText | Annotated[list[StopText], Meta(max_length=16)] | None = None
    stop_token_ids: Annotated[list[TokenId], Meta(max_length=64)] | None = None
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    # Sampling.
    n: Annotated[int, Meta(ge=1, le=16)] | None = None
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
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=2**31 - 1)] | None = None
    return_tokens_as_token_ids: bool | None = None
    return_token_ids: bool | None = None
    include_reasoning: bool = True
    skip_special_tokens: bool = True
    # The prompt.
    chat_template_kwargs: dict[str, Any] | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = (
        None
    )
    add_generation_prompt: bool = True
    # Scheduling and labels.
    priority: Annotated[int, Meta(ge=-(2**31), le=2**31 - 1)] = 0
    cache_salt: Annotated[str, Meta(min_length=1, max_length=128, pattern="^[^\\0]*$")] | None = (
        None
    )
    request_id: Annotated[str, Meta(max_length=1024)] | None = None
    user: Annotated[str, Meta(max_length=1024)] | None = None
    metadata: Annotated[dict[str, str], Meta(max_length=16)] | None = None
    # Known and of no effect here.
    service_tier: NoEffect = None
    parallel_tool_calls: NoEffect = None
    prompt_cache_key: NoEffect = None
    safety_identifier: NoEffect = None
    verbosity: NoEffect = None
    # Known and not done; see `_HARMLESS`.
    tools: NotDone = None
    tool_choice: NotDone = None
    functions: NotDone = None
    function_call: NotDone = None
    response_format: NotDone = None
    structured_outputs: NotDone = None
    guided_json: NotDone = None
    guided_regex: NotDone = None
    guided_choice: NotDone = None
    guided_grammar: NotDone = None
    prompt_logprobs: NotDone = None
    echo: NotDone = None
    documents: NotDone = None
    continue_final_message: NotDone = None
    chat_template: NotDone = None
    add_special_tokens: NotDone = None
    spaces_between_special_tokens: NotDone = None
    truncate_prompt_tokens: NotDone = None
    thinking_token_budget: NotDone = None
    repetition_detection: NotDone = None
    use_beam_search: NotDone = None
    best_of: NotDone = None
    length_penalty: NotDone = None
    logprob_token_ids: NotDone = None
    logits_processors: NotDone = None
    custom_logit_processor: NotDone = None
    media_io_kwargs: NotDone = None
    mm_processor_kwargs: NotDone = None
    prompt_embeds: NotDone = None
    kv_transfer_params: NotDone = None
    ec_transfer_params: NotDone = None
    vllm_xargs: NotDone = None
    lora_path: NotDone = None
    store: NotDone = None
    modalities: NotDone = None
    audio: NotDone = None
    prediction: NotDone = None
    web_search_options: NotDone = None


KNOWN_FIELDS = frozenset(ChatRequest.__struct_fields__)

# Values, beside null, with which a field of work that is not done asks for none of it.
_HARMLESS: dict[str, tuple[Any, ...]] = {
    "tools": (),
    "tool_choice": ("none",),
    "functions": (),
    "function_call": ("none",),
    "response_format": ({"type": "text"},),
    "structured_outputs": (),
    "guided_json": (),
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
    "prompt_logprobs": (),
    "echo": (False,),
    "documents": (),
    "continue_final_message": (False,),
    "chat_template": (),
    "add_special_tokens": (False,),
    "spaces_between_special_tokens": (True,),
    "truncate_prompt_tokens": (),
    "thinking_token_budget": (),
    "repetition_detection": (),
    "use_beam_search": (False,),
    "best_of": (1,),
    "length_penalty": (1.0,),
    "logprob_token_ids": (),
    "logits_processors": (),
    "custom_logit_processor": (),
    "media_io_kwargs": ({},),
    "mm_processor_kwargs": ({},),
    "prompt_embeds": (),
    "kv_transfer_params": (),
    "ec_transfer_params": (),
    "vllm_xargs": (),
    "lora_path": (),
    "store": (False,),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "web_search_options": (),
}


def check_supported(request: ChatRequest) -> None:
    """Raise Unsupported for the first field that asks for work this version does not do."""
    for name, harmless in _HARMLESS.items():
        value = getattr(request, name)
        if value is None or any(_same(value, each) for each in harmless):
            continue
        raise Unsupported(f"{name} is not supported by this version", param=name)


def _same(value: Any, other: Any) -> bool:
    """Equal, without taking true for 1."""
    return bool(value == other) and isinstance(value, bool) == isinstance(other, bool)
