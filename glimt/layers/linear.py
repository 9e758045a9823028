"""`Linear`: a matrix in the activations' dtype or in FP8. It multiplies and never communicates."""

import torch
from torch import Tensor, nn

from glimt import kernels
from glimt.kernels import Delta, Fp8Mlp, MeasuredRows, QuantizedRows

FP8 = torch.float8_e4m3fn


def parameter(*shape: int, dtype: torch.dtype | None = None) -> nn.Parameter:
    """An uninitialised parameter that takes no gradient, in the default dtype if none is given."""
    return nn.Parameter(torch.empty(shape, dtype=dtype), requires_grad=False)


def below(names: frozenset[str], child: str) -> frozenset[str]:
    """Those of the dotted `names` that lie inside `child`, as seen from there."""
    prefix = child + "."
    return frozenset(name.removeprefix(prefix) for name in names if name.startswith(prefix))


def plain(x: Tensor | QuantizedRows | MeasuredRows) -> Tensor:
    """[T, I]: the rows themselves, for who does not take them quantised."""
    return x if isinstance(x, Tensor) else x.x_TI


class Linear(nn.Module):
    """weight [O, I], optional bias [O], and iff FP8 a float32 weight_scale [O].

    Sizes are those of this rank. A column-parallel weight holds a share of the outputs (and of
    bias and scales); a row-parallel one a share of the inputs and all scales, and the block sums.
    """

    def __init__(
        self, num_inputs: int, num_outputs: int, *, bias: bool = False, fp8: bool = False
    ) -> None:
        super().__init__()
        self.weight = parameter(num_outputs, num_inputs, dtype=FP8 if fp8 else None)
        self.weight_scale = parameter(num_outputs, dtype=torch.float32) if fp8 else None
        self.bias = parameter(num_outputs) if bias else None

    def forward(self, x: Tensor | QuantizedRows) -> Tensor:
        """[T, I] -> [T, O] in the dtype of x."""
        return kernels.settled(self.branch(x, defers=False))

    def branch(self, x: Tensor | QuantizedRows | MeasuredRows, *, defers: bool) -> Delta:
        """`forward`, or with `defers` perhaps a sum for a norm to carry out."""
        if self.weight_scale is not None:
            return kernels.fp8_linear(x, self.weight, self.weight_scale, self.bias, defers=defers)
        return kernels.linear(plain(x), self.weight, self.bias)


class Mlp(nn.Module):
    """down(silu(gate x) · up x); gate and up are one matrix, gate rows first.

    Under tensor parallelism the result is this rank's part of the sum.
    """

    def __init__(
        self,
        hidden_size: int,
        intermediate_size: int,
        *,
        fp8: frozenset[str] = frozenset(),
    ) -> None:
        super().__init__()
        self.gate_up = Linear(hidden_size, 2 * intermediate_size, fp8="gate_up" in fp8)
        self.down = Linear(intermediate_size, hidden_size, fp8="down" in fp8)

    def fp8(self) -> Fp8Mlp | None:
        """All of it, if both matrices are FP8."""
        first, second = self.gate_up, self.down
        if first.weight_scale is None or second.weight_scale is None:
            return None
        return Fp8Mlp(first.weight, first.weight_scale, second.weight, second.weight_scale)

    def forward(self, x_TD: Tensor | QuantizedRows) -> Tensor:
        """[T, D] -> [T, D]."""
        gate_up_TF = self.gate_up(x_TD)
        inner: Tensor | QuantizedRows
        if self.down.weight_scale is not None:
            inner = kernels.silu_mul_quantize(gate_up_TF, keeps=False)
        else:
            inner = kernels.silu_mul(gate_up_TF)
        y_TD: Tensor = self.down(inner)
        return y_TD
