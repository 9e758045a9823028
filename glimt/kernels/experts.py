"""The experts' feed-forward on grouped GEMMs: no host sync, one launch for all experts.

Twins of `reference_experts.py`. Rows are sorted by expert; `ends_E` are the cumulative counts.
"""

import torch
from torch import Tensor

from glimt.kernels import choice, grouped, reference_experts
from glimt.kernels.choice import (
    fp8_few_experts,
    fp8_linear,
    quantize_rows,
    settled,
    silu_mul,
    silu_mul_quantize,
)
from glimt.kernels.pending import Delta
from glimt.kernels.reference import QuantizedRows
from glimt.kernels.reference_experts import Fp8Mlp


def grouped_experts(
    x_TD: Tensor, weights_TK: Tensor, experts_TK: Tensor, gate_up_EFD: Tensor, down_EDI: Tensor
) -> Tensor:
    """See `reference_experts.grouped_experts`."""
    if not x_TD.is_cuda or x_TD.dtype != torch.bfloat16:
        return reference_experts.grouped_experts(
            x_TD, weights_TK, experts_TK, gate_up_EFD, down_EDI
        )
    return _grouped(x_TD, weights_TK, experts_TK, gate_up_EFD, down_EDI)


def fp8_grouped_experts(
    x: Tensor | QuantizedRows,
    weights_TK: Tensor,
    experts_TK: Tensor,
    gate_up_EFD: Tensor,
    gate_up_scale_EF: Tensor,
    down_EDI: Tensor,
    down_scale_ED: Tensor,
) -> Tensor:
    """See `reference_experts.fp8_grouped_experts`."""
    rows = x if isinstance(x, QuantizedRows) else QuantizedRows(x, *quantize_rows(x))
    routed = Fp8Mlp(gate_up_EFD, gate_up_scale_EF, down_EDI, down_scale_ED)
    if not rows.x_TI.is_cuda or rows.x_TI.dtype != torch.bfloat16:
        return reference_experts.fp8_grouped_experts(rows, weights_TK, experts_TK, *routed)
    few_TD = fp8_few_experts(rows, weights_TK, experts_TK, routed)
    if few_TD is None:
        return _fp8_grouped(rows, weights_TK, experts_TK, routed)
    return settled(few_TD)


def _fp8_grouped(
    rows: QuantizedRows,
    weights_TK: Tensor,
    experts_TK: Tensor,
    routed: Fp8Mlp,
    shared_TD: Tensor | None = None,
) -> Tensor:
    """Of many tokens; the shared expert's rows, if any, are added."""
    token, row_P, ends_E = sort_by_expert(experts_TK, routed.down.shape[0])
    q_MD, scale_M = choice.gather_rows(rows, token)
    y_MD = grouped.outputs(q_MD, scale_M, ends_E, routed, rows.x_TI.dtype)
    return _sum_of_pairs(y_MD, weights_TK, experts_TK, row_P, ends_E, shared_TD)


def fp8_moe(
    x: Tensor | QuantizedRows,
    weights_TK: Tensor,
    experts_TK: Tensor,
    routed: Fp8Mlp,
    shared: Fp8Mlp,
    *,
    defers: bool = False,
) -> Delta:
    """See `reference_experts.fp8_moe`. With `defers` the sum may be left to a norm."""
    rows = x if isinstance(x, QuantizedRows) else QuantizedRows(x, *quantize_rows(x))
    few_TD = fp8_few_experts(rows, weights_TK, experts_TK, routed, shared, defers=defers)
    if few_TD is not None:
        return few_TD
    gate_up_TF = settled(fp8_linear(rows, shared.gate_up, shared.gate_up_scale))
    inner = silu_mul_quantize(gate_up_TF, keeps=False)
    shared_TD = settled(fp8_linear(inner, shared.down, shared.down_scale))
    if not rows.x_TI.is_cuda or rows.x_TI.dtype != torch.bfloat16:
        return fp8_grouped_experts(rows, weights_TK, experts_TK, *routed) + shared_TD
    return _fp8_grouped(rows, weights_TK, experts_TK, routed, shared_TD)


def _grouped(
    x_TD: Tensor, weights_TK: Tensor, experts_TK: Tensor, gate_up_EFD: Tensor, down_EDI: Tensor
) -> Tensor:
    """The bfloat16 path; torch's grouped GEMM also runs on CPU, where the tests compare it."""
    token, row_P, ends_E = sort_by_expert(experts_TK, gate_up_EFD.shape[0])
    x_MD = x_TD[token]
    gate_up_MF = torch._grouped_mm(x_MD, gate_up_EFD.transpose(1, 2), offs=ends_E)
    y_MD = torch._grouped_mm(silu_mul(gate_up_MF), down_EDI.transpose(1, 2), offs=ends_E)
    return _sum_of_pairs(y_MD, weights_TK, experts_TK, row_P, ends_E)


def sort_by_expert(experts_TK: Tensor, num_experts: int) -> tuple[Tensor, Tensor, Tensor]:
    """(token of each row [M], row of each pair [P], ends of the experts' rows int32 [E]).

    Rows are the (token, expert) pairs sorted by expert, those of other ranks' experts last.
    """
    found = choice.sort_by_expert(experts_TK, num_experts)
    if found is not None:
        return found
    expert_P = experts_TK.flatten()
    expert_P = torch.where((expert_P < 0) | (expert_P >= num_experts), num_experts, expert_P)
    counts = torch.zeros(num_experts + 1, dtype=torch.int64, device=expert_P.device)
    counts.scatter_add_(0, expert_P, torch.ones_like(expert_P))
    order_M = expert_P.argsort(stable=True)
    row_P = torch.empty_like(order_M)
    row_P[order_M] = torch.arange(len(order_M), device=order_M.device)
    return order_M // experts_TK.shape[1], row_P, counts[:-1].cumsum(0).to(torch.int32)


def _sum_of_pairs(
    y_MD: Tensor,
    weights_TK: Tensor,
    experts_TK: Tensor,
    row_P: Tensor,
    ends_E: Tensor,
    shared_TD: Tensor | None = None,
) -> Tensor:
    """Back to token order, weighted and summed over k, plus the shared expert's rows."""
    summed_TD = choice.combine_pairs(
        y_MD, weights_TK, experts_TK, ends_E.shape[0], row_P, shared_TD
    )
    if summed_TD is not None:
        return summed_TD
    y_TD = combine(y_MD, weights_TK, row_P, ends_E)
    return y_TD if shared_TD is None else y_TD + shared_TD


def combine(y_MD: Tensor, weights_TK: Tensor, row_P: Tensor, ends_E: Tensor) -> Tensor:
    """Each token's weighted sum of its rows in float32, in the dtype of y."""
    is_ours_P1 = (row_P < ends_E[-1])[:, None]  # the GEMMs leave the rows after the last end unset
    y32_PD = torch.where(is_ours_P1, y_MD[row_P].float() * weights_TK.view(-1, 1), 0.0)
    return y32_PD.view(*weights_TK.shape, -1).sum(1).to(y_MD.dtype)
