"""The router in Triton: scores split over the inputs, then a token's best experts.

The twin of `reference_experts.route` for one group. Products of bfloat16 are exact in float32, so
this is the definition's float32 up to the order of the sum. Of equal scores the first expert wins.
`triton_norm_route` does for one token what these two kernels and the norm before them do.

Letters: T tokens, K experts of a token, D width, E experts, S parts of the sum.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from glimt.kernels.triton_support import launch, power_of_two, stream, tiles_of

MAX_EXPERTS = 1024
# Up to so many, all places are found at once, by comparing each expert with each: that is faster
# where one token after the other is waited for, and more work where there are many.
_MAX_PLACED_TOKENS, MAX_PLACED_EXPERTS = 64, 256
_MAX_PARTS = 16
_PROGRAMS = 128  # about one for each processor


class Tile(NamedTuple):
    """Experts, tokens and inputs of a step of a program."""

    block_e: int
    block_t: int
    block_d: int
    stages: int


def _tile(num_tokens: int, num_experts: int) -> Tile:
    """Few tokens: many programs with a few experts each, which read the matrix once. Many: all
    experts in one program if they fit, so that tokens are read once."""
    if num_tokens <= 64:
        return Tile(16, max(16, power_of_two(num_tokens)), 256, 3)
    return Tile(max(16, min(128, power_of_two(num_experts))), 64, 64, 4)


@triton.jit(do_not_specialize=["num_tokens"])
def logits_kernel(
    x_ptr,
    weight_ptr,
    logit_ptr,
    num_tokens,
    num_inputs: tl.constexpr,
    num_experts: tl.constexpr,
    block_t: tl.constexpr,
    block_e: tl.constexpr,
    block_d: tl.constexpr,
    parts: tl.constexpr,
):
    """One part of the logits of a tile of experts and tokens."""
    token = tl.program_id(1) * block_t + tl.arange(0, block_t)
    expert = tl.program_id(0) * block_e + tl.arange(0, block_e)
    part = tl.program_id(2)
    is_expert = expert < num_experts
    is_token = token < num_tokens
    total = stream(
        weight_ptr,
        x_ptr,
        expert,
        token,
        is_expert,
        is_token,
        None,
        num_inputs,
        block_d,
        part,
        parts,
    )
    row = (part.to(tl.int64) * num_tokens + token)[None, :]
    mask = is_expert[:, None] & is_token[None, :]
    tl.store(logit_ptr + row * num_experts + expert[:, None], total, mask=mask)


@triton.jit
def _total(weights):
    """Their sum, not quite 0, to the same bit in whatever order they come: float64 rounds later."""
    return tl.sum(weights.to(tl.float64), axis=0).to(tl.float32) + 1e-20


@triton.jit
def biases(bias_ptr, num_experts: tl.constexpr, block_e: tl.constexpr, lines: tl.constexpr = 1):
    """[lines, experts], of which the first line is filled; for `select`, which needs them late.

    Of fewer numbers than threads Triton would let each thread read all that it compares.
    """
    place = tl.arange(0, lines)[:, None] * block_e + tl.arange(0, block_e)[None, :]
    return tl.load(bias_ptr + place, mask=place < num_experts, other=0.0)


@triton.jit
def _scores(
    logit_ptr,
    bias,
    token,
    num_tokens,
    num_experts: tl.constexpr,
    block_e: tl.constexpr,
    parts: tl.constexpr,
):
    """(experts, their scores, the same with the bias by which they are chosen) of one token."""
    expert = tl.arange(0, block_e)
    inside = expert < num_experts
    lines: tl.constexpr = bias.shape[0]
    place = tl.arange(0, lines)[:, None] * block_e + expert[None, :]
    logit = tl.zeros([lines, block_e], tl.float32)
    at = logit_ptr + token * num_experts + place
    for _ in tl.static_range(parts):
        # From the cache that all processors share: programs of this launch may have written them.
        logit += tl.load(at, mask=place < num_experts, other=0.0, cache_modifier=".cg")
        at += num_tokens * num_experts
    score = 1.0 / (1.0 + tl.exp(-tl.sum(logit, axis=0)))
    biased = tl.where(inside, score + tl.sum(bias, axis=0), float("-inf"))
    return expert, score, biased


@triton.jit
def _places(expert, biased):
    """The place of each expert among a token's: all at once, by comparing each with each.

    Of equal scores the first expert comes first, and scores that are no numbers come last.
    """
    biased = tl.where(biased == biased, biased, float("-inf"))
    is_more = biased[:, None] > biased[None, :]
    is_first = (biased[:, None] == biased[None, :]) & (expert[:, None] < expert[None, :])
    return tl.sum((is_more | is_first).to(tl.int32), axis=0)


@triton.jit
def _in_turn(
    expert,
    score,
    biased,
    num_experts: tl.constexpr,
    per_token: tl.constexpr,
    block_k: tl.constexpr,
):
    """(experts, their scores) in the order of their places; 0 behind the last one."""
    place = tl.arange(0, block_k)
    chosen = tl.zeros([block_k], tl.int32)
    weights = tl.zeros([block_k], tl.float32)
    for k in tl.static_range(per_token):
        best = tl.max(biased, axis=0)
        index = tl.min(tl.where(biased == best, expert, num_experts), axis=0)
        weight = tl.sum(tl.where(expert == index, score, 0.0), axis=0)
        biased = tl.where(expert == index, float("-inf"), biased)
        chosen = tl.where(place == k, index, chosen)
        weights = tl.where(place == k, weight, weights)
    return chosen, weights


@triton.jit(do_not_specialize=["num_tokens", "first_expert"])
def select_kernel(
    logit_ptr,
    bias_ptr,
    weight_ptr,
    expert_ptr,
    num_tokens,
    first_expert,
    scale,
    num_experts: tl.constexpr,
    per_token: tl.constexpr,
    block_e: tl.constexpr,
    block_k: tl.constexpr,
    parts: tl.constexpr,
    normalizes: tl.constexpr,
    at_once: tl.constexpr,
):
    """The experts of one token and their weights."""
    bias = biases(bias_ptr, num_experts, block_e)
    select(
        logit_ptr, bias, weight_ptr, expert_ptr, tl.program_id(0).to(tl.int64), num_tokens,
        first_expert, scale, num_experts, per_token, block_e, block_k, parts, normalizes, at_once,
    )  # fmt: skip


@triton.jit
def select(
    logit_ptr,
    bias,
    weight_ptr,
    expert_ptr,
    token,
    num_tokens,
    first_expert,
    scale,
    num_experts: tl.constexpr,
    per_token: tl.constexpr,
    block_e: tl.constexpr,
    block_k: tl.constexpr,
    parts: tl.constexpr,
    normalizes: tl.constexpr,
    at_once: tl.constexpr,
):
    """One token's experts and their weights; found `at_once`, or the best, then the next."""
    expert, weight, biased = _scores(
        logit_ptr, bias, token, num_tokens, num_experts, block_e, parts
    )
    if at_once:
        place = _places(expert, biased)
    else:
        expert, weight = _in_turn(expert, weight, biased, num_experts, per_token, block_k)
        place = tl.arange(0, block_k)
    is_taken = place < per_token
    if normalizes:
        weight = weight / _total(tl.where(is_taken, weight, 0.0))
    out = token * per_token + place
    tl.store(weight_ptr + out, weight * scale, mask=is_taken)
    tl.store(expert_ptr + out, expert.to(tl.int64) - first_expert, mask=is_taken)


