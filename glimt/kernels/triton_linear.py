"""`fp8_linear` for few rows: reads the weights once, near the speed of memory.

Hopper's tensor cores take 64 rows on one side and as few as 8 on the other. So the weights stand
on the first side and the tokens on the second (y^T = W x^T), and a handful of tokens does not pay
for 64. Where the outputs make too few tiles for all processors, the inputs are split, and a
second kernel adds the parts in a fixed order. A tile may have the weights come by TMA; a single row
may do without tensor cores (`triton_gemv`). The tile says which (`LinearTile.way`).

Letters: T tokens, I inputs, O outputs, P parts.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from glimt.kernels.pending import LinearParts
from glimt.kernels.reference import MeasuredRows, QuantizedRows
from glimt.kernels.tiles import LinearTile, linear_tile
from glimt.kernels.triton_gemv import gemv_kernel
from glimt.kernels.triton_support import (
    dot,
    launch,
    power_of_two,
    row_scale,
    stream,
    tiles_of,
    to_bf16,
    to_fp8,
)

MAX_ROWS = 64  # above, torch's GEMM is as fast
_SUM_BLOCK = 512


@triton.jit(do_not_specialize=["num_tokens"])
def linear_kernel(
    q_ptr, scale_ptr, weight_ptr, weight_scale_ptr, bias_ptr, out_ptr, largest_ptr, num_tokens,
    num_inputs: tl.constexpr, num_outputs: tl.constexpr,
    block_t: tl.constexpr, block_o: tl.constexpr, block_i: tl.constexpr,
    parts: tl.constexpr, has_bias: tl.constexpr,
    measures: tl.constexpr, block_c: tl.constexpr, way: tl.constexpr,
):  # fmt: skip
    """One tile of outputs; with several parts, the unscaled sum of one of them in float32.

    `way`: see `LinearTile`; for "tma" the weights are a descriptor of blocks [block_o, block_i].
    """
    output = tl.program_id(0) * block_o + tl.arange(0, block_o)
    token = tl.program_id(1) * block_t + tl.arange(0, block_t)
    part = tl.program_id(2)
    is_output = output < num_outputs
    is_token = token < num_tokens
    if parts == 1:  # before the weights, which hide the way to memory
        weight_scale, bias = _of_outputs(weight_scale_ptr, bias_ptr, output, is_output, has_bias)
    if largest_ptr is not None and way == "copy":
        scale = _scale_of_measured(largest_ptr, token, is_token, measures, block_c)
        inverse = tl.div_rn(1.0, scale)
    else:
        scale = tl.zeros([block_t], tl.float32)
        inverse = None
        if parts == 1 and largest_ptr is None:
            scale = tl.load(scale_ptr + token, mask=is_token, other=0.0)
    if way == "copy":
        total = stream(
            weight_ptr, q_ptr, output, token, is_output, is_token, inverse, num_inputs, block_i,
            part, parts,
        )  # fmt: skip
    else:
        total, found = _stream_by_tma(
            weight_ptr, q_ptr, largest_ptr, token, is_token,
            num_inputs, block_o, block_i, part, parts, measures, block_c,
        )  # fmt: skip
        if largest_ptr is not None:
            scale = found
    if largest_ptr is not None:
        writes = (tl.program_id(0) == 0) & (part == 0)
        if writes:
            tl.store(scale_ptr + token, scale, mask=is_token)
    place = token[None, :].to(tl.int64) * num_outputs + output[:, None]
    mask = is_output[:, None] & is_token[None, :]
    if parts > 1:
        tl.store(out_ptr + part.to(tl.int64) * num_tokens * num_outputs + place, total, mask=mask)
    else:
        total = total * tl.expand_dims(scale, 0) * weight_scale[:, None]
        if has_bias:
            total += bias[:, None]
        tl.store(out_ptr + place, to_bf16(total), mask=mask)


@triton.jit
def _stream_by_tma(
    weights, x_ptr, largest_ptr, row, is_row,
    num_inputs: tl.constexpr, block_o: tl.constexpr, block_i: tl.constexpr, part,
    parts: tl.constexpr, measures: tl.constexpr, block_c: tl.constexpr,
):  # fmt: skip
    """(`triton_support.stream` of this program's outputs by TMA, the scales of measured rows).

    Scales are found in the first step, when the first weights are on their way: before the loop,
    they would be waited for before any weight is asked for.
    """
    steps: tl.constexpr = (num_inputs + block_i * parts - 1) // (block_i * parts)
    is_even: tl.constexpr = num_inputs % (block_i * parts) == 0
    start = part * (steps * block_i)
    column = start + tl.arange(0, block_i)
    x_at = x_ptr + row.to(tl.int64)[None, :] * num_inputs + column[:, None]
    total = tl.zeros([block_o, row.shape[0]], tl.float32)
    scale = tl.zeros([row.shape[0]], tl.float32)
    inverse = scale
    for step in range(steps):
        is_input = column + step * block_i < num_inputs
        w = weights.load([tl.program_id(0) * block_o, start + step * block_i])  # 0 beyond them
        x_mask = is_row[None, :] if is_even else is_row[None, :] & is_input[:, None]
        x = tl.load(x_at + step * block_i, mask=x_mask, other=0.0)
        if largest_ptr is not None:
            if step == 0:
                scale = _scale_of_measured(largest_ptr, row, is_row, measures, block_c)
                inverse = tl.div_rn(1.0, scale)
            x = to_fp8(x.to(tl.float32) * inverse[None, :])
        total = dot(w, x, total)
    return total, scale


@triton.jit
def _of_outputs(weight_scale_ptr, bias_ptr, output, is_output, has_bias: tl.constexpr):
    """(scales, biases or again the scales) of some outputs, float32."""
    weight_scale = tl.load(weight_scale_ptr + output, mask=is_output, other=0.0)
    bias = weight_scale
    if has_bias:
        bias = tl.load(bias_ptr + output, mask=is_output, other=0.0).to(tl.float32)
    return weight_scale, bias


@triton.jit
def _scale_of_measured(
    largest_ptr, token, is_token, measures: tl.constexpr, block_c: tl.constexpr
):  # fmt: skip
    """The scales of rows by the largest magnitudes of their `measures` parts."""
    column = tl.arange(0, block_c)
    largest = tl.load(
        largest_ptr + token[:, None] * measures + column[None, :],
        mask=is_token[:, None] & (column < measures)[None, :],
        other=0.0,
    )
    return row_scale(tl.max(largest, axis=1))


@triton.jit(do_not_specialize=["num_tokens"])
def add_parts_kernel(
    part_ptr,
    scale_ptr,
    weight_scale_ptr,
    bias_ptr,
    out_ptr,
    num_tokens,
    num_outputs: tl.constexpr,
    parts: tl.constexpr,
    has_bias: tl.constexpr,
    block: tl.constexpr,
):
    """The scaled sum of the parts of one token, block of outputs by block."""
    token = tl.program_id(1).to(tl.int64)
    output = tl.program_id(0) * block + tl.arange(0, block)
    inside = output < num_outputs
    place = token * num_outputs + output
    total = tl.zeros([block], tl.float32)
    for part in tl.static_range(parts):
        offset = (part * num_tokens).to(tl.int64) * num_outputs
        total += tl.load(part_ptr + offset + place, mask=inside, other=0.0)
    weight_scale = tl.load(weight_scale_ptr + output, mask=inside, other=0.0)
    total = total * tl.load(scale_ptr + token) * weight_scale
    if has_bias:
        total += tl.load(bias_ptr + output, mask=inside, other=0.0).to(tl.float32)
    tl.store(out_ptr + place, to_bf16(total), mask=inside)


def fp8_linear(
    rows: QuantizedRows | MeasuredRows,
    weight_OI: Tensor,
    weight_scale_O: Tensor,
    bias_O: Tensor | None = None,
    tile: LinearTile | None = None,
    *,
    defers: bool = False,
) -> Tensor | LinearParts:
    """See `reference.fp8_linear`; the tile is the table's unless one is given.

    With `defers` the parts, if there are several and no bias, may be left for a norm to add.
    Raises ValueError for a tile of one row's where there are several.
    """
    num_tokens, (num_outputs, num_inputs) = rows.x_TI.shape[0], weight_OI.shape
    tile = tile or linear_tile(num_outputs, num_inputs, num_tokens)
    y_TO = rows.x_TI.new_empty(num_tokens, num_outputs)
    if not num_tokens:
        return y_TO
    parts_PTO = y_TO
    if tile.parts > 1:
        parts_PTO = y_TO.new_empty((tile.parts, num_tokens, num_outputs), dtype=torch.float32)
    x_TI, scale_T1, largest_TC = _operands(rows)
    given = (x_TI, scale_T1, weight_OI, weight_scale_O, bias_O, parts_PTO, largest_TC)
    (_multiply_row if tile.way == "fma" else _multiply)(*given, tile)
    if tile.parts > 1 and defers and bias_O is None:
        return LinearParts(parts_PTO, scale_T1, weight_scale_O)
    if tile.parts > 1:
        _add_parts(parts_PTO, scale_T1, weight_scale_O, bias_O, y_TO)
    return y_TO


def sum_of_parts(parts: LinearParts) -> Tensor:
    """`parts.total()`, in a launch of its own."""
    y_TO = parts.part_STD.new_empty(parts.part_STD.shape[1:], dtype=torch.bfloat16)
    _add_parts(*parts, None, y_TO)
    return y_TO


def _multiply(
    x_TI: Tensor,
    scale_T1: Tensor,
    weight_OI: Tensor,
    weight_scale_O: Tensor,
    bias_O: Tensor | None,
    out_PTO: Tensor,
    largest_TC: Tensor | None,
    tile: LinearTile,
) -> None:
    """Fill the output, or its parts, by tensor cores; of measured rows the scales as well."""
    num_tokens, (num_outputs, num_inputs) = x_TI.shape[0], weight_OI.shape
    weights = weight_OI
    if tile.way == "tma":
        weights = TensorDescriptor.from_tensor(weight_OI, [tile.block_o, tile.block_i])
    measures = 1 if largest_TC is None else largest_TC.shape[1]
    block_t = min(64, max(16, power_of_two(num_tokens)))
    launch(
        linear_kernel,
        (tiles_of(num_outputs, tile.block_o), tiles_of(num_tokens, block_t), tile.parts),
        x_TI,
        scale_T1,
        weights,
        weight_scale_O,
        weight_scale_O if bias_O is None else bias_O,
        out_PTO,
        largest_TC,
        num_tokens,
        *(num_inputs, num_outputs, block_t, tile.block_o, tile.block_i, tile.parts),
        bias_O is not None,
        measures,
        power_of_two(measures),
        tile.way,
        warps=tile.warps,
        stages=tile.stages,
    )


def _multiply_row(
    x_1I: Tensor,
    scale_11: Tensor,
    weight_OI: Tensor,
    weight_scale_O: Tensor,
    bias_O: Tensor | None,
    out_P1O: Tensor,
    largest_1C: Tensor | None,
    tile: LinearTile,
) -> None:
    """`_multiply` of a single row, without tensor cores."""
    if x_1I.shape[0] != 1:
        raise ValueError(f"{tile} is for a single row, not for {x_1I.shape[0]}")
    num_outputs, num_inputs = weight_OI.shape
    measures = 1 if largest_1C is None else largest_1C.shape[1]
    launch(
        gemv_kernel,
        (tiles_of(num_outputs, tile.block_o), tile.parts, 1),
        x_1I,
        scale_11,
        weight_OI,
        weight_scale_O,
        weight_scale_O if bias_O is None else bias_O,
        out_P1O,
        largest_1C,
        *(num_inputs, num_outputs, tile.block_o, tile.block_i, tile.parts),
        bias_O is not None,
        measures,
        power_of_two(measures),
        tile.stages - 1,
        warps=tile.warps,
    )


def _operands(rows: QuantizedRows | MeasuredRows) -> tuple[Tensor, Tensor, Tensor | None]:
    """(what is multiplied, scales, the values that the kernel is to make scales of, if any)."""
    if isinstance(rows, QuantizedRows):
        return rows.q_TI, rows.scale_T1, None
    x_TI, largest_TC = rows
    return x_TI, largest_TC.new_empty((x_TI.shape[0], 1)), largest_TC


def _add_parts(
    parts_PTO: Tensor,
    scale_T1: Tensor,
    weight_scale_O: Tensor,
    bias_O: Tensor | None,
    y_TO: Tensor,
) -> None:
    """Fill y with the scaled sum of the parts."""
    num_parts, num_tokens, num_outputs = parts_PTO.shape
    launch(
        add_parts_kernel,
        (tiles_of(num_outputs, _SUM_BLOCK), num_tokens, 1),
        parts_PTO,
        scale_T1,
        weight_scale_O,
        weight_scale_O if bias_O is None else bias_O,
        y_TO,
        num_tokens,
        num_outputs,
        num_parts,
        bias_O is not None,
        _SUM_BLOCK,
        warps=4,
    )
