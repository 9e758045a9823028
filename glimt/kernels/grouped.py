"""The two FP8 products of many tokens' experts, of rows sorted by expert: torch's, or our own.

torch takes its tile by the average of rows, inputs and outputs: 256 rows for the first product of
wide experts, however few rows they have. See docs/performance.md for what that costs.
"""

import torch
from torch import Tensor

from glimt.kernels.choice import silu_mul_quantize
from glimt.kernels.reference_experts import Fp8Mlp
from glimt.kernels.twins import runs_on, triton_grouped, triton_rows

# Up to how many rows of an expert, on average, the products are our own; 0: torch's always, until a
# GPU has shown from where on those are faster (`--switch own_grouped=300` of the benchmarks).
OWN_UP_TO = 0
# Which of `triton_grouped.CONFIGS` they take.
GATE_UP_TILE = 0
DOWN_TILE = 0
# Whether torch computes gates and ups as two products, for which it takes smaller tiles.
APART = False


def outputs(
    q_MD: Tensor, scale_M: Tensor, ends_E: Tensor, routed: Fp8Mlp, dtype: torch.dtype
) -> Tensor:
    """down(silu(gate x) · up x) of each row, by its expert -> [M, D] in `dtype`, not yet weighted.

    Row m belongs to the first expert e with m < ends_E[e]; rows from ends_E[-1] on are not set.
    """
    if _takes_own(q_MD, scale_M, ends_E, routed):
        return _own(q_MD, scale_M, ends_E, routed)
    q_MI, scale_M1 = _inner(q_MD, scale_M, ends_E, routed, dtype)
    return _product(q_MI, routed.down, scale_M1[:, 0], routed.down_scale, ends_E, dtype)


def _inner(
    q_MD: Tensor, scale_M: Tensor, ends_E: Tensor, routed: Fp8Mlp, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Quantised inner rows, by torch's product."""
    given = (q_MD, scale_M, ends_E, dtype)
    width = routed.down.shape[2]
    if APART and runs_on(q_MD.device) and width % 16 == 0:
        gate_MI, up_MI = (
            _product(
                q_MD, routed.gate_up[:, half], scale_M, routed.gate_up_scale[:, half], *given[2:]
            )
            for half in (slice(width), slice(width, None))
        )
        _, q_MI, scale_M1 = triton_rows.silu_mul_apart(gate_MI, up_MI)
        return q_MI, scale_M1
    gate_up_MF = _product(q_MD, routed.gate_up, scale_M, routed.gate_up_scale, *given[2:])
    _, q_MI, scale_M1 = silu_mul_quantize(gate_up_MF, keeps=False)
    return q_MI, scale_M1


def _product(
    q_MI: Tensor,
    weight_EOI: Tensor,
    scale_M: Tensor,
    weight_scale_EO: Tensor,
    ends_E: Tensor,
    dtype: torch.dtype,
) -> Tensor:
    y_MO: Tensor = torch._scaled_grouped_mm(
        q_MI,
        weight_EOI.transpose(1, 2),
        scale_M,
        weight_scale_EO,
        offs=ends_E,
        out_dtype=dtype,
        use_fast_accum=True,
    )
    return y_MO


def _takes_own(q_MD: Tensor, scale_M: Tensor, ends_E: Tensor, routed: Fp8Mlp) -> bool:
    if triton_grouped is None or q_MD.shape[0] > OWN_UP_TO * ends_E.shape[0]:
        return False
    return runs_on(q_MD.device) and triton_grouped.takes(q_MD, scale_M, ends_E, routed)


def _own(q_MD: Tensor, scale_M: Tensor, ends_E: Tensor, routed: Fp8Mlp) -> Tensor:
    """Both products by `triton_grouped`."""
    tiles = triton_grouped.CONFIGS
    y_MD: Tensor = triton_grouped.outputs(
        q_MD, scale_M, ends_E, routed, tiles[GATE_UP_TILE], tiles[DOWN_TILE]
    )
    return y_MD
