"""`fp8_linear` of a single row, without tensor cores.

Weights go from memory to registers, 16 bytes a load, the next steps' while this one's are
multiplied: no barrier waits for them, and what must be known of the row first (its scale, if it is
only measured) is found while the first weights are on their way. Products of e4m3 numbers are exact
in float32, and sums are float32's. Four numbers lie in a word, W words in a row.

Letters as in `triton_linear`, which launches this.
"""

import triton
import triton.language as tl

from glimt.kernels.triton_support import INTERPRETED, row_scale, to_bf16, to_fp8

# total + the four products of a word of weights, in PTX: to two halves each, then to float32.
_MULTIPLY = tl.constexpr("""{
.reg .b16 e<2>, h<4>;
.reg .b32 p<2>;
.reg .f32 f<4>, t<3>;
mov.b32 {e0, e1}, $1;
cvt.rn.f16x2.e4m3x2 p0, e0;
cvt.rn.f16x2.e4m3x2 p1, e1;
mov.b32 {h0, h1}, p0;
mov.b32 {h2, h3}, p1;
cvt.f32.f16 f0, h0;
cvt.f32.f16 f1, h1;
cvt.f32.f16 f2, h2;
cvt.f32.f16 f3, h3;
fma.rn.f32 t0, f0, $2, $6;
fma.rn.f32 t1, f1, $3, t0;
fma.rn.f32 t2, f2, $4, t1;
fma.rn.f32 $0, f3, $5, t2;
}""")


@triton.jit
def gemv_kernel(
    q_ptr, scale_ptr, weight_ptr, weight_scale_ptr, bias_ptr, out_ptr, largest_ptr,
    num_inputs: tl.constexpr, num_outputs: tl.constexpr,
    block_o: tl.constexpr, block_i: tl.constexpr, parts: tl.constexpr, has_bias: tl.constexpr,
    measures: tl.constexpr, block_c: tl.constexpr, ahead: tl.constexpr,
):  # fmt: skip
    """`block_o` outputs; with several parts, the unscaled sum of one of them in float32.

    Weights are read `ahead` steps before they are multiplied, 1 or 2.
    """
    num_words: tl.constexpr = num_inputs // 4
    block_w: tl.constexpr = block_i // 4
    steps: tl.constexpr = (num_words + block_w * parts - 1) // (block_w * parts)
    output = tl.program_id(0) * block_o + tl.arange(0, block_o)
    part = tl.program_id(1)
    is_output = output < num_outputs
    word = part * (steps * block_w) + tl.arange(0, block_w)
    words_ptr = weight_ptr.to(tl.pointer_type(tl.int32), bitcast=True)
    w_at = words_ptr + output.to(tl.int64)[:, None] * num_words + word[None, :]
    w = _weights(w_at, is_output, word, 0, num_outputs, num_words, block_o, block_w, parts)
    w_1 = w
    if ahead == 2:
        w_1 = _weights(w_at, is_output, word, 1, num_outputs, num_words, block_o, block_w, parts)
    x = _inputs(q_ptr, word, 0, num_words, block_w, parts, largest_ptr is not None)
    weight_scale = tl.load(weight_scale_ptr + output, mask=is_output, other=0.0)
    bias = weight_scale
    if has_bias:
        bias = tl.load(bias_ptr + output, mask=is_output, other=0.0).to(tl.float32)
    writes = (tl.program_id(0) == 0) & (part == 0)
    scale = _scale(scale_ptr, largest_ptr, writes, measures, block_c)
    inverse = None if largest_ptr is None else tl.div_rn(1.0, scale)
    total = tl.zeros([block_o, block_w], tl.float32)
    for step in range(steps):
        later = _weights(
            w_at, is_output, word, step + ahead, num_outputs, num_words, block_o, block_w, parts
        )
        next_x = _inputs(q_ptr, word, step + 1, num_words, block_w, parts, largest_ptr is not None)
        x_0, x_1, x_2, x_3 = _numbers(x, inverse)
        total = _multiplied(w, x_0, x_1, x_2, x_3, total)
        x = next_x
        if ahead == 2:
            w = w_1
            w_1 = later
        else:
            w = later
    y = tl.sum(total, axis=1)
    if parts == 1:
        y = y * scale * weight_scale
        if has_bias:
            y += bias
        tl.store(out_ptr + output, to_bf16(y), mask=is_output)
    else:
        tl.store(out_ptr + part * num_outputs + output, y, mask=is_output)


