"""The two FP8 products of many tokens' experts, of rows sorted by expert.

Ours where Triton runs, else torch's, which takes tiles of 256 rows for wide experts, however few
rows they have. See docs/performance.md for what that costs.
"""

import torch
from torch import Tensor

from glimt.kernels.choice import silu_mul_quantize
from glimt.kernels.reference_experts import Fp8Mlp
from glimt.kernels.twins import runs_on, triton_grouped


def outputs(
    q_MD: Tensor, scale_M: Tensor, ends_E: Tensor, routed: Fp8Mlp, dtype: torch.dtype
) -> Tensor:
    """down(silu(gate x) · up x) of each row, by its expert -> [M, D] in `dtype`, not yet weighted.

    Row m belongs to the first expert e with m < ends_E[e]; rows from ends_E[-1] on are not set.
    """
    if runs_on(q_MD.device) and triton_grouped.takes(q_MD, scale_M, ends_E, routed):
        y_MD: Tensor = triton_grouped.outputs(q_MD, scale_M, ends_E, routed)
        return y_MD
    gate_up = (routed.gate_up, scale_M, routed.gate_up_scale)
    inner = silu_mul_quantize(_product(q_MD, *gate_up, ends_E, dtype), keeps=False)
    down = (routed.down, inner.scale_T1[:, 0], routed.down_scale)
    return _product(inner.q_TI, *down, ends_E, dtype)


def _product(
    q_MI: Tensor,
    weight_EOI: Tensor,
    scale_M: Tensor,
    weight_scale_EO: Tensor,
    ends_E: Tensor,
    dtype: torch.dtype,
) -> Tensor:
    """torch's."""
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
