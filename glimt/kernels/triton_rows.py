"""Norms, activations and quantisation of whole rows: one program for each row.

Twins of definitions in `reference.py`, for bfloat16. Letters: T tokens, D width, F = 2I.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from glimt.kernels.pending import ALL_HERE, Delta, ExpertRows, LinearParts
from glimt.kernels.reference import QuantizedRows
from glimt.kernels.triton_support import (
    fetch_ahead,
    launch,
    power_of_two,
    row_scale,
    to_bf16,
    to_fp8,
)

MAX_WIDTH = 32768  # a row lies in the registers of one program

_ALL_HERE = tl.constexpr(ALL_HERE)

# The norm of few rows asks for all that it adds before it waits for any of it. By itself Triton
# gives a thread 16 numbers in a row, as many as it stores of e4m3 at a time, so threads read
# float32 64 bytes apart; and the assembler saves registers by waiting for memory four times. That
# is better for many rows, of which more then fit a processor. Squares are summed in another order,
# so a row's norm may differ in the last bit between few rows and many.
_FEW_ROWS = 132  # one for each processor of an H200
_ENOUGH_REGISTERS = 128  # for each thread, to hold what is on the way

# What a norm adds first.
_NOTHING, _PLAIN, _PARTS, _EXPERTS, _EXPERTS_AND_SHARED = (tl.constexpr(kind) for kind in range(5))


@triton.jit
def _store_quantized(x, q_ptr, scale_ptr, column, width: tl.constexpr):
    """Write the row x (float32, zeros beyond the width) as e4m3 with its scale."""
    row = tl.program_id(0).to(tl.int64)
    scale = row_scale(tl.max(tl.abs(x), axis=0))
    values = to_fp8(x * tl.div_rn(1.0, scale))
    tl.store(q_ptr + row * width + column, values, mask=column < width)
    tl.store(scale_ptr + row, scale)


@triton.jit
def columns(block: tl.constexpr, side_by_side: tl.constexpr):
    """0 … block - 1, with `side_by_side` no more than four in a row in each thread."""
    if side_by_side:
        return tl.max_contiguous(tl.arange(0, block), 4)
    return tl.arange(0, block)


@triton.jit
def normed_row(x, weight, eps, width: tl.constexpr):
    """The norm, bfloat16, of the row x (float32, zeros beyond the width)."""
    inverse = tl.rsqrt(tl.sum(x * x, axis=0) / width + eps)
    return to_bf16(weight * to_bf16(x * inverse).to(tl.float32))


@triton.jit
def store_row(
    normed,
    normed_ptr,
    q_ptr,
    scale_ptr,
    column,
    width: tl.constexpr,
    quantizes: tl.constexpr,
):
    """Write a row's norm, and quantised if that is wanted."""
    row = tl.program_id(0).to(tl.int64)
    tl.store(normed_ptr + row * width + column, normed, mask=column < width)
    if quantizes:
        _store_quantized(normed.to(tl.float32), q_ptr, scale_ptr, column, width)


@triton.jit
def store_normed(
    x,
    weight,
    normed_ptr,
    q_ptr,
    scale_ptr,
    column,
    eps,
    width: tl.constexpr,
    quantizes: tl.constexpr,
):
    """Norm the row x (float32, zeros beyond the width), and quantise the norm if that is wanted."""
    normed = normed_row(x, weight, eps, width)
    store_row(normed, normed_ptr, q_ptr, scale_ptr, column, width, quantizes)


