"""Chooses between a definition and its Triton twin; what the models get under the operation's name.

The twin runs on CUDA tensors of bfloat16 whose rows are dense and aligned, where Triton works.
"""

from typing import Any

import torch
from torch import Tensor

from glimt.kernels import pending, reference, reference_experts
from glimt.kernels.pending import Delta, ExpertRows, tensors_of
from glimt.kernels.reference import MeasuredRows, QuantizedRows
from glimt.kernels.reference_experts import Fp8Mlp
from glimt.kernels.twins import (
    has_twin,
    runs_on,
    triton_experts,
    triton_linear,
    triton_norm_route,
    triton_plan,
    triton_router,
    triton_rows,
)

# Whether norms carry out the sums of the branches before them (`pending`).
DEFERS = True


def quantize_rows(x_TI: Tensor) -> tuple[Tensor, Tensor]:
    """See `reference.quantize_rows`."""
    return _of_rows(x_TI).quantize_rows(x_TI)  # type: ignore[no-any-return]


def rms_norm(x_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """See `reference.rms_norm`."""
    return _of_rows(x_TD, weight_D).rms_norm(x_TD, weight_D, eps)  # type: ignore[no-any-return]


def add_rms_norm(
    x_TD: Tensor, delta_TD: Delta, weight_D: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """See `reference.add_rms_norm`; the delta may be a sum that is still to be carried out."""
    chosen, given = _of_sums(x_TD, delta_TD, weight_D)
    return chosen.add_rms_norm(x_TD, given, weight_D, eps)  # type: ignore[no-any-return]


def add_rms_norm_quantize(
    x_TD: Tensor, delta_TD: Delta | None, weight_D: Tensor, eps: float
) -> tuple[QuantizedRows, Tensor]:
    """See `reference.add_rms_norm_quantize`; as for `add_rms_norm`."""
    chosen, given = _of_sums(x_TD, delta_TD, weight_D)
    return chosen.add_rms_norm_quantize(x_TD, given, weight_D, eps)  # type: ignore[no-any-return]


def silu_mul(gate_up_TF: Tensor) -> Tensor:
    """See `reference.silu_mul`."""
    return _of_rows(gate_up_TF).silu_mul(gate_up_TF)  # type: ignore[no-any-return]


def silu_mul_quantize(gate_up_TF: Tensor, *, keeps: bool = True) -> QuantizedRows:
    """See `reference.silu_mul_quantize`."""
    rows: QuantizedRows = _of_rows(gate_up_TF).silu_mul_quantize(gate_up_TF, keeps=keeps)
    return rows


def fp8_linear(
    x: Tensor | QuantizedRows | MeasuredRows,
    weight_OI: Tensor,
    weight_scale_O: Tensor,
    bias_O: Tensor | None = None,
    *,
    defers: bool = False,
) -> Delta:
    """See `reference.fp8_linear`. With `defers` the sum may be left to the norm that follows."""
    rows: QuantizedRows | MeasuredRows
    if isinstance(x, Tensor):
        rows = QuantizedRows(x, *quantize_rows(x))
    else:
        rows = x
    few = triton_linear is not None and rows.x_TI.shape[0] <= triton_linear.MAX_ROWS
    if few and weight_OI.shape[1] % 16 == 0 and has_twin(*rows, weight_OI, weight_scale_O, bias_O):
        y_TO: Delta = triton_linear.fp8_linear(
            rows, weight_OI, weight_scale_O, bias_O, defers=defers and DEFERS
        )
        return y_TO
    if isinstance(rows, MeasuredRows):
        rows = QuantizedRows(rows.x_TI, *quantize_rows(rows.x_TI))
    return reference.fp8_linear(rows, weight_OI, weight_scale_O, bias_O)


def settled(delta_TD: Delta) -> Tensor:
    """The branch itself: the sum that was left to a norm, in a launch of its own."""
    if isinstance(delta_TD, Tensor):
        return delta_TD
    # It was made by a kernel, so there is one that carries it out.
    if isinstance(delta_TD, ExpertRows):
        y_TD: Tensor = triton_experts.sum_of_rows(delta_TD)
    else:
        y_TD = triton_linear.sum_of_parts(delta_TD)
    return y_TD


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
    """See `reference_experts.route`."""
    is_plain = num_groups == 1 and x_TD.shape[1] % 16 == 0 and weight_ED.dtype == x_TD.dtype
    if (
        is_plain
        and has_twin(x_TD, weight_ED, bias_E)
        and len(weight_ED) <= triton_router.MAX_EXPERTS
    ):
        routed: tuple[Tensor, Tensor] = triton_router.route(
            x_TD,
            weight_ED,
            bias_E,
            num_experts_per_token=num_experts_per_token,
            norm_topk_prob=norm_topk_prob,
            scale=scale,
            first_expert=first_expert,
        )
        return routed
    return reference_experts.route(
        x_TD,
        weight_ED,
        bias_E,
        num_experts_per_token=num_experts_per_token,
        num_groups=num_groups,
        num_groups_per_token=num_groups_per_token,
        norm_topk_prob=norm_topk_prob,
        scale=scale,
        first_expert=first_expert,
    )


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
    num_groups: int,
    num_groups_per_token: int,
    norm_topk_prob: bool,
    scale: float,
) -> tuple[QuantizedRows, Tensor, tuple[Tensor, Tensor]] | None:
    """(the norm's rows, x + delta, `route` of those rows); as `add_rms_norm_quantize` and `route`.

    `arrived_T`: int32 zeros that are left as zeros, of one that no other call uses at the same
    time; one for each token that may come.
    None where one kernel is not for it: several tokens, a row that it cannot split evenly, groups.
    Unless it `quantizes`, only the rows themselves mean something.
    """
    if triton_norm_route is None or num_groups > 1 or router_ED.dtype != x_TD.dtype:
        return None
    tensors = (x_TD, *tensors_of(delta_TD), norm_D, router_ED, bias_E)
    if not has_twin(*tensors) or x_TD.shape[1] % 16:
        return None
    done: tuple[QuantizedRows, Tensor, tuple[Tensor, Tensor]] | None
    done = triton_norm_route.norm_and_route(
        *(x_TD, delta_TD, norm_D, eps, router_ED, bias_E, arrived_T),
        quantizes=quantizes,
        num_experts_per_token=num_experts_per_token,
        norm_topk_prob=norm_topk_prob,
        scale=scale,
    )
    return done


def fp8_few_experts(
    rows: QuantizedRows,
    weights_TK: Tensor,
    experts_TK: Tensor,
    routed: Fp8Mlp,
    shared: Fp8Mlp | None = None,
    *,
    defers: bool = False,
) -> Delta | None:
    """`reference_experts.fp8_moe`, or without a shared expert `fp8_grouped_experts`, of few tokens.

    None where that is not for a kernel: many tokens, a shared expert wider than the others.
    """
    if triton_experts is None or experts_TK.shape[0] > triton_experts.MAX_TOKENS:
        return None
    if shared is not None and not _is_as_narrow(shared, routed):
        return None
    dense = has_twin(*rows, weights_TK, experts_TK, *routed, *(shared or ()))
    if not dense or routed.down.shape[1] % 16 or routed.down.shape[2] % 16:
        return None
    y_TD: Delta = triton_experts.fp8_experts(
        rows, weights_TK, experts_TK, routed, shared, defers=defers and DEFERS
    )
    return y_TD


def _is_as_narrow(shared: Fp8Mlp, routed: Fp8Mlp) -> bool:
    """As the routed experts; whole ones are wider than this rank's share of the shared expert."""
    width = shared.down.shape[1]
    return width <= routed.down.shape[2] and width % 16 == 0


def sort_by_expert(experts_TK: Tensor, num_experts: int) -> tuple[Tensor, Tensor, Tensor] | None:
    """See `experts.sort_by_expert`; None if no kernel is there."""
    if not runs_on(experts_TK.device) or not experts_TK.is_contiguous():
        return None
    token_M, row_P, ends_E = triton_plan.sort_by_expert(experts_TK, num_experts)
    return token_M, row_P, ends_E


def gather_rows(rows: QuantizedRows, token_M: Tensor) -> tuple[Tensor, Tensor]:
    """(e4m3 rows [M, I], scales [M]) of the tokens."""
    if has_twin(*rows, token_M) and rows.q_TI.shape[1] % 16 == 0:
        q_MI, scale_M = triton_rows.gather_rows(rows.q_TI, rows.scale_T1, token_M)
        return q_MI, scale_M
    q_MI = rows.q_TI.view(torch.uint8)[token_M].view(rows.q_TI.dtype)  # e4m3 cannot be indexed
    return q_MI, rows.scale_T1[token_M, 0]


def combine_pairs(
    part_PD: Tensor,
    weights_TK: Tensor,
    experts_TK: Tensor,
    num_experts: int,
    row_P: Tensor,
    shared_TD: Tensor | None,
) -> Tensor | None:
    """Each token's weighted sum of its rows, pair p's at row_P[p]; None if no kernel is there."""
    if not has_twin(part_PD, weights_TK, experts_TK, shared_TD):
        return None
    y_TD: Tensor = triton_experts.combine(
        part_PD, weights_TK, experts_TK, num_experts, row_P, shared_TD
    )
    return y_TD


def _of_sums(x: Tensor, delta: Delta | None, weight: Tensor) -> tuple[Any, Delta | None]:
    """`_of_rows` for a norm, and the delta as that module takes it."""
    if delta is None or isinstance(delta, Tensor):
        return _of_rows(x, delta, weight), delta
    chosen = _of_rows(x, *tensors_of(delta), weight)
    return chosen, pending.settled(delta) if chosen is reference else delta


def _of_rows(x: Tensor, *others: Tensor | None) -> Any:
    """The module with the operations on whole rows."""
    if has_twin(x, *others) and x.shape[-1] % 16 == 0 and x.shape[-1] <= 2 * triton_rows.MAX_WIDTH:
        return triton_rows
    return reference
