"""Messages of rows in Triton: a row's parts are put together, or taken apart, in one launch.

Twins of `reference_messages.py`. All parts are multiples of four bytes, so a row is int32 words.
Letters: T tokens, N rows of the message, B bytes, K experts of a token.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from glimt.kernels.reference_messages import RowForm
from glimt.kernels.triton_support import launch, power_of_two

MAX_WORDS = 1 << 14  # of a row's numbers: what one program holds


@triton.jit(do_not_specialize=["num_tokens"])
def pack_kernel(
    value_ptr,
    scale_ptr,
    weight_ptr,
    place_ptr,
    out_ptr,
    num_tokens,
    value_words: tl.constexpr,
    per_token: tl.constexpr,
    row_words: tl.constexpr,
    has_scale: tl.constexpr,
    block: tl.constexpr,
    block_k: tl.constexpr,
):
    """One row of a message; behind the last token, zeros."""
    row = tl.program_id(0).to(tl.int64)
    is_token = row < num_tokens
    out = out_ptr + row * row_words
    column = tl.arange(0, block)
    inside = column < value_words
    value = tl.load(value_ptr + row * value_words + column, mask=inside & is_token, other=0)
    tl.store(out + column, value, mask=inside)
    out += value_words
    if has_scale:
        tl.store(out, tl.load(scale_ptr + row, mask=is_token, other=0))
        out += 1
    k = tl.arange(0, block_k)
    wanted = k < per_token
    at = row * per_token + k
    weight = tl.load(weight_ptr + at, mask=wanted & is_token, other=0)
    place = tl.load(place_ptr + at, mask=wanted & is_token, other=-1)
    tl.store(out + k, weight, mask=wanted)
    tl.store(out + per_token + k, (place + 1).to(tl.int32), mask=wanted)
    rest: tl.constexpr = row_words - value_words - has_scale - 2 * per_token
    if rest > 0:
        last = tl.arange(0, 4)
        tl.store(out + 2 * per_token + last, tl.zeros([4], tl.int32), mask=last < rest)


@triton.jit
def unpack_kernel(
    message_ptr,
    value_ptr,
    scale_ptr,
    weight_ptr,
    place_ptr,
    value_words: tl.constexpr,
    per_token: tl.constexpr,
    row_words: tl.constexpr,
    has_scale: tl.constexpr,
    block: tl.constexpr,
    block_k: tl.constexpr,
):
    """The parts of one row of a message."""
    row = tl.program_id(0).to(tl.int64)
    message = message_ptr + row * row_words
    column = tl.arange(0, block)
    inside = column < value_words
    value = tl.load(message + column, mask=inside)
    tl.store(value_ptr + row * value_words + column, value, mask=inside)
    message += value_words
    if has_scale:
        tl.store(scale_ptr + row, tl.load(message))
        message += 1
    k = tl.arange(0, block_k)
    wanted = k < per_token
    at = row * per_token + k
    tl.store(weight_ptr + at, tl.load(message + k, mask=wanted), mask=wanted)
    place = tl.load(message + per_token + k, mask=wanted)
    tl.store(place_ptr + at, place.to(tl.int64) - 1, mask=wanted)


def pack_rows(
    values_TD: Tensor,
    scale_T1: Tensor | None,
    weights_TK: Tensor,
    places_TK: Tensor,
    num_rows: int,
) -> Tensor:
    """See `reference_messages.pack_rows`."""
    form = RowForm(values_TD.shape[1], values_TD.dtype, weights_TK.shape[1])
    message_NB = values_TD.new_empty(num_rows, form.num_bytes, dtype=torch.uint8)
    if num_rows:
        weights = weights_TK.view(torch.int32)
        launch(
            pack_kernel,
            (num_rows, 1, 1),
            values_TD.view(torch.int32),
            weights if scale_T1 is None else scale_T1.view(torch.int32),
            weights,
            places_TK,
            message_NB.view(torch.int32),
            len(weights_TK),
            *_constants(form),
            warps=4,
        )
    return message_NB


def unpack_rows(message_NB: Tensor, form: RowForm) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """See `reference_messages.unpack_rows`."""
    num_rows = len(message_NB)
    values = message_NB.new_empty(num_rows, form.width, dtype=form.dtype)
    weights = message_NB.new_empty(num_rows, form.per_token, dtype=torch.float32)
    places = message_NB.new_empty(num_rows, form.per_token, dtype=torch.int64)
    scale = message_NB.new_empty(num_rows, 1, dtype=torch.float32) if form.has_scale else None
    if num_rows:
        words = weights.view(torch.int32)
        launch(
            unpack_kernel,
            (num_rows, 1, 1),
            message_NB.view(torch.int32),
            values.view(torch.int32),
            words if scale is None else scale.view(torch.int32),
            words,
            places,
            *_constants(form),
            warps=4,
        )
    return values, scale, weights, places


def _constants(form: RowForm) -> tuple[int, int, int, int, int, int]:
    value_words = form.value_bytes // 4
    return (
        value_words,
        form.per_token,
        form.num_bytes // 4,
        int(form.has_scale),
        power_of_two(value_words),
        power_of_two(form.per_token),
    )