def route(
    x_TD: Tensor,
    weight_ED: Tensor,
    bias_E: Tensor,
    *,
    num_experts_per_token: int,
    norm_topk_prob: bool,
    scale: float,
    first_expert: int = 0,
) -> tuple[Tensor, Tensor]:
    """See `reference_experts.route`."""
    num_tokens, num_experts = len(x_TD), len(weight_ED)
    weights_TK = bias_E.new_empty(num_tokens, num_experts_per_token)
    experts_TK = torch.empty_like(weights_TK, dtype=torch.int64)
    if not num_tokens:
        return weights_TK, experts_TK
    tile, tiles, parts = split(num_tokens, num_experts, x_TD.shape[1])
    logits_STE = x_TD.new_empty((parts, num_tokens, num_experts), dtype=torch.float32)
    product = (tile.block_t, tile.block_e, tile.block_d)
    choice = (power_of_two(num_experts), power_of_two(num_experts_per_token), parts, norm_topk_prob)
    chosen, counts = (bias_E, weights_TK, experts_TK), (num_experts, num_experts_per_token)
    given = (num_tokens, first_expert, float(scale))
    launch(
        logits_kernel,
        (*tiles, parts),
        *(x_TD, weight_ED, logits_STE),
        *(num_tokens, x_TD.shape[1], num_experts, *product, parts),
        warps=4,
        stages=tile.stages,
    )
    at_once = num_experts <= MAX_PLACED_EXPERTS and num_tokens <= _MAX_PLACED_TOKENS
    launch(
        select_kernel,
        (num_tokens, 1, 1),
        *(logits_STE, *chosen, *given, *counts, *choice),
        at_once,
        warps=4 if at_once else 1,
    )
    return weights_TK, experts_TK


def split(num_tokens: int, num_experts: int, num_inputs: int) -> tuple[Tile, tuple[int, int], int]:
    """How the sums are: the tile, how many there are of experts and of tokens, and S."""
    tile = _tile(num_tokens, num_experts)
    tiles = (tiles_of(num_experts, tile.block_e), tiles_of(num_tokens, tile.block_t))
    return tile, tiles, _num_parts(tiles[0] * tiles[1], num_inputs, tile.block_d)


def _num_parts(tiles: int, num_inputs: int, block_d: int) -> int:
    """So many parts that every processor has one, each of at least one step."""
    parts = 1
    while parts < _MAX_PARTS and tiles * parts < _PROGRAMS and num_inputs > block_d * parts:
        parts *= 2
    return parts
