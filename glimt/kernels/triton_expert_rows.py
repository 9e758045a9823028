"""The FP8 experts' two products of very few tokens, each row alone, without tensor cores.

Each (token, expert) pair is its own tile, as is each token of the shared expert. Weights go from
memory to registers, as in `triton_gemv`. Letters as in `triton_experts`, which launches these.
"""

import triton
import triton.language as tl

from glimt.kernels.triton_expert_tiles import activate
from glimt.kernels.triton_gemv import four_numbers, multiplied, step_inputs, step_weights
from glimt.kernels.triton_support import row_scale, to_bf16


@triton.jit(do_not_specialize=["num_tokens", "shared_tiles"])
def gate_up_row_kernel(
    q_ptr, scale_ptr, expert_ptr, weight_ptr, weight_scale_ptr, shared_weight_ptr,
    shared_scale_ptr, inner_ptr, largest_ptr, num_tokens, shared_tiles,
    num_experts: tl.constexpr, per_token: tl.constexpr, num_inputs: tl.constexpr,
    width: tl.constexpr, shared_width: tl.constexpr, column_tiles: tl.constexpr,
    block_o: tl.constexpr, block_i: tl.constexpr, ahead: tl.constexpr,
):  # fmt: skip
    """silu(gate x) · up x of a pair, `block_o` columns of it, and their largest value."""
    tile = tl.program_id(0)
    expert, pair, token = _locate(expert_ptr, num_tokens, shared_tiles, num_experts, per_token)
    if expert < 0:
        return
    if shared_width == width and expert == num_experts:
        weight_ptr = shared_weight_ptr
        weight_scale_ptr = shared_scale_ptr
        expert = tl.zeros([], tl.int64)
    if shared_width != width and expert == num_experts:
        # A narrower shared expert's rows are narrower, too, behind the others.
        narrow_ptr = inner_ptr + num_tokens * per_token * (width - shared_width)
        _store_inner_row(
            q_ptr, scale_ptr, shared_weight_ptr, shared_scale_ptr, narrow_ptr, largest_ptr, 0,
            pair, token, tile, num_inputs, shared_width, column_tiles, block_o, block_i, ahead,
        )  # fmt: skip
    else:
        _store_inner_row(
            q_ptr, scale_ptr, weight_ptr, weight_scale_ptr, inner_ptr, largest_ptr, expert,
            pair, token, tile, num_inputs, width, column_tiles, block_o, block_i, ahead,
        )  # fmt: skip


@triton.jit(do_not_specialize=["num_tokens", "shared_tiles"])
def down_row_kernel(
    inner_ptr, largest_ptr, expert_ptr, weight_ptr, weight_scale_ptr, shared_weight_ptr,
    shared_scale_ptr, out_ptr, num_tokens, shared_tiles,
    num_experts: tl.constexpr, per_token: tl.constexpr, num_outputs: tl.constexpr,
    width: tl.constexpr, shared_width: tl.constexpr, column_tiles: tl.constexpr,
    block_c: tl.constexpr, block_o: tl.constexpr, block_i: tl.constexpr, ahead: tl.constexpr,
):  # fmt: skip
    """down h of a pair, `block_o` columns of it; h is quantised on the way."""
    tile = tl.program_id(0)
    expert, pair, _ = _locate(expert_ptr, num_tokens, shared_tiles, num_experts, per_token)
    if expert < 0:
        return
    if shared_width == width and expert == num_experts:
        weight_ptr = shared_weight_ptr
        weight_scale_ptr = shared_scale_ptr
        expert = tl.zeros([], tl.int64)
    if shared_width != width and expert == num_experts:
        narrow_ptr = inner_ptr + num_tokens * per_token * (width - shared_width)
        _store_output_row(
            narrow_ptr, largest_ptr, shared_weight_ptr, shared_scale_ptr, out_ptr, 0, pair,
            tile, num_outputs, shared_width, column_tiles, block_c, block_o, block_i, ahead,
        )  # fmt: skip
    else:
        _store_output_row(
            inner_ptr, largest_ptr, weight_ptr, weight_scale_ptr, out_ptr, expert, pair,
            tile, num_outputs, width, column_tiles, block_c, block_o, block_i, ahead,
        )  # fmt: skip


@triton.jit
def _locate(
    expert_ptr, num_tokens, shared_tiles, num_experts: tl.constexpr, per_token: tl.constexpr
):
    """(expert, pair, token) of a program: `num_experts` is the shared expert; -1 is none."""
    index = tl.program_id(1)
    if index < shared_tiles:
        expert = tl.full([], num_experts, tl.int64)
        pair = num_tokens * per_token + index
        token = index
    else:
        pair = index - shared_tiles
        expert = tl.load(expert_ptr + pair).to(tl.int64)
        expert = tl.where(expert < num_experts, expert, -1)
        token = pair // per_token
    return expert, pair, token


