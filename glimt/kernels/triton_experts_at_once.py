"""Both products of few tokens' experts in one launch, the second one led by what it needs.

Between two launches memory is idle: the first one's last loads end, the second one's first ones
begin. Here the programs of the first product come first, then those of the second; a tile of
output rows waits only for the inner rows of its own pairs, which are counted as they come. When the
first one is there, so that the first product is about to end, it reads its first weights.

A program waits only for programs with lower numbers, which wait for nobody. Programs start in the
order of their numbers, as NVIDIA's own single-pass scans (CUB) rest on as well, so whatever else
runs on the GPU, who is waited for runs or has ended, and no wait needs a limit.

Letters as in `triton_experts`; N tiles of pairs.
"""

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from glimt.kernels.reference import QuantizedRows
from glimt.kernels.reference_experts import Fp8Mlp
from glimt.kernels.tiles import ExpertTile
from glimt.kernels.triton_expert_tiles import (
    count_up,
    leave,
    look,
    store_inner,
    store_narrow_inner,
    store_output,
)
from glimt.kernels.triton_plan import Tiles, locate
from glimt.kernels.triton_support import launch, power_of_two, tiles_of

_APART = tl.constexpr(32)  # numbers: each count has a line of the cache to itself


@triton.jit
def _work(num_tiles, inner_tiles: tl.constexpr, out_tiles: tl.constexpr):
    """(whether it is of the first product, tile of pairs, tile of columns) of this program."""
    number = tl.program_id(0)
    is_inner = number < num_tiles * inner_tiles
    number = tl.where(is_inner, number, number - num_tiles * inner_tiles)
    columns = tl.where(is_inner, inner_tiles, out_tiles)
    return is_inner, number // columns, number % columns


@triton.jit
def _weights_of(
    expert, weight_ptr, scale_ptr, shared_weight_ptr, shared_scale_ptr,
    num_experts: tl.constexpr, num_outputs: tl.constexpr, num_inputs: tl.constexpr,
):  # fmt: skip
    """Where the weights of an expert begin, or of the shared one, and where their scales."""
    if expert == num_experts:
        weights, scales = shared_weight_ptr, shared_scale_ptr
    else:
        weights = weight_ptr + expert * (num_outputs * num_inputs)
        scales = scale_ptr + expert * num_outputs
    return weights, scales