@triton.jit
def quantize_kernel(x_ptr, q_ptr, scale_ptr, width: tl.constexpr, block: tl.constexpr):
    """See `reference.quantize_rows`."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, block)
    x = tl.load(x_ptr + row * width + column, mask=column < width, other=0.0).to(tl.float32)
    _store_quantized(x, q_ptr, scale_ptr, column, width)


@triton.jit
def added_row(
    delta_ptr,
    factor_ptr,
    other_ptr,
    row,
    num_rows,
    column,
    inside,
    width: tl.constexpr,
    kind: tl.constexpr,
    count: tl.constexpr,
    num_experts: tl.constexpr,
):
    """One row of what is to be added, float32; see `pending`."""
    place = row * width + column
    if kind == _PLAIN:
        return tl.load(delta_ptr + place, mask=inside, other=0.0).to(tl.float32)
    total = tl.zeros([column.shape[0]], tl.float32)
    if kind == _PARTS:
        for part in tl.static_range(count):
            offset = (part * num_rows).to(tl.int64) * width
            total += tl.load(delta_ptr + offset + place, mask=inside, other=0.0)
        weight_scale = tl.load(other_ptr + column, mask=inside, other=0.0)
        total = total * tl.load(factor_ptr + row) * weight_scale
    else:
        for k in tl.static_range(count):
            pair = row * count + k
            is_there = inside
            if num_experts != _ALL_HERE:
                expert = tl.load(other_ptr + pair)
                is_there = inside & (expert >= 0) & (expert < num_experts)
            part = tl.load(delta_ptr + pair * width + column, mask=is_there, other=0.0)
            total += part.to(tl.float32) * tl.load(factor_ptr + pair)
        if kind == _EXPERTS_AND_SHARED:
            offset = (num_rows * count).to(tl.int64) * width
            total += tl.load(delta_ptr + offset + place, mask=inside, other=0.0).to(tl.float32)
    return to_bf16(total).to(tl.float32)


@triton.jit(do_not_specialize=["num_rows"])
def rms_norm_kernel(
    x_ptr,
    delta_ptr,
    factor_ptr,
    other_ptr,
    weight_ptr,
    normed_ptr,
    sum_ptr,
    q_ptr,
    scale_ptr,
    eps,
    num_rows,
    width: tl.constexpr,
    block: tl.constexpr,
    reads_first: tl.constexpr,
    kind: tl.constexpr,
    count: tl.constexpr,
    num_experts: tl.constexpr,
    quantizes: tl.constexpr,
):
    """See `reference.add_rms_norm_quantize`; without adding or quantising the simpler ones."""
    row = tl.program_id(0).to(tl.int64)
    if reads_first:
        fetch_ahead(weight_ptr, width, block)
    column = columns(block, reads_first)
    inside = column < width
    place = row * width + column
    weight = tl.load(weight_ptr + column, mask=inside, other=0.0).to(tl.float32)
    x = tl.load(x_ptr + place, mask=inside, other=0.0).to(tl.float32)
    if kind != _NOTHING:
        delta = added_row(
            delta_ptr, factor_ptr, other_ptr, row, num_rows, column, inside,
            width, kind, count, num_experts,
        )  # fmt: skip
        total = to_bf16(x + delta)
        tl.store(sum_ptr + place, total, mask=inside)
        x = total.to(tl.float32)
    store_normed(x, weight, normed_ptr, q_ptr, scale_ptr, column, eps, width, quantizes)


@triton.jit
def silu_mul_kernel(
    gate_ptr,
    up_ptr,
    out_ptr,
    q_ptr,
    scale_ptr,
    stride: tl.constexpr,
    width: tl.constexpr,
    block: tl.constexpr,
    keeps: tl.constexpr,
    quantizes: tl.constexpr,
):
    """See `reference.silu_mul_quantize`, or without quantising `reference.silu_mul`."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, block)
    inside = column < width
    place = row * stride + column
    gate = tl.load(gate_ptr + place, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(up_ptr + place, mask=inside, other=0.0).to(tl.float32)
    silu = to_bf16(gate / (1.0 + tl.exp(-gate))).to(tl.float32)
    out = to_bf16(silu * up)
    if keeps:
        tl.store(out_ptr + row * width + column, out, mask=inside)
    if quantizes:
        _store_quantized(out.to(tl.float32), q_ptr, scale_ptr, column, width)


@triton.jit
def gather_kernel(
    q_ptr,
    scale_ptr,
    token_ptr,
    out_ptr,
    out_scale_ptr,
    width: tl.constexpr,
    block: tl.constexpr,
):
    """One quantised row of a token, and its scale, to another place."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, block)
    inside = column < width
    token = tl.load(token_ptr + row)
    tl.store(out_scale_ptr + row, tl.load(scale_ptr + token))
    q = tl.load(q_ptr + token * width + column, mask=inside)
    tl.store(out_ptr + row * width + column, q, mask=inside)


def gather_rows(q_TI: Tensor, scale_T1: Tensor, token_M: Tensor) -> tuple[Tensor, Tensor]:
    """(e4m3 rows [M, I], scales [M]) of the tokens, in one launch."""
    num_rows, width = token_M.shape[0], q_TI.shape[1]
    q_MI, scale_M = q_TI.new_empty(num_rows, width), scale_T1.new_empty(num_rows)
    if num_rows:
        block, warps = row_shape(width)
        launch(
            gather_kernel,
            (num_rows, 1, 1),
            q_TI,
            scale_T1,
            token_M,
            q_MI,
            scale_M,
            width,
            block,
            warps=min(8, warps),
        )
    return q_MI, scale_M


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """See `reference.quantize_rows`."""
    width = x.shape[-1]
    q = torch.empty_like(x, dtype=torch.float8_e4m3fn)
    scale = x.new_empty((*x.shape[:-1], 1), dtype=torch.float32)
    if scale.numel():
        block, warps = row_shape(width)
        launch(
            quantize_kernel,
            (scale.numel(), 1, 1),
            x,
            q,
            scale,
            width,
            block,
            warps=warps,
        )
    return q, scale


def rms_norm(x_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """See `reference.rms_norm`."""
    return _norm(x_TD, None, weight_D, eps, quantizes=False)[0]


def add_rms_norm(
    x_TD: Tensor, delta_TD: Delta, weight_D: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """See `reference.add_rms_norm`."""
    normed_TD, sum_TD, _, _ = _norm(x_TD, delta_TD, weight_D, eps, quantizes=False)
    return normed_TD, sum_TD


def add_rms_norm_quantize(
    x_TD: Tensor, delta_TD: Delta | None, weight_D: Tensor, eps: float
) -> tuple[QuantizedRows, Tensor]:
    """See `reference.add_rms_norm_quantize`."""
    normed_TD, sum_TD, q_TD, scale_T1 = _norm(x_TD, delta_TD, weight_D, eps, quantizes=True)
    return QuantizedRows(normed_TD, q_TD, scale_T1), sum_TD


def silu_mul(gate_up_TF: Tensor) -> Tensor:
    """See `reference.silu_mul`."""
    return _silu_mul(*gate_up_TF.chunk(2, dim=1), keeps=True, quantizes=False).x_TI


def silu_mul_quantize(gate_up_TF: Tensor, *, keeps: bool = True) -> QuantizedRows:
    """See `reference.silu_mul_quantize`; without `keeps` x_TI is memory that nobody wrote."""
    return _silu_mul(*gate_up_TF.chunk(2, dim=1), keeps=keeps, quantizes=True)


def _norm(
    x_TD: Tensor, delta_TD: Delta | None, weight_D: Tensor, eps: float, *, quantizes: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(normed, sum, q, scale); what is not asked for stands for something else."""
    num_tokens, width = x_TD.shape
    normed_TD = torch.empty_like(x_TD)
    sum_TD = x_TD if delta_TD is None else torch.empty_like(x_TD)
    q_TD, scale_T1 = quantized_like(normed_TD) if quantizes else (normed_TD, normed_TD)
    if num_tokens:
        block, warps = row_shape(width)
        given, constants = terms(x_TD, delta_TD)
        reads_first = num_tokens <= _FEW_ROWS
        launch(
            rms_norm_kernel,
            (num_tokens, 1, 1),
            x_TD,
            *given,
            weight_D,
            normed_TD,
            sum_TD,
            q_TD,
            scale_T1,
            eps,
            num_tokens,
            width,
            block,
            reads_first,
            *constants,
            quantizes,
            warps=warps,
            registers=_ENOUGH_REGISTERS if reads_first else None,
        )
    return normed_TD, sum_TD, q_TD, scale_T1


def terms(x_TD: Tensor, delta_TD: Delta | None) -> tuple[tuple[Tensor, ...], tuple[int, int, int]]:
    """What `added_row` is given: its tensors, and kind, count and number of experts."""
    if delta_TD is None:
        return (x_TD, x_TD, x_TD), (_NOTHING.value, 0, 0)
    if isinstance(delta_TD, LinearParts):
        return delta_TD, (_PARTS.value, len(delta_TD.part_STD), 0)
    if isinstance(delta_TD, ExpertRows):
        kind = _EXPERTS_AND_SHARED if delta_TD.has_shared else _EXPERTS
        count = delta_TD.weights_TK.shape[1]
        return tuple(delta_TD[:3]), (kind.value, count, delta_TD.num_experts)
    return (delta_TD, x_TD, x_TD), (_PLAIN.value, 0, 0)


def _silu_mul(gate_TI: Tensor, up_TI: Tensor, *, keeps: bool, quantizes: bool) -> QuantizedRows:
    """Of two matrices whose rows are equally far from each other."""
    num_tokens, width = gate_TI.shape
    out_TI = gate_TI.new_empty(num_tokens, width)
    q_TI, scale_T1 = quantized_like(out_TI) if quantizes else (out_TI, out_TI)
    if num_tokens:
        block, warps = row_shape(width)
        launch(
            silu_mul_kernel,
            (num_tokens, 1, 1),
            gate_TI,
            up_TI,
            out_TI,
            q_TI,
            scale_T1,
            gate_TI.stride(0),
            width,
            block,
            keeps,
            quantizes,
            warps=warps,
        )
    return QuantizedRows(out_TI, q_TI, scale_T1)


def quantized_like(x_TI: Tensor) -> tuple[Tensor, Tensor]:
    """Room for rows of this shape as e4m3, and for their scales."""
    q_TI = torch.empty_like(x_TI, dtype=torch.float8_e4m3fn)
    return q_TI, x_TI.new_empty((x_TI.shape[0], 1), dtype=torch.float32)


def row_shape(width: int) -> tuple[int, int]:
    """(elements of the block, warps): about 16 elements in each thread."""
    block = max(16, power_of_two(width))
    return block, min(16, max(1, block // 512))