@triton.jit
def _store_inner_row(
    q_ptr, scale_ptr, weight_ptr, weight_scale_ptr, inner_ptr, largest_ptr, expert, pair, token,
    tile, num_inputs: tl.constexpr, width: tl.constexpr, column_tiles: tl.constexpr,
    block_o: tl.constexpr, block_i: tl.constexpr, ahead: tl.constexpr,
):  # fmt: skip
    """Columns and their largest value; that of none, of a tile behind the width, is 0."""
    largest_at = largest_ptr + pair * column_tiles + tile
    if tile * block_o >= width:
        tl.store(largest_at, 0.0)
    else:
        row = tl.arange(0, 2 * block_o)  # gates, then the ups beside them
        place = tile * block_o + row % block_o
        output = place + (row // block_o) * width
        is_output = place < width
        weight_scales = weight_scale_ptr + expert * (2 * width)
        weight_scale = tl.load(weight_scales + output, mask=is_output, other=0.0)
        x_ptr = q_ptr + token.to(tl.int64) * num_inputs
        y, scale = _row_product(
            weight_ptr, x_ptr, scale_ptr + token, None, expert, output, is_output, 2 * width,
            width, num_inputs, 1, 1, block_o, 2 * block_o, block_i, ahead,
        )  # fmt: skip
        inner = activate((y * scale * weight_scale)[:, None])
        column = (tile * block_o + tl.arange(0, block_o))[:, None]
        tl.store(inner_ptr + pair.to(tl.int64) * width + column, inner, mask=column < width)
        tl.store(largest_at, tl.max(tl.max(tl.abs(inner.to(tl.float32)), axis=1), axis=0))


@triton.jit
def _store_output_row(
    inner_ptr, largest_ptr, weight_ptr, weight_scale_ptr, out_ptr, expert, pair, tile,
    num_outputs: tl.constexpr, width: tl.constexpr, column_tiles: tl.constexpr,
    block_c: tl.constexpr, block_o: tl.constexpr, block_i: tl.constexpr, ahead: tl.constexpr,
):  # fmt: skip
    output = tile * block_o + tl.arange(0, block_o)
    is_output = output < num_outputs
    weight_scales = weight_scale_ptr + expert * num_outputs
    weight_scale = tl.load(weight_scales + output, mask=is_output, other=0.0)
    y, scale = _row_product(
        weight_ptr, inner_ptr + pair.to(tl.int64) * width, None,
        largest_ptr + pair * column_tiles, expert, output, is_output, num_outputs, num_outputs,
        width, column_tiles, block_c, block_o, block_o, block_i, ahead,
    )  # fmt: skip
    out_at = out_ptr + pair.to(tl.int64) * num_outputs + output
    tl.store(out_at, to_bf16(y * scale * weight_scale), mask=is_output)


@triton.jit
def _row_product(
    weight_ptr, x_ptr, scale_ptr, largest_ptr, expert, output, is_output,
    num_rows: tl.constexpr, masked_rows: tl.constexpr, num_inputs: tl.constexpr,
    column_tiles: tl.constexpr, block_c: tl.constexpr, block_m: tl.constexpr,
    rows: tl.constexpr, block_i: tl.constexpr, ahead: tl.constexpr,
):  # fmt: skip
    """(unscaled products [rows] of an expert's `output`s, of whom it has `num_rows`; x's scale).

    With `largest_ptr` x is bfloat16 and its scale that of the largest of its tiles. There is
    something to mask unless `masked_rows` are a multiple of `block_m`.
    """
    num_words: tl.constexpr = num_inputs // 4
    block_w: tl.constexpr = block_i // 4
    steps: tl.constexpr = (num_words + block_w - 1) // block_w
    wide: tl.constexpr = largest_ptr is not None
    word = tl.arange(0, block_w)
    words_ptr = weight_ptr.to(tl.pointer_type(tl.int32), bitcast=True)
    words_ptr += expert * (num_rows * num_words)
    w_at = words_ptr + output.to(tl.int64)[:, None] * num_words + word[None, :]
    w = step_weights(w_at, is_output, word, 0, masked_rows, num_words, block_m, block_w, 1)
    w_1 = w
    if ahead == 2:
        w_1 = step_weights(w_at, is_output, word, 1, masked_rows, num_words, block_m, block_w, 1)
    x = step_inputs(x_ptr, word, 0, num_words, block_w, 1, wide)
    if largest_ptr is None:
        scale = tl.load(scale_ptr)
        inverse = None
    else:
        part = tl.arange(0, block_c)
        largest = tl.load(largest_ptr + part, mask=part < column_tiles, other=0.0)
        scale = row_scale(tl.max(largest, axis=0))
        inverse = tl.div_rn(1.0, scale)
    total = tl.zeros([rows, block_w], tl.float32)
    for step in range(steps):
        later = step_weights(
            w_at, is_output, word, step + ahead, masked_rows, num_words, block_m, block_w, 1
        )
        next_x = step_inputs(x_ptr, word, step + 1, num_words, block_w, 1, wide)
        x_0, x_1, x_2, x_3 = four_numbers(x, inverse)
        total = multiplied(w, x_0, x_1, x_2, x_3, total)
        x = next_x
        if ahead == 2:
            w = w_1
            w_1 = later
        else:
            w = later
    return tl.sum(total, axis=1), scale
