"""The request and the answers of /v1/completions, as OpenAI and vLLM name their fields."""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from glimt.api.completion import PromptLogprobs, Usage
from glimt.api.fields import NoEffect, NotDone, RequestFields, TokenId
from glimt.api.known import KnownFields
from glimt.api.schema import ChatRequest, check_harmless
from glimt.errors import InvalidRequest

MAX_PROMPTS = 128
DEFAULT_MAX_TOKENS = 16  # OpenAI's

# A list is a list of texts, of token ids (one prompt), or of lists of token ids.
_Item = str | TokenId | list[TokenId]


class CompletionRequest(RequestFields, frozen=True, kw_only=True):
    """Body of POST /v1/completions: texts or token ids to be continued, without a template."""

    prompt: str | Annotated[list[_Item], Meta(min_length=1)]
    max_tokens: Annotated[int, Meta(ge=0, le=2**31 - 1)] | None = None  # 0: only with echo
    echo: bool = False
    logprobs: Annotated[int, Meta(ge=0, le=2**31 - 1)] | None = None
    add_special_tokens: bool = True
    # Known and of no effect here.
    service_tier: NoEffect = None
    spaces_between_special_tokens: NoEffect = None  # no space is ever added
    # Known and not done; see `_HARMLESS`.
    suffix: NotDone = None
    best_of: NotDone = None
    stream_interval: NotDone = None
    truncation_side: NotDone = None
    use_beam_search: NotDone = None
    length_penalty: NotDone = None
    logits_processors: NotDone = None
    custom_logit_processor: NotDone = None
    prompt_embeds: NotDone = None
    kv_transfer_params: NotDone = None
    vllm_xargs: NotDone = None


KNOWN_FIELDS = KnownFields(CompletionRequest)

# Values, beside null, with which a field of work that is not done asks for none of it.
HARMLESS: dict[str, tuple[Any, ...]] = {
    "suffix": ("",),
    "best_of": (1,),
    "stream_interval": (1,),
    "truncation_side": ("left",),
    "use_beam_search": (False,),
    "length_penalty": (1.0,),
    "logits_processors": (),
    "custom_logit_processor": (),
    "prompt_embeds": (),
    "kv_transfer_params": (),
    "vllm_xargs": (),
}


def check_supported(request: CompletionRequest) -> None:
    """Raises Unsupported for the first field that asks for work this version does not do."""
    check_harmless(request, HARMLESS)


def prompts_of(request: CompletionRequest) -> list[str | list[int]]:
    """Each prompt by itself. Raises InvalidRequest for a mixed list or too many prompts."""
    prompt = request.prompt
    if isinstance(prompt, str):
        return [prompt]
    kinds = {type(item) for item in prompt}
    if len(kinds) > 1:
        raise InvalidRequest(
            "prompt must be a text, a list of texts, token ids, or a list of lists of token ids",
            param="prompt",
        )
    if kinds == {int}:
        return [[item for item in prompt if isinstance(item, int)]]
    if len(prompt) > MAX_PROMPTS:
        raise InvalidRequest(f"prompt has more than {MAX_PROMPTS} prompts", param="prompt")
    return [item for item in prompt if not isinstance(item, int)]


def as_chat(request: CompletionRequest) -> ChatRequest:
    """The chat request with the same wishes and no messages."""
    shared = {name: getattr(request, name) for name in RequestFields.__struct_fields__}
    max_tokens = DEFAULT_MAX_TOKENS if request.max_tokens is None else request.max_tokens
    return ChatRequest(
        messages=[],
        **{
            **shared,
            "max_tokens": max(1, max_tokens),
            "logprobs": request.logprobs is not None,
            "top_logprobs": request.logprobs,
            "prompt_logprobs": _judged(request),
        },
    )


def _judged(request: CompletionRequest) -> int | None:
    """Alternatives for each token of the prompt: as asked, or because logprobs are echoed."""
    echoed = request.logprobs if request.echo else None
    counts = [count for count in (request.prompt_logprobs, echoed) if count is not None]
    return max(counts, default=None)


class CompletionLogprobs(msgspec.Struct, frozen=True, kw_only=True):
    """Log-probabilities of a choice's tokens, list by list; -9999 stands for minus infinity.

    `text_offset` counts characters from the beginning of the choice's text. The first token of an
    echoed prompt has none.
    """

    text_offset: list[int]
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]


class CompletionChoice(msgspec.Struct, frozen=True, kw_only=True):
    """One continuation, or its next piece. `stop_reason`: the stop text or token that ended it."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    prompt_logprobs: PromptLogprobs | UnsetType = UNSET
    token_ids: tuple[int, ...] | UnsetType = UNSET
    prompt_token_ids: tuple[int, ...] | UnsetType = UNSET


class Completion(msgspec.Struct, frozen=True, kw_only=True):
    """Body of an unstreamed answer, or one event of a stream."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | UnsetType = UNSET
    system_fingerprint: str | None = None
