"""The definitions of routing and of the experts' feed-forward, in plain torch.

Letters: T tokens, D width, I expert width, E experts, K experts of a token.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from glimt.kernels.reference import QuantizedRows, fp8_linear, linear, silu_mul, silu_mul_quantize


class Fp8Mlp(NamedTuple):
    """The e4m3 weights and float32 scales of one feed-forward, or of E experts' ([E, ...])."""

    gate_up: Tensor  # [F, D]
    gate_up_scale: Tensor  # [F]
    down: Tensor  # [D, I]
    down_scale: Tensor  # [D]


def route(
    x_TD: Tensor,
    weight_ED: Tensor,
    bias_E: Tensor,
    *,
    num_experts_per_token: int,
    num_groups: int,
    num_groups_per_token: int,
    norm_topk_prob: bool,
    scale: float,
    first_expert: int = 0,
) -> tuple[Tensor, Tensor]:
    """(weights float32 [T, K], experts int64 [T, K]) of every token, all in float32.

    s = sigmoid(W x); the K largest s + bias are taken, weighted by their s (the bias only selects).
    With several groups, only experts of the best groups count; a group's score is the sum of its
    two best biased scores. Experts are counted from `first_expert`: those before it are negative.
    """
    scores_TE = _sigmoid(linear(x_TD.float(), weight_ED.float()))
    biased_TE = scores_TE + bias_E
    if num_groups > 1:
        biased_TE = _keep_best_groups(biased_TE, num_groups, num_groups_per_token)
    experts_TK = biased_TE.topk(num_experts_per_token, dim=-1, sorted=False).indices
    weights_TK = scores_TE.gather(-1, experts_TK)
    if norm_topk_prob:
        weights_TK = weights_TK / (weights_TK.sum(-1, keepdim=True) + 1e-20)
    if first_expert:
        experts_TK = experts_TK - first_expert
    return weights_TK * scale, experts_TK


def _sigmoid(x: Tensor) -> Tensor:
    """float32. CPUs go through float64: their float32 loop rounds the end of a tensor otherwise
    than the same numbers elsewhere in it."""
    return x.sigmoid() if x.is_cuda else x.double().sigmoid().float()


def _keep_best_groups(biased_TE: Tensor, num_groups: int, num_kept: int) -> Tensor:
    """Minus infinity outside the `num_kept` best groups of each token."""
    grouped = biased_TE.view(biased_TE.shape[0], num_groups, -1)
    best_two = grouped.topk(min(2, grouped.shape[-1]), dim=-1).values
    kept = best_two.sum(-1).topk(num_kept, dim=-1).indices
    outside = torch.ones(grouped.shape[:2], dtype=torch.bool, device=biased_TE.device)
    outside.scatter_(1, kept, False)
    return grouped.masked_fill(outside[..., None], float("-inf")).flatten(-2)


def grouped_experts(
    x_TD: Tensor,
    weights_TK: Tensor,
    experts_TK: Tensor,
    gate_up_EFD: Tensor,
    down_EDI: Tensor,
) -> Tensor:
    """sum over k of w_k · down_k(silu(gate_k x) · up_k x) -> [T, D] in the dtype of x.

    Experts outside 0 … E - 1 are computed elsewhere and count nothing here. The sum is taken in
    float32, in the order of the experts' numbers.
    """
    y_TD = torch.zeros_like(x_TD, dtype=torch.float32)
    for expert, token_M, weight_M1 in _by_expert(weights_TK, experts_TK, gate_up_EFD.shape[0]):
        h_MI = silu_mul(linear(x_TD[token_M], gate_up_EFD[expert]))
        y_TD.index_add_(0, token_M, linear(h_MI, down_EDI[expert]).float() * weight_M1)
    return y_TD.to(x_TD.dtype)


def fp8_grouped_experts(
    x: Tensor | QuantizedRows,
    weights_TK: Tensor,
    experts_TK: Tensor,
    gate_up_EFD: Tensor,
    gate_up_scale_EF: Tensor,
    down_EDI: Tensor,
    down_scale_ED: Tensor,
) -> Tensor:
    """`grouped_experts` with e4m3 weights and one float32 scale for each output row.

    The input is quantised once for each token, the input of `down` for each (token, expert).
    """
    x_TD, q8_TD, scale_T1 = QuantizedRows.of(x)
    y_TD = torch.zeros_like(x_TD, dtype=torch.float32)
    q_TD = q8_TD.float()  # e4m3 values are exact in float32, and CPUs cannot gather e4m3 rows
    for expert, token_M, weight_M1 in _by_expert(weights_TK, experts_TK, gate_up_EFD.shape[0]):
        gate_up_MF = linear(q_TD[token_M], gate_up_EFD[expert].float())
        gate_up_MF = gate_up_MF * scale_T1[token_M] * gate_up_scale_EF[expert]
        _, q_MI, scale_M1 = silu_mul_quantize(gate_up_MF.to(x_TD.dtype))
        down_MD = linear(q_MI.float(), down_EDI[expert].float())
        down_MD = (down_MD * scale_M1 * down_scale_ED[expert]).to(x_TD.dtype)
        y_TD.index_add_(0, token_M, down_MD.float() * weight_M1)
    return y_TD.to(x_TD.dtype)


def fp8_moe(
    x: Tensor | QuantizedRows,
    weights_TK: Tensor,
    experts_TK: Tensor,
    routed: Fp8Mlp,
    shared: Fp8Mlp,
) -> Tensor:
    """`fp8_grouped_experts` of the routed experts plus the shared one's feed-forward."""
    rows = QuantizedRows.of(x)
    gate_up_TF = fp8_linear(rows, shared.gate_up, shared.gate_up_scale)
    shared_TD = fp8_linear(silu_mul_quantize(gate_up_TF), shared.down, shared.down_scale)
    return fp8_grouped_experts(rows, weights_TK, experts_TK, *routed) + shared_TD


def _by_expert(
    weights_TK: Tensor, experts_TK: Tensor, num_experts: int
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """(expert, its tokens [M], their weights [M, 1]) of every expert here that has tokens."""
    for expert in torch.unique(experts_TK).tolist():
        if 0 <= expert < num_experts:
            token_M, slot_M = torch.where(experts_TK == expert)
            yield expert, token_M, weights_TK[token_M, slot_M, None]
