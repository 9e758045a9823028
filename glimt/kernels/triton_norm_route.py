"""The norm before a router, and the router, in one launch: for one token.

Every program adds and norms the whole row of its token: it would otherwise wait for one that does.
Its part of the router's matrix is on the way meanwhile. One of them writes the row, and whoever is
the last with its logits chooses the experts. The bits are those of `triton_rows` and
`triton_router`, whose sums are the same.

Letters: T tokens, D width, K experts of a token, E experts, S parts of a logit's sum.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from glimt.kernels.pending import Delta, ExpertRows
from glimt.kernels.reference import QuantizedRows
from glimt.kernels.triton_router import MAX_PLACED_EXPERTS, biases, select, split
from glimt.kernels.triton_rows import (
    added_row,
    columns,
    normed_row,
    quantized_like,
    row_shape,
    store_row,
    terms,
)
from glimt.kernels.triton_support import (
    came_last,
    dot,
    fetch_ahead,
    launch,
    power_of_two,
    to_bf16,
)

_MAX_TOKENS = 1  # more are no faster than in launches of their own
# The inputs are split over so many programs for each tile of experts. Each reads all of the row, so
# more of them read more, and fewer have more of the matrix to multiply.
_GROUPS = 8
_LEAST_PARTS = 16  # the columns of a product


@triton.jit(do_not_specialize=["num_tokens"])
def norm_route_kernel(
    x_ptr, delta_ptr, factor_ptr, other_ptr, norm_ptr, normed_ptr, sum_ptr, q_ptr, scale_ptr,
    router_ptr, logit_ptr, bias_ptr, weight_ptr, expert_ptr, arrived_ptr, eps, num_tokens, scale,
    width: tl.constexpr, block: tl.constexpr, kind: tl.constexpr, count: tl.constexpr,
    quantizes: tl.constexpr, num_experts: tl.constexpr, per_token: tl.constexpr,
    block_e: tl.constexpr, block_d: tl.constexpr, groups: tl.constexpr,
    block_all: tl.constexpr, block_k: tl.constexpr, parts: tl.constexpr, normalizes: tl.constexpr,
    lines: tl.constexpr,
):  # fmt: skip
    """One token, tile of experts, and group of the parts of the sums."""
    token = tl.program_id(0).to(tl.int64)
    expert = tl.program_id(1) * block_e + tl.arange(0, block_e)
    own: tl.constexpr = parts // groups
    first = tl.program_id(2) * own
    router = _tiles(router_ptr, expert, first, num_experts, width, block_d, own)
    bias = biases(bias_ptr, num_experts, block_all, lines)
    fetch_ahead(norm_ptr, width, block)
    column = columns(block, True)
    inside = column < width
    weight = tl.load(norm_ptr + column, mask=inside, other=0.0).to(tl.float32)
    x = tl.load(x_ptr + token * width + column, mask=inside, other=0.0).to(tl.float32)
    delta = added_row(
        delta_ptr, factor_ptr, other_ptr, token, num_tokens, column, inside, width, kind, count, 0
    )
    total = to_bf16(x + delta)
    normed = normed_row(total.to(tl.float32), weight, eps, width)
    logits = _logits(normed, router, expert, first, block_d, own, parts)
    part = tl.arange(0, parts)
    at = logit_ptr + (part * num_tokens + token)[None, :] * num_experts + expert[:, None]
    is_own = (part >= first) & (part < first + own)
    tl.store(at, logits, mask=(expert < num_experts)[:, None] & is_own[None, :])
    is_last = came_last(arrived_ptr + token, tl.num_programs(1) * groups)
    if (tl.program_id(1) == 0) & (first == 0):
        tl.store(sum_ptr + token * width + column, total, mask=inside)
        store_row(normed, normed_ptr, q_ptr, scale_ptr, column, width, quantizes)
    if is_last:
        select(
            logit_ptr, bias, weight_ptr, expert_ptr, token, num_tokens,
            0, scale, num_experts, per_token, block_all, block_k, parts, normalizes, True,
        )  # fmt: skip


@triton.jit
def _tiles(
    router_ptr,
    expert,
    first,
    num_experts: tl.constexpr,
    width: tl.constexpr,
    block_d: tl.constexpr,
    own: tl.constexpr,
):
    """`own` tiles of the router's matrix from the `first` on, of some experts."""
    tiles = ()
    for number in tl.static_range(own):
        column = (first + number) * block_d + tl.arange(0, block_d)
        at = router_ptr + expert.to(tl.int64)[:, None] * width + column[None, :]
        mask = (expert < num_experts)[:, None] & (column < width)[None, :]
        tiles += (tl.load(at, mask=mask, other=0.0, eviction_policy="evict_first"),)  # type: ignore[assignment]
    return tiles


