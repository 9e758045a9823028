"""Request fields and the checkpoint's defaults -> SamplingParams; what is out of range is a 400.

Where other servers clamp or reset in silence, nothing is changed here: a value is taken as it is
or refused. The defaults are those of generation_config.json, so that a checkpoint answers as its
makers meant it to.
"""

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from glimt.api.fields import RequestFields
from glimt.api.schema import ChatRequest
from glimt.errors import BadSettings, InvalidRequest, PromptTooLong, Unsupported
from glimt.frontend.repetition import RepetitionRule
from glimt.wire import EngineInfo, SamplingParams

GREEDY_BELOW = 1e-5  # temperatures below this are greedy
_MAX_LOGIT_BIAS = 300
_THINKING_SWITCHES = ("enable_thinking", "thinking")


class SamplingDefaults(msgspec.Struct, frozen=True, kw_only=True):
    """Defaults of one model. Made from generation_config.json and its overrides."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    max_new_tokens: int | None = None  # caps answers whose length the request leaves open
    eos_token_ids: tuple[int, ...] = ()  # the first is the plain end, the others end turns

    @classmethod
    def from_generation_config(cls, config: Mapping[str, Any]) -> "SamplingDefaults":
        """From the file's keys, other keys ignored. Raises BadSettings for wrong types."""
        known = {
            name: config[name] for name in cls.__struct_fields__ if config.get(name) is not None
        }
        eos = config.get("eos_token_id")
        if eos is not None:
            known["eos_token_ids"] = eos if isinstance(eos, list | tuple) else (eos,)
        try:
            return msgspec.convert(known, cls)
        except msgspec.ValidationError as error:
            raise BadSettings("the generation config cannot be used:", [str(error)]) from None


def sampling_params(
    request: ChatRequest,
    defaults: SamplingDefaults,
    info: EngineInfo,
    *,
    fresh_seed: Callable[[], int],
    encode: Callable[[str], list[int]],
) -> SamplingParams:
    """All but the length, which `with_length` fits to the prompt once that is known.

    `encode` gives a text's token ids without special tokens. Raises InvalidRequest naming the
    field.
    """
    temperature = _or(request.temperature, defaults.temperature)
    is_greedy = temperature < GREEDY_BELOW
    if is_greedy and (request.n or 1) > 1:
        raise InvalidRequest("n must be 1 with temperature 0: all would be the same", param="n")
    max_tokens = _asked_length(request)
    if (request.min_tokens or 0) > (max_tokens or info.max_model_len):
        raise InvalidRequest("min_tokens is more than max_tokens allows", param="min_tokens")
    return SamplingParams(
        max_tokens=max_tokens or info.max_model_len,
        min_tokens=request.min_tokens or 0,
        temperature=0.0 if is_greedy else temperature,
        top_k=max(0, _or(request.top_k, defaults.top_k)),
        top_p=_or(request.top_p, defaults.top_p),
        min_p=_or(request.min_p, defaults.min_p),
        presence_penalty=request.presence_penalty or 0.0,
        frequency_penalty=request.frequency_penalty or 0.0,
        repetition_penalty=_or(request.repetition_penalty, defaults.repetition_penalty),
        seed=fresh_seed() if request.seed in (None, -1) else request.seed or 0,
        eos_token_ids=() if request.ignore_eos else defaults.eos_token_ids,
        stop_token_ids=_ids(request.stop_token_ids, "stop_token_ids", info),
        bad_words=_bad_words(request.bad_words or [], encode),
        allowed_token_ids=_ids(request.allowed_token_ids, "allowed_token_ids", info) or None,
        logit_bias=_logit_bias(request.logit_bias or {}, info),
        logprobs=_logprobs(request, info),
        prompt_logprobs=_prompt_logprobs(request, info),
    )


