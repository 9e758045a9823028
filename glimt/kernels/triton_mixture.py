"""A whole mixture of experts of very few tokens in two launches: scores, then all the rest.

The twin of `reference_experts.routed_fp8_moe`. After the router's scores (`triton_router`) one
kernel chooses experts and carries out both their products. Its programs come in two kinds. The
first ones give tiles of inner rows, and count for each row how many are there. The others give
tiles of output rows: each has its weights fetched into the L2 cache, waits until its inner row is
whole, and goes on. So the second product's weights arrive while the first product ends, and no
launch is between them. Every program finds out by itself which expert it is for.

Nobody waits for a program that may not have started: programs start in the order of their numbers
(what single-pass scans rest on as well), and those that are waited for come first.

Letters as in `triton_experts.py`; S parts of the router's sums.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from glimt.kernels import triton_support
from glimt.kernels.pending import ALL_HERE, ExpertRows
from glimt.kernels.reference import QuantizedRows
from glimt.kernels.reference_experts import Fp8Mlp
from glimt.kernels.tiles import down_tile, gate_up_tile
from glimt.kernels.triton_expert_tiles import store_inner, store_output
from glimt.kernels.triton_router import MAX_PLACES, logits, places, total_of
from glimt.kernels.triton_soon import fetch_soon, soon_of
from glimt.kernels.triton_support import (
    INTERPRETED,
    fetch_ahead,
    follow_alone,
    launch,
    let_next_start,
    power_of_two,
    tiles_of,
)

MAX_TOKENS = 4  # more share experts: there each is read once for all of its tokens
MAX_CHOICE = MAX_PLACES  # experts
_BLOCK_T = 16
_APART = tl.constexpr(32)  # counts, so that each has its own line of the cache
_FETCHING = tl.constexpr(264)  # programs that may have to wait: two for each processor of an H200
_PIECES = tl.constexpr(8)  # of a tile: each is an instruction, and a warp's come one by one


@triton.jit
def choose(
    logit_ptr,
    bias_ptr,
    token,
    k,
    num_tokens,
    factor,
    num_experts: tl.constexpr,
    per_token: tl.constexpr,
    block_e: tl.constexpr,
    parts: tl.constexpr,
    normalizes: tl.constexpr,
):
    """(expert, weight) of a token's k-th choice."""
    expert, score, place = places(
        logit_ptr, bias_ptr, token, num_tokens, num_experts, block_e, parts
    )
    weight = tl.sum(tl.where(place == k, score, 0.0), axis=0)
    if normalizes:
        weight /= total_of(tl.where(place < per_token, score, 0.0))
    return tl.sum(tl.where(place == k, expert, 0), axis=0), weight * factor


@triton.jit
def _wait(count_ptr, wanted):
    """Until so much is counted; what was written before it was counted is seen from then on."""
    if not INTERPRETED:  # there programs run one after the other
        tl.inline_asm_elementwise(
            """{
            .reg .pred less;
            .reg .s32 seen;
            again:
            ld.acquire.gpu.global.s32 seen, [$1];
            setp.lt.s32 less, seen, $2;
            @less bra again;
            mov.u32 $0, seen;
            }""",
            "=r,l,r",
            [count_ptr.to(tl.int64), wanted],
            dtype=tl.int32,
            is_pure=False,
            pack=1,
        )
        tl.debug_barrier()


@triton.jit
def _fetch_tile(
    weight_ptr,
    number,
    tile,
    num_outputs: tl.constexpr,
    width: tl.constexpr,
    block_o: tl.constexpr,
    fetches: tl.constexpr,
):
    """Have a tile of whole rows, which lie side by side, fetched into the L2 cache; of the first
    programs, by their number."""
    if fetches and number < _FETCHING:
        size: tl.constexpr = block_o * width // _PIECES  # a multiple of 32: see `tiles`
        first = tile.to(tl.int64) * (block_o * width) + tl.arange(0, _PIECES) * size
        fetch_ahead(weight_ptr + first, first + size <= num_outputs * width, size)