@triton.jit
def _logits(
    normed,
    router,
    expert,
    first,
    block_d: tl.constexpr,
    own: tl.constexpr,
    parts: tl.constexpr,
):
    """[experts, parts]: this program's parts of the logits, and in other columns nothing of use.

    Column s of the second factor is part s of the row: it is dealt out once for all products, and
    what a product has in a column does not depend on the others.
    """
    part = tl.arange(0, parts)[None, :]
    row = tl.trans(tl.reshape(normed, [parts, block_d]))
    logits = tl.zeros([expert.shape[0], parts], tl.float32)
    for number in tl.static_range(own):
        product = dot(router[number], row, tl.zeros([expert.shape[0], parts], tl.float32))
        logits = tl.where(part == first + number, product, logits)
    return logits


def norm_and_route(
    x_TD: Tensor,
    delta_TD: Delta,
    norm_D: Tensor,
    eps: float,
    router_ED: Tensor,
    bias_E: Tensor,
    arrived_T: Tensor,
    *,
    quantizes: bool,
    num_experts_per_token: int,
    norm_topk_prob: bool,
    scale: float,
) -> tuple[QuantizedRows, Tensor, tuple[Tensor, Tensor]] | None:
    """See `choice.norm_and_route`."""
    num_tokens, width = x_TD.shape
    num_experts = len(router_ED)
    if not 0 < num_tokens <= min(_MAX_TOKENS, len(arrived_T)) or isinstance(delta_TD, ExpertRows):
        return None
    tile, tiles, parts = split(num_tokens, num_experts, width)
    block, warps = row_shape(width)
    if num_experts > MAX_PLACED_EXPERTS or parts < _LEAST_PARTS or block != tile.block_d * parts:
        return None
    normed_TD, sum_TD = torch.empty_like(x_TD), torch.empty_like(x_TD)
    q_TD, scale_T1 = quantized_like(normed_TD) if quantizes else (normed_TD, normed_TD)
    logits_STE = bias_E.new_empty(parts, num_tokens, num_experts)
    weights_TK = bias_E.new_empty(num_tokens, num_experts_per_token)
    experts_TK = torch.empty_like(weights_TK, dtype=torch.int64)
    given, (kind, count, _) = terms(x_TD, delta_TD)
    launch(
        norm_route_kernel,
        (num_tokens, tiles[0], _GROUPS),
        *(x_TD, *given, norm_D, normed_TD, sum_TD, q_TD, scale_T1),
        *(router_ED, logits_STE, bias_E, weights_TK, experts_TK, arrived_T),
        *(eps, num_tokens, float(scale), width, block, kind, count, quantizes),
        *(num_experts, num_experts_per_token),
        *(tile.block_e, tile.block_d, _GROUPS),
        *(power_of_two(num_experts), power_of_two(num_experts_per_token), parts, norm_topk_prob),
        max(1, 32 * warps // power_of_two(num_experts)),
        warps=warps,
    )
    return QuantizedRows(normed_TD, q_TD, scale_T1), sum_TD, (weights_TK, experts_TK)