def repetition_rule(request: RequestFields) -> RepetitionRule | None:
    """When the answer counts as a loop. Raises InvalidRequest."""
    wish, path = request.repetition_detection, "repetition_detection"
    if wish is None or wish.max_pattern_size == 0:
        return None
    if wish.min_count < 2:
        raise InvalidRequest(f"{path}.min_count must be at least 2", param=f"{path}.min_count")
    if wish.min_pattern_size > wish.max_pattern_size:
        raise InvalidRequest(
            f"{path}.min_pattern_size is more than max_pattern_size",
            param=f"{path}.min_pattern_size",
        )
    return RepetitionRule(max(1, wish.min_pattern_size), wish.max_pattern_size, wish.min_count)


def adds_generation_prompt(request: ChatRequest) -> bool:
    """Whether the prompt ends with the beginning of a new turn. Raises InvalidRequest."""
    continues, adds = request.continue_final_message, request.add_generation_prompt
    if continues and adds:
        raise InvalidRequest(
            "continue_final_message and add_generation_prompt exclude each other",
            param="continue_final_message",
        )
    if continues and request.messages[-1].role != "assistant":
        raise InvalidRequest(
            "continue_final_message needs a last message of the assistant",
            param="continue_final_message",
        )
    return not continues if adds is None else adds


def truncation(request: ChatRequest, info: EngineInfo) -> int | None:
    """How many tokens of the prompt are kept; None = all. Raises InvalidRequest."""
    wish = request.truncate_prompt_tokens
    if wish is None:
        return None
    if wish == -1:
        return max(1, info.max_model_len - (_asked_length(request) or 1))
    if not 1 <= wish < info.max_model_len:
        raise InvalidRequest(
            f"truncate_prompt_tokens must be -1, or 1 to {info.max_model_len - 1}",
            param="truncate_prompt_tokens",
        )
    return wish


def with_length(
    sampling: SamplingParams,
    request: ChatRequest,
    defaults: SamplingDefaults,
    *,
    num_prompt_tokens: int,
    max_model_len: int,
    prompt_field: str = "messages",
    fits: bool = False,
) -> SamplingParams:
    """Set max_tokens: as asked, or the rest of the context where the request leaves it open.

    Raises PromptTooLong with the numbers if prompt, or prompt and answer, exceed the context;
    images count like text. An answer that was asked for is only shortened where `fits` says so.
    """
    left = max_model_len - num_prompt_tokens
    if left < 1:
        raise PromptTooLong(
            f"the prompt has {num_prompt_tokens} tokens; this model takes {max_model_len} for "
            "prompt and answer together",
            param=prompt_field,
        )
    asked = _asked_length(request)
    if asked is not None and fits:
        asked = min(asked, left)
    if asked is not None and asked > left:
        raise PromptTooLong(
            f"the prompt has {num_prompt_tokens} tokens and the answer may have {asked}, together "
            f"{num_prompt_tokens + asked}; this model takes {max_model_len}",
            param="max_completion_tokens" if request.max_completion_tokens else "max_tokens",
        )
    if asked is None:
        asked = left if defaults.max_new_tokens is None else min(left, defaults.max_new_tokens)
    if sampling.min_tokens > asked:
        raise InvalidRequest(
            f"min_tokens is {sampling.min_tokens}, but the answer has room for {asked}",
            param="min_tokens",
        )
    return msgspec.structs.replace(sampling, max_tokens=asked)


def check_budget(request: ChatRequest, *, parses: bool) -> None:
    """Raises Unsupported for a thinking budget where thoughts are not told apart."""
    if request.thinking_token_budget is not None and not parses:
        raise Unsupported(
            "thinking_token_budget needs --reasoning-parser (glm45)", param="thinking_token_budget"
        )