@triton.jit(do_not_specialize=["num_tokens"])
def mixture_kernel(
    q_ptr, scale_ptr, logit_ptr, bias_ptr, gate_up_ptr, gate_up_scale_ptr, down_ptr, down_scale_ptr,
    shared_gate_up_ptr, shared_gate_up_scale_ptr, shared_down_ptr, shared_down_scale_ptr,
    inner_ptr, largest_ptr, count_ptr, expert_ptr, weight_ptr, out_ptr, num_tokens, factor,
    num_experts: tl.constexpr, per_token: tl.constexpr, hidden: tl.constexpr, width: tl.constexpr,
    block_e: tl.constexpr, parts: tl.constexpr, normalizes: tl.constexpr, block_t: tl.constexpr,
    inner_tiles: tl.constexpr, inner_o: tl.constexpr, inner_i: tl.constexpr,
    block_c: tl.constexpr, out_tiles: tl.constexpr, out_o: tl.constexpr, out_i: tl.constexpr,
    fetches: tl.constexpr, scales_first: tl.constexpr,
    soon_0_ptr, soon_1_ptr, soon_2_ptr, count_0: tl.constexpr, step_0: tl.constexpr,
    count_1: tl.constexpr, step_1: tl.constexpr, count_2: tl.constexpr, step_2: tl.constexpr,
    share: tl.constexpr, block_s: tl.constexpr, sign: tl.constexpr,
):  # fmt: skip
    """A tile of inner rows, or one of output rows, of the shared expert or of one choice."""
    follow_alone()
    num_inner = (num_tokens * per_token + 1) * inner_tiles
    is_inner = tl.program_id(0) < num_inner
    number = tl.program_id(0) - tl.where(is_inner, 0, num_inner)
    tiles = tl.where(is_inner, inner_tiles, out_tiles)
    row, tile, lane = number // tiles, number % tiles, tl.arange(0, block_t)
    if row == 0:
        pair, token = tl.where(lane < num_tokens, num_tokens * per_token + lane, -1), lane
        gate_up, gate_up_scale = shared_gate_up_ptr, shared_gate_up_scale_ptr
        down, down_scale = shared_down_ptr, shared_down_scale_ptr
    else:
        choice = row - 1
        expert, weight = choose(
            logit_ptr, bias_ptr, choice // per_token, choice % per_token, num_tokens, factor,
            num_experts, per_token, block_e, parts, normalizes,
        )  # fmt: skip
        if is_inner & (tile == 0):
            tl.store(expert_ptr + choice, expert.to(tl.int64))
            tl.store(weight_ptr + choice, weight)
        pair = tl.where(lane == 0, choice, -1)
        token = tl.zeros([block_t], tl.int32) + choice // per_token
        own = expert.to(tl.int64)
        gate_up = gate_up_ptr + own * (2 * width * hidden)
        gate_up_scale = gate_up_scale_ptr + own * (2 * width)
        down, down_scale = down_ptr + own * (hidden * width), down_scale_ptr + own * hidden
    count_ptr += row * _APART
    if is_inner:
        store_inner(
            q_ptr, scale_ptr, gate_up, gate_up_scale, inner_ptr, largest_ptr, pair, token, tile,
            hidden, width, inner_tiles, inner_o, inner_i, scales_first,
        )  # fmt: skip
        tl.debug_barrier()  # all of this program's numbers are written before they count
        tl.atomic_add(count_ptr, 1, sem="release")
    else:
        _fetch_tile(down, number, tile, hidden, width, out_o, fetches)
        _wait(count_ptr, inner_tiles)
        store_output(
            inner_ptr, largest_ptr, down, down_scale, out_ptr, pair,
            tile * out_o + tl.arange(0, out_o), hidden, width, inner_tiles,
            block_c, out_i, scales_first,
        )  # fmt: skip
        fetch_soon(
            number, soon_0_ptr, soon_1_ptr, soon_2_ptr, count_0, step_0, count_1, step_1,
            count_2, step_2, share, block_s, sign,
        )  # fmt: skip
    let_next_start()


class _Room(NamedTuple):
    """What the kernel fills, in its order."""

    inner_PI: Tensor
    largest_PC: Tensor
    count_Z: Tensor
    experts_TK: Tensor
    weights_TK: Tensor
    row_PD: Tensor


def routed_fp8_moe(
    rows: QuantizedRows,
    router_ED: Tensor,
    bias_E: Tensor,
    routed: Fp8Mlp,
    shared: Fp8Mlp,
    *,
    num_experts_per_token: int,
    norm_topk_prob: bool,
    scale: float,
    soon: Sequence[Tensor] = (),
) -> ExpertRows:
    """See `reference_experts.routed_fp8_moe`; the sum is left to be carried out.

    Of 1 to MAX_TOKENS tokens and experts that are all here, with a shared one as wide as they are.
    """
    num_tokens, per_token = len(rows.x_TI), num_experts_per_token
    num_experts, hidden, width = routed.down.shape
    inner_by = gate_up_tile(width, hidden, num_tokens)
    out_by = down_tile(hidden, width, num_tokens)
    inner_tiles, out_tiles = tiles_of(width, inner_by.block_o), tiles_of(hidden, out_by.block_o)
    room = _room(rows.x_TI, num_tokens, per_token, width, inner_tiles)
    logits_STE = logits(rows.x_TI, router_ED, room.count_Z)
    num_rows = num_tokens * per_token + 1  # the shared expert takes all its tokens at once
    fetched = soon_of(soon, num_rows * out_tiles)
    launch(
        mixture_kernel,
        (num_rows * (inner_tiles + out_tiles), 1, 1),
        *(rows.q_TI, rows.scale_T1, logits_STE, bias_E, *routed, *shared, *room),
        num_tokens,
        float(scale),
        *(num_experts, per_token, hidden, width, power_of_two(num_experts), len(logits_STE)),
        norm_topk_prob,
        _BLOCK_T,
        *(inner_tiles, inner_by.block_o, inner_by.block_i, power_of_two(inner_tiles)),
        *(out_tiles, out_by.block_o, out_by.block_i),
        not INTERPRETED.value,
        triton_support.SCALES_FIRST,
        *fetched.tensors,
        *fetched.constants,
        warps=inner_by.warps,
        stages=inner_by.stages,
    )
    return ExpertRows(room.row_PD, room.weights_TK, room.experts_TK, ALL_HERE, has_shared=True)


def _room(x_TD: Tensor, num_tokens: int, per_token: int, width: int, inner_tiles: int) -> _Room:
    num_pairs = num_tokens * (per_token + 1)
    number, count = torch.float32, torch.int32
    num_counts = power_of_two((num_tokens * per_token + 1) * _APART.value)
    return _Room(
        x_TD.new_empty(num_pairs, width),
        x_TD.new_empty((num_pairs, inner_tiles), dtype=number),
        x_TD.new_empty(num_counts, dtype=count),
        x_TD.new_empty((num_tokens, per_token), dtype=torch.int64),
        x_TD.new_empty((num_tokens, per_token), dtype=number),
        x_TD.new_empty(num_pairs, x_TD.shape[1]),
    )