@triton.jit
def _scale(scale_ptr, largest_ptr, writes, measures: tl.constexpr, block_c: tl.constexpr):
    """The row's scale; of a row that is only measured, who `writes` notes it."""
    if largest_ptr is None:
        return tl.load(scale_ptr)
    else:
        place = tl.arange(0, block_c)
        largest = tl.load(largest_ptr + place, mask=place < measures, other=0.0)
        scale = row_scale(tl.max(largest, axis=0))
        if writes:
            tl.store(scale_ptr, scale)
        return scale


@triton.jit
def _weights(
    w_at, is_output, word, step, num_outputs: tl.constexpr, num_words: tl.constexpr,
    block_o: tl.constexpr, block_w: tl.constexpr, parts: tl.constexpr,
):  # fmt: skip
    """A step's weights, none after the last; read once, so the first to leave the cache."""
    steps: tl.constexpr = (num_words + block_w * parts - 1) // (block_w * parts)
    if num_words % (block_w * parts) == 0:
        mask = step < steps
        if num_outputs % block_o != 0:
            mask = mask & is_output[:, None]
    else:
        mask = (step < steps) & is_output[:, None] & (word + step * block_w < num_words)[None, :]
    return tl.load(w_at + step * block_w, mask=mask, other=0, eviction_policy="evict_first")


@triton.jit
def _inputs(
    q_ptr, word, step, num_words: tl.constexpr, block_w: tl.constexpr, parts: tl.constexpr,
    wide: tl.constexpr,
):  # fmt: skip
    """[1, words]: a step's four inputs of each word, e4m3 in 32 bits, or bfloat16 (`wide`) in 64.

    Of two axes, so that they lie in threads as the weights do and no barrier is needed.
    """
    steps: tl.constexpr = (num_words + block_w * parts - 1) // (block_w * parts)
    place = (word + step * block_w)[None, :]
    mask = step < steps
    if num_words % (block_w * parts) != 0:
        mask = mask & (place < num_words)
    if wide:
        x_ptr = q_ptr.to(tl.pointer_type(tl.int64), bitcast=True)
    else:
        x_ptr = q_ptr.to(tl.pointer_type(tl.int32), bitcast=True)
    return tl.load(x_ptr + place, mask=mask, other=0)


@triton.jit
def _numbers(x, inverse):
    """The four numbers of words of inputs in float32; bfloat16 ones are made e4m3 ones before."""
    if inverse is None:
        return _e4m3(x), _e4m3(x >> 8), _e4m3(x >> 16), _e4m3(x >> 24)
    else:
        return (
            _quantised(x << 16, inverse),
            _quantised(x, inverse),
            _quantised(x >> 16, inverse),
            _quantised(x >> 32, inverse),
        )


@triton.jit
def _e4m3(x):
    """The number in the lowest 8 bits."""
    return x.to(tl.uint8).to(tl.float8e4nv, bitcast=True).to(tl.float32)


@triton.jit
def _quantised(x, inverse):
    """The bfloat16 number in bits 16 to 31, times the inverse scale, as e4m3."""
    value = (x.to(tl.int32) & -0x10000).to(tl.float32, bitcast=True)
    return to_fp8(value * inverse).to(tl.float32)


@triton.jit
def _multiplied(w, x_0, x_1, x_2, x_3, total):
    """total + the products of words of weights [outputs, words] and four inputs each [1, words]."""
    if INTERPRETED:
        total += _e4m3(w) * x_0 + _e4m3(w >> 8) * x_1
        return total + _e4m3(w >> 16) * x_2 + _e4m3(w >> 24) * x_3
    return tl.inline_asm_elementwise(
        _MULTIPLY, "=f,r,f,f,f,f,f", [w, x_0, x_1, x_2, x_3, total],
        dtype=tl.float32, is_pure=True, pack=1,
    )  # fmt: skip