@triton.jit(do_not_specialize=["num_tokens", "shared_tiles", "num_tiles"])
def experts_kernel(
    q_ptr, scale_ptr, tile_expert_ptr, tile_pair_ptr,
    gate_up_ptr, gate_up_scale_ptr, down_ptr, down_scale_ptr,
    shared_gate_up_ptr, shared_gate_up_scale_ptr, shared_down_ptr, shared_down_scale_ptr,
    inner_ptr, largest_ptr, out_ptr, count_ptr, num_tokens, shared_tiles, num_tiles,
    num_experts: tl.constexpr, per_token: tl.constexpr, hidden: tl.constexpr, width: tl.constexpr,
    shared_width: tl.constexpr, block_t: tl.constexpr, inner_tiles: tl.constexpr,
    inner_o: tl.constexpr, inner_i: tl.constexpr, inner_stages: tl.constexpr,
    block_c: tl.constexpr, out_tiles: tl.constexpr, out_o: tl.constexpr, out_i: tl.constexpr,
    out_stages: tl.constexpr, num_held: tl.constexpr, shared_held: tl.constexpr,
):  # fmt: skip
    """A tile of inner rows, or behind all of these one of output rows."""
    is_inner, place, column = _work(num_tiles, inner_tiles, out_tiles)
    expert, pair = locate(
        place, shared_tiles, tile_expert_ptr, tile_pair_ptr,
        num_tokens, num_experts, per_token, block_t,
    )  # fmt: skip
    count_ptr += place * _APART
    counted = 0
    if not is_inner:
        counted = look(count_ptr)  # while the expert's number is on its way
    if expert < 0:  # in both products, so nobody waits
        return
    num_routed = num_tokens * per_token
    if is_inner:
        token = tl.where(expert == num_experts, pair - num_routed, pair // per_token)
        gate_up, gate_up_scale = _weights_of(
            expert, gate_up_ptr, gate_up_scale_ptr, shared_gate_up_ptr, shared_gate_up_scale_ptr,
            num_experts, 2 * width, hidden,
        )  # fmt: skip
        if shared_width != width and expert == num_experts:
            store_narrow_inner(
                q_ptr, scale_ptr, gate_up, gate_up_scale, inner_ptr, largest_ptr, pair, num_routed,
                column, hidden, width, shared_width, inner_tiles, inner_o, inner_i, inner_stages,
            )  # fmt: skip
        else:
            store_inner(
                q_ptr, scale_ptr, gate_up, gate_up_scale, inner_ptr, largest_ptr, pair, token,
                column, hidden, width, inner_tiles, inner_o, inner_i, inner_stages,
            )  # fmt: skip
        count_up(count_ptr)
    else:
        output = column * out_o + tl.arange(0, out_o)
        down, down_scale = _weights_of(
            expert, down_ptr, down_scale_ptr, shared_down_ptr, shared_down_scale_ptr,
            num_experts, hidden, width,
        )  # fmt: skip
        if shared_width != width and expert == num_experts:
            store_output(
                inner_ptr + num_routed * (width - shared_width), largest_ptr, down, down_scale,
                out_ptr, pair, output, hidden, shared_width, inner_tiles, block_c, out_i,
                out_stages, count_ptr, counted, shared_held,
            )  # fmt: skip
        else:
            store_output(
                inner_ptr, largest_ptr, down, down_scale, out_ptr, pair, output,
                hidden, width, inner_tiles, block_c, out_i, out_stages,
                count_ptr, counted, num_held,
            )  # fmt: skip
        leave(count_ptr, inner_tiles + out_tiles)


def both_products(
    rows: QuantizedRows,
    per_token: int,
    tiles: Tiles,
    inner_by: ExpertTile,
    out_by: ExpertTile,
    routed: Fp8Mlp,
    shared: Fp8Mlp | None,
    num_pairs: int,
    num_held: int,
) -> Tensor:
    """Output rows bfloat16 [P, D], not yet weighted; only those of pairs here are set.

    The two tiles have as many warps as each other. The weights of up to `num_held` inputs, a power
    of two, are read while a program waits. Calls with the same weights follow one another: they
    share their counts. Raises RuntimeError where a graph is recorded before a first call.
    """
    num_tokens, hidden = rows.q_TI.shape
    num_experts, _, width = routed.down.shape
    inner_tiles, out_tiles = tiles_of(width, inner_by.block_o), tiles_of(hidden, out_by.block_o)
    num_tiles = tiles.num_shared + tiles.num_routed
    inner_PI = rows.x_TI.new_empty(num_pairs, width)
    out_PD = rows.x_TI.new_empty(num_pairs, hidden)
    also = shared or routed
    shared_width = also.down.shape[-1]
    count_N = _counts(inner_PI.device, routed.down.data_ptr(), num_tiles)
    launch(
        experts_kernel,
        (num_tiles * (inner_tiles + out_tiles), 1, 1),
        *(rows.q_TI, rows.scale_T1, tiles.expert_N, tiles.pair_NB, *routed, *also),
        inner_PI,
        inner_PI.new_empty((num_pairs, inner_tiles), dtype=torch.float32),
        out_PD,
        count_N,
        *(num_tokens, tiles.num_shared, num_tiles),
        *(num_experts, per_token, hidden, width, shared_width, tiles.block_t),
        *(inner_tiles, inner_by.block_o, inner_by.block_i, inner_by.stages),
        *(power_of_two(inner_tiles), out_tiles, out_by.block_o, out_by.block_i, out_by.stages),
        _held(min(num_held, width), out_by.block_i),
        _held(min(num_held, shared_width), out_by.block_i),
        warps=inner_by.warps,
    )
    return out_PD


def _held(most: int, block_i: int) -> int:
    """Whole steps, so that sums are the same to the last bit; a power of two."""
    count = power_of_two(most + 1) // 2
    return count if count >= block_i else 0


@functools.cache
def _counts(device: torch.device, address: int, num_tiles: int) -> Tensor:
    """int32 zeros, one in each line: of the experts whose weights are at this address.

    They are kept, so that no launch has to clear them; a model's layer is not computed twice at a
    time, so nobody else uses them meanwhile.
    """
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            "The counts of these experts would be made within a graph, cleared only when it"
            " is replayed: compute once with as many tokens before it is recorded."
        )
    return torch.zeros(num_tiles * _APART.value, dtype=torch.int32, device=device)
