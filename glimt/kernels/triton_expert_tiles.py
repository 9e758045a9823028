"""What one program does for a tile of an expert's pairs: a tile of inner rows, or of output rows.

Scales are read before the weights: at the end of a launch nothing hides the way to memory and back.
Letters as in `triton_experts`, which launches each as a kernel.
"""

import triton
import triton.language as tl

from glimt.kernels.triton_support import row_scale, stream, to_bf16


@triton.jit
def store_inner(
    q_ptr,
    scale_ptr,
    weight_ptr,
    weight_scale_ptr,
    inner_ptr,
    largest_ptr,
    pair,
    token,
    tile,
    num_inputs: tl.constexpr,
    width: tl.constexpr,
    column_tiles: tl.constexpr,
    block_o: tl.constexpr,
    block_i: tl.constexpr,
):
    """silu(gate x) · up x of pairs, `block_o` columns of it, and their largest value."""
    is_pair = pair >= 0
    row = tl.arange(0, 2 * block_o)  # gates, then the ups beside them
    column = tile * block_o + row % block_o
    output = column + (row // block_o) * width
    is_output = column < width
    scale = tl.load(scale_ptr + token, mask=is_pair, other=0.0)
    weight_scale = tl.load(weight_scale_ptr + output, mask=is_output, other=0.0)
    total = stream(weight_ptr, q_ptr, output, token, is_output, is_pair, None, num_inputs, block_i)
    inner = _activate(total * scale[None, :] * weight_scale[:, None])
    column = tile * block_o + tl.arange(0, block_o)
    place = pair.to(tl.int64)[None, :] * width + column[:, None]
    tl.store(inner_ptr + place, inner, mask=is_pair[None, :] & (column < width)[:, None])
    largest = tl.max(tl.abs(inner.to(tl.float32)), axis=0)
    tl.store(largest_ptr + pair * column_tiles + tile, largest, mask=is_pair)


@triton.jit
def store_narrow_inner(
    q_ptr, scale_ptr, weight_ptr, weight_scale_ptr, inner_ptr, largest_ptr, pair, num_routed, tile,
    num_inputs: tl.constexpr, width: tl.constexpr, shared_width: tl.constexpr,
    column_tiles: tl.constexpr, block_o: tl.constexpr, block_i: tl.constexpr,
):  # fmt: skip
    """`store_inner` of a shared expert that is narrower: its rows are, too, behind the others."""
    if tile * block_o < shared_width:
        store_inner(
            q_ptr, scale_ptr, weight_ptr, weight_scale_ptr,
            inner_ptr + num_routed * (width - shared_width), largest_ptr, pair, pair - num_routed,
            tile, num_inputs, shared_width, column_tiles, block_o, block_i,
        )  # fmt: skip
    else:
        largest = tl.zeros([pair.shape[0]], tl.float32)
        tl.store(largest_ptr + pair * column_tiles + tile, largest, mask=pair >= 0)


@triton.jit
def _activate(gate_up):
    """silu(gate) · up of float32 rows, gates first, rounded like the definition's."""
    halves = tl.reshape(to_bf16(gate_up), [2, gate_up.shape[0] // 2, gate_up.shape[1]])
    gate, up = tl.split(tl.permute(halves.to(tl.float32), (1, 2, 0)))
    silu = to_bf16(gate / (1.0 + tl.exp(-gate))).to(tl.float32)
    return to_bf16(silu * up)


@triton.jit
def store_output(
    inner_ptr,
    largest_ptr,
    weight_ptr,
    weight_scale_ptr,
    out_ptr,
    pair,
    output,
    num_outputs: tl.constexpr,
    width: tl.constexpr,
    column_tiles: tl.constexpr,
    block_c: tl.constexpr,
    block_i: tl.constexpr,
):
    """down h of pairs, some `output`s of it; h is quantised on the way."""
    is_pair, is_output = pair >= 0, output < num_outputs
    weight_scale = tl.load(weight_scale_ptr + output, mask=is_output, other=0.0)
    part = tl.arange(0, block_c)
    is_part = is_pair[:, None] & (part < column_tiles)[None, :]
    largest = tl.load(
        largest_ptr + pair[:, None] * column_tiles + part[None, :], mask=is_part, other=0.0
    )
    scale = row_scale(tl.max(largest, axis=1))
    inverse = tl.div_rn(1.0, scale)
    total = stream(weight_ptr, inner_ptr, output, pair, is_output, is_pair, inverse, width, block_i)
    total = total * scale[None, :] * weight_scale[:, None]
    place = pair.to(tl.int64)[None, :] * num_outputs + output[:, None]
    tl.store(out_ptr + place, to_bf16(total), mask=is_pair[None, :] & is_output[:, None])
