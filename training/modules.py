"""Building blocks that the trainable decoder and the trainable tower share.

They compute what glimt/layers computes, with gradients and without a KV cache. Weights and
activations have one dtype (bfloat16 on CUDA): what the forward pass multiplies with are exactly
the numbers that an exported file would hold. Float32 masters live in `training.weights`.

Letters: T rows, D width, F = 2I, N heads, H head dim, J rotary pairs.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class RmsNorm(nn.Module):
    """g · x / sqrt(mean(x²) + eps)."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size))
        self.eps = eps

    def forward(self, x_TD: Tensor) -> Tensor:
        """[T, D] -> [T, D]."""
        return functional.rms_norm(x_TD, self.weight.shape, self.weight, self.eps)


class Mlp(nn.Module):
    """down(silu(gate x) · up x); gate and up are one matrix, gate rows first."""

    def __init__(self, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.gate_up = nn.Linear(hidden_size, 2 * intermediate_size, bias=False)
        self.down = nn.Linear(intermediate_size, hidden_size, bias=False)

    def forward(self, x_TD: Tensor) -> Tensor:
        """[T, D] -> [T, D]."""
        y_TD: Tensor = self.down(silu_mul(self.gate_up(x_TD)))
        return y_TD


def silu_mul(gate_up_TF: Tensor) -> Tensor:
    """silu(gate) · up of rows [gate, up] -> [T, I]."""
    gate_TI, up_TI = gate_up_TF.chunk(2, dim=-1)
    return functional.silu(gate_TI) * up_TI


class _Turn(torch.autograd.Function):
    """Rotation is linear and orthogonal: its gradient is the turn back, and nothing is saved."""

    @staticmethod
    def forward(ctx: Any, x_TNH: Tensor, cos_T1: Tensor, sin_T1: Tensor) -> Tensor:
        ctx.save_for_backward(cos_T1, sin_T1)
        return _turned(x_TNH, cos_T1, sin_T1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        cos_T1, sin_T1 = ctx.saved_tensors
        return _turned(grads[0], cos_T1, -sin_T1), None, None


def _turned(x_TNH: Tensor, cos_T1: Tensor, sin_T1: Tensor) -> Tensor:
    """`turn` in float32, cast back. cos and sin are [T, 1, 2J], sin with its signs."""
    width = cos_T1.shape[-1]
    first = x_TNH[..., :width].float()
    swapped = torch.roll(first, width // 2, dims=-1)
    turned = torch.addcmul(first * cos_T1, swapped, sin_T1).to(x_TNH.dtype)
    if width == x_TNH.shape[-1]:
        return turned
    return torch.cat((turned, x_TNH[..., width:]), dim=-1)


class Angles:
    """Rotary angles of all rows, for half-split pairs (j, j + J) in the first 2J dims."""

    def __init__(self, angles_TJ: Tensor) -> None:
        cos_TJ, sin_TJ = angles_TJ.cos(), angles_TJ.sin()
        self.cos_T1 = torch.cat((cos_TJ, cos_TJ), dim=-1)[:, None]
        self.sin_T1 = torch.cat((-sin_TJ, sin_TJ), dim=-1)[:, None]

    def turn(self, x_TNH: Tensor) -> Tensor:
        """x with every head of row t turned by the angles of t; other dims pass unchanged."""
        turned: Tensor = _Turn.apply(x_TNH, self.cos_T1, self.sin_T1)  # type: ignore[no-untyped-call]
        return turned
