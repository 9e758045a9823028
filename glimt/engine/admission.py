"""What the engine accepts: a Submit is checked once, whole, before it becomes a Request.

The client tower has validated the user's wishes already. This is the engine's own guard: ids out
of range or overlapping spans would be out-of-bounds accesses on the device, which end more than
one request.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from glimt.engine.limits import SchedulerLimits
from glimt.engine.plan import IntArray
from glimt.errors import InvalidRequest, PromptTooLong
from glimt.wire import Grammar, ImageSpan, SamplingParams, Submit

_INT32 = np.dtype("<i4")
_MAX_INT32 = 2**31 - 1
_MAX_INT64 = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Prompt:
    """The arrays of a Submit: `token_ids` [L], `positions` [3, L] or None for plain text."""

    token_ids: IntArray
    positions: IntArray | None


def read_prompt(submit: Submit, limits: SchedulerLimits) -> Prompt:
    """Check a Submit against the engine's limits and give its arrays (views, not copies).

    Raises InvalidRequest, or PromptTooLong if no token could be generated.
    """
    if len(submit.token_ids) == 0 or len(submit.token_ids) % 4:
        raise InvalidRequest("token_ids is not a non-empty array of int32", param="token_ids")
    num_tokens = len(submit.token_ids) // 4
    if num_tokens >= limits.max_model_len:
        raise PromptTooLong(
            f"The prompt has {num_tokens} tokens; with at least one token of output it must fit "
            f"the context of {limits.max_model_len} tokens."
        )
    token_ids = np.frombuffer(submit.token_ids, dtype=_INT32)
    if int(token_ids.min()) < 0 or int(token_ids.max()) >= limits.vocab_size:
        raise InvalidRequest("A token id is outside the vocabulary.", param="token_ids")
    positions = _read_positions(submit, num_tokens)
    _check_images(submit.images, num_tokens, limits)
    _check_sampling(submit.sampling, limits)
    return Prompt(token_ids, positions)


def _read_positions(submit: Submit, num_tokens: int) -> IntArray | None:
    # The last position of the longest output must fit, and the first must not be negative.
    if not -num_tokens <= submit.rope_delta <= _MAX_INT32 // 2:
        raise InvalidRequest("rope_delta is out of range", param="rope_delta")
    if submit.positions is None:
        return None
    if len(submit.positions) != 3 * 4 * num_tokens:
        raise InvalidRequest("positions is not an int32 array [3, L]", param="positions")
    positions = np.frombuffer(submit.positions, dtype=_INT32).reshape(3, num_tokens)
    if int(positions.min()) < 0 or int(positions.max()) > _MAX_INT32 // 2:
        raise InvalidRequest("A position is out of range.", param="positions")
    return positions


def _check_images(images: tuple[ImageSpan, ...], num_tokens: int, limits: SchedulerLimits) -> None:
    previous_end = 0
    sizes: dict[bytes, int] = {}
    for place, span in enumerate(images):
        param = f"images[{place}]"
        if len(span.content_hash) != 32:
            raise InvalidRequest("An image's content hash must have 32 bytes.", param=param)
        if span.num_tokens < 1 or span.grid_h < 1 or span.grid_w < 1 or span.num_frames < 1:
            raise InvalidRequest("An image span is empty.", param=param)
        if span.start < previous_end or span.start + span.num_tokens > num_tokens:
            raise InvalidRequest(
                "Image spans must lie in the prompt, in order, without overlapping.", param=param
            )
        if span.num_tokens > limits.max_image_tokens:
            raise InvalidRequest(
                f"An image of {span.num_tokens} tokens exceeds the engine's limit of "
                f"{limits.max_image_tokens} tokens for one image.",
                param=param,
            )
        if sizes.setdefault(span.content_hash, span.num_tokens) != span.num_tokens:
            raise InvalidRequest("Equal images have different sizes.", param=param)
        previous_end = span.start + span.num_tokens


def _check_sampling(sampling: SamplingParams, limits: SchedulerLimits) -> None:
    if sampling.max_tokens < 1:
        raise InvalidRequest("max_tokens must be at least 1", param="max_tokens")
    if sampling.min_tokens < 0:
        raise InvalidRequest("min_tokens cannot be negative", param="min_tokens")
    if not -_MAX_INT64 - 1 <= sampling.seed <= _MAX_INT64:
        raise InvalidRequest("seed must be a signed 64-bit integer", param="seed")
    if sampling.logprobs is not None and not 0 <= sampling.logprobs <= limits.vocab_size:
        raise InvalidRequest("logprobs is out of range", param="logprobs")
    if sampling.prompt_logprobs is not None and not (
        0 <= sampling.prompt_logprobs <= limits.vocab_size
    ):
        raise InvalidRequest("prompt_logprobs is out of range", param="prompt_logprobs")
    if sampling.allowed_token_ids is not None and not sampling.allowed_token_ids:
        raise InvalidRequest("allowed_token_ids allows nothing", param="allowed_token_ids")
    thinking = sampling.thinking
    if thinking is not None and (
        thinking.max_tokens < 0 or thinking.closing[-1:] != (thinking.thoughts.end,)
    ):
        raise InvalidRequest("the thinking budget is out of range", param="thinking")
    if (grammar := sampling.grammar) is not None:
        needs_thoughts = grammar.channel in ("undecided", "reasoning")
        is_known = needs_thoughts or grammar.channel == "content"
        if not is_known or needs_thoughts != (grammar.thoughts is not None):
            raise InvalidRequest("the grammar's channel and thoughts differ", param="grammar")
    named: dict[str, Iterable[int]] = {
        "eos_token_ids": sampling.eos_token_ids,
        "stop_token_ids": sampling.stop_token_ids,
        "bad_words": (token for word in sampling.bad_words for token in word),
        "allowed_token_ids": sampling.allowed_token_ids or (),
        "logit_bias": sampling.logit_bias,
        "thinking": () if sampling.thinking is None else sampling.thinking.closing,
        "grammar": () if grammar is None else _ids_of(grammar),
    }
    for name, token_ids in named.items():
        if any(not 0 <= token_id < limits.vocab_size for token_id in token_ids):
            raise InvalidRequest(f"A token id in {name} is outside the vocabulary.", param=name)


def _ids_of(grammar: Grammar) -> tuple[int, ...]:
    thoughts = grammar.thoughts
    if thoughts is None:
        return grammar.instead
    marks = (thoughts.begin, thoughts.end)
    return (*grammar.instead, *marks, *thoughts.leave, *thoughts.line_breaks)