def template_kwargs(operators: Mapping[str, Any], request: ChatRequest) -> dict[str, Any]:
    """The template's arguments: the operator's, over them the request's, over them the fields that
    have a name of their own.

    Raises InvalidRequest for fields that contradict each other.
    """
    own = dict(request.chat_template_kwargs or {})
    if request.reasoning_effort is not None:
        own["reasoning_effort"] = request.reasoning_effort
    switch = request.enable_thinking
    if switch is not None:
        if own.get("enable_thinking", switch) is not switch:
            raise InvalidRequest(
                "enable_thinking and chat_template_kwargs.enable_thinking differ; send one of them",
                param="enable_thinking",
            )
        own["enable_thinking"] = switch
    # A wish of the request replaces the operator's under whatever name that came.
    if not own.keys().isdisjoint(("enable_thinking", "thinking", "reasoning_effort")):
        operators = {k: v for k, v in operators.items() if k not in _THINKING_SWITCHES}
    if request.chat_template is not None:  # the operator's were meant for another template
        operators = {k: v for k, v in operators.items() if k in _THINKING_SWITCHES}
    return {**operators, **own}


def unread_wishes(request: ChatRequest, variables: frozenset[str]) -> list[str]:
    """The request's fields for a template that reads `variables` and so passes them over."""
    kwargs = request.chat_template_kwargs or {}
    wishes = {f"chat_template_kwargs.{name}": (name, value) for name, value in kwargs.items()}
    for name in ("reasoning_effort", "enable_thinking"):
        if (value := getattr(request, name)) is not None:
            wishes[name] = (name, value)
    unread = []
    for path, (name, value) in wishes.items():
        is_switch = name == "thinking" or (name == "reasoning_effort" and value == "none")
        if variables.isdisjoint((name, "enable_thinking") if is_switch else (name,)):
            unread.append(path)
    return unread


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value


def _asked_length(request: ChatRequest) -> int | None:
    new, old = request.max_completion_tokens, request.max_tokens
    if new is not None and old is not None and new != old:
        raise InvalidRequest(
            "max_tokens and max_completion_tokens differ; send one of them", param="max_tokens"
        )
    return new if new is not None else old


def _ids(ids: list[int] | None, name: str, info: EngineInfo) -> tuple[int, ...]:
    for index, token_id in enumerate(ids or ()):
        if token_id >= info.vocab_size:
            raise InvalidRequest(
                f"{name}[{index}] is {token_id}, but ids end at {info.vocab_size - 1}",
                param=f"{name}[{index}]",
            )
    return tuple(ids or ())


def _logit_bias(bias: dict[str, float], info: EngineInfo) -> dict[int, float]:
    if len(bias) > _MAX_LOGIT_BIAS:
        raise InvalidRequest(
            f"logit_bias has more than {_MAX_LOGIT_BIAS} entries", param="logit_bias"
        )
    by_id: dict[int, float] = {}
    for key, value in bias.items():
        # Eight digits hold every vocabulary; longer keys are not even turned into numbers.
        is_number = key.isascii() and key.isdigit() and len(key) <= 8
        if not is_number or int(key) >= info.vocab_size:
            raise InvalidRequest(
                f"a key of logit_bias is not a token id from 0 to {info.vocab_size - 1}",
                param="logit_bias",
            )
        by_id[int(key)] = value
    return by_id


def _logprobs(request: ChatRequest, info: EngineInfo) -> int | None:
    if not request.logprobs:
        if request.top_logprobs:
            raise InvalidRequest("top_logprobs needs logprobs to be true", param="top_logprobs")
        return None
    count = request.top_logprobs or 0
    if count > info.max_logprobs:
        raise InvalidRequest(
            f"top_logprobs is {count}, the most allowed is {info.max_logprobs}",
            param="top_logprobs",
        )
    return count


def _prompt_logprobs(request: ChatRequest, info: EngineInfo) -> int | None:
    count = request.prompt_logprobs
    if count is not None and count > info.max_logprobs:
        raise InvalidRequest(
            f"prompt_logprobs is {count}, the most allowed is {info.max_logprobs}",
            param="prompt_logprobs",
        )
    return count


def _bad_words(words: list[str], encode: Callable[[str], list[int]]) -> tuple[tuple[int, ...], ...]:
    """Each word as it stands at the beginning of a text and, differently tokenised, inside."""
    sequences = dict.fromkeys(
        tuple(encode(form)) for word in words for form in (word, f" {word.lstrip(' ')}")
    )
    return tuple(sequence for sequence in sequences if sequence)
