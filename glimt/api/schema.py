"""The chat request, as OpenAI and vLLM name its fields; validated while it is decoded.

Fields of work that Glimt does not do are known by name and refused by `check_supported`, never
ignored; fields nobody knows are reported in the answer's headers (`body.decode_body` finds them).
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from msgspec import Meta

from glimt.api.fields import Count, Label, NoEffect, NotDone, RequestFields
from glimt.api.known import KnownFields
from glimt.api.media_wishes import MediaIoKwargs, ProcessorKwargs
from glimt.api.messages import Message
from glimt.api.tools import MAX_TOOLS, Tool, ToolChoice
from glimt.errors import Unsupported


class ChatRequest(RequestFields, frozen=True, kw_only=True):
    """Body of POST /v1/chat/completions. None = the server's or the checkpoint's default."""

    messages: Annotated[list[Message], Meta(min_length=1, max_length=4096)]
    max_completion_tokens: Count | None = None
    # The answer's form.
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=2**31 - 1)] | None = None
    include_reasoning: bool = True
    # The prompt.
    chat_template_kwargs: dict[str, Any] | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = (
        None
    )
    enable_thinking: bool | None = None
    thinking_token_budget: Annotated[int, Meta(ge=0, le=2**31 - 1)] | None = None
    add_generation_prompt: bool | None = None  # on, unless the last message is continued
    continue_final_message: bool = False
    echo: bool = False
    chat_template: Annotated[str, Meta(max_length=2**17)] | None = None
    mm_processor_kwargs: ProcessorKwargs | None = None
    media_io_kwargs: MediaIoKwargs | None = None
    # Tools.
    tools: Annotated[list[Tool], Meta(min_length=1, max_length=MAX_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    # Known and of no effect here.
    service_tier: NoEffect = None
    prompt_cache_key: Label = None  # prefixes are found by their tokens
    safety_identifier: Label = None
    verbosity: NoEffect = None
    spaces_between_special_tokens: NoEffect = None  # no space is ever added
    session_id: Label = None
    # Known and not done; see `_HARMLESS`.
    functions: NotDone = None
    function_call: NotDone = None
    documents: NotDone = None
    add_special_tokens: NotDone = None
    use_beam_search: NotDone = None
    best_of: NotDone = None
    length_penalty: NotDone = None
    logprob_token_ids: NotDone = None
    logits_processors: NotDone = None
    custom_logit_processor: NotDone = None
    prompt_embeds: NotDone = None
    kv_transfer_params: NotDone = None
    ec_transfer_params: NotDone = None
    vllm_xargs: NotDone = None
    stream_interval: NotDone = None
    truncation_side: NotDone = None
    return_prompt_text: NotDone = None
    return_token_offsets: NotDone = None
    return_weight_versions: NotDone = None
    watermarking: NotDone = None
    mm_payload: NotDone = None
    lora_path: NotDone = None
    store: NotDone = None
    modalities: NotDone = None
    audio: NotDone = None
    prediction: NotDone = None
    web_search_options: NotDone = None


KNOWN_FIELDS = KnownFields(ChatRequest)

# Values, beside null, with which a field of work that is not done asks for none of it.
_HARMLESS: dict[str, tuple[Any, ...]] = {
    "functions": (),
    "function_call": ("none",),
    "documents": (),
    "add_special_tokens": (False,),
    "use_beam_search": (False,),
    "best_of": (1,),
    "length_penalty": (1.0,),
    "logprob_token_ids": (),
    "logits_processors": (),
    "custom_logit_processor": (),
    "prompt_embeds": (),
    "kv_transfer_params": (),
    "ec_transfer_params": (),
    "vllm_xargs": (),
    "stream_interval": (1,),
    "truncation_side": ("left",),
    "return_prompt_text": (False,),
    "return_token_offsets": (False,),
    "return_weight_versions": (False,),
    "watermarking": (),
    "mm_payload": (),
    "lora_path": (),
    "store": (False,),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "web_search_options": (),
}

# What replaced a field of older clients.
_INSTEAD = {"functions": "tools", "function_call": "tool_choice"}


def check_supported(request: ChatRequest) -> None:
    """Raise Unsupported for the first field that asks for work this version does not do."""
    check_harmless(request, _HARMLESS)


def check_harmless(request: RequestFields, harmless: Mapping[str, tuple[Any, ...]]) -> None:
    """Raise Unsupported for the first of these fields that has none of its harmless values."""
    for name, values in harmless.items():
        value = getattr(request, name)
        if value is None or any(_same(value, each) for each in values):
            continue
        advice = f": send {_INSTEAD[name]} instead" if name in _INSTEAD else ""
        raise Unsupported(f"{name} is not supported by this version{advice}", param=name)


def _same(value: Any, other: Any) -> bool:
    """Equal, without taking true for 1."""
    return bool(value == other) and isinstance(value, bool) == isinstance(other, bool)
