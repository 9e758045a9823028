"""`RmsNorm`, alone or of a sum: with the residual, over ranks; `LayerNorm` with a bias."""

from torch import Tensor, nn

from glimt import kernels
from glimt.kernels import Delta, QuantizedRows
from glimt.layers.linear import parameter
from glimt.parallel.mesh import Mesh


class RmsNorm(nn.Module):
    """g · x / sqrt(mean(x²) + eps); `quantizes` where an FP8 layer takes it."""

    def __init__(self, size: int, eps: float, *, quantizes: bool = False) -> None:
        super().__init__()
        self.weight = parameter(size)
        self.eps = eps
        self.quantizes = quantizes

    def forward(self, x_TD: Tensor) -> Tensor:
        """[T, D] -> [T, D]."""
        return kernels.rms_norm(x_TD, self.weight, self.eps)

    def add(self, x_TD: Tensor, delta_TD: Delta | None) -> tuple[Tensor, Tensor]:
        """(norm of x + delta, x + delta); a delta of None adds nothing."""
        if delta_TD is None:
            return self(x_TD), x_TD
        return kernels.add_rms_norm(x_TD, delta_TD, self.weight, self.eps)

    def add_rows(
        self, x_TD: Tensor, delta_TD: Delta | None
    ) -> tuple[Tensor | QuantizedRows, Tensor]:
        """`add`, with the norm also quantised if this one `quantizes`."""
        if self.quantizes:
            return kernels.add_rms_norm_quantize(x_TD, delta_TD, self.weight, self.eps)
        return self.add(x_TD, delta_TD)

    def add_parts(
        self, x_TD: Tensor, part_TD: Delta | None, mesh: Mesh
    ) -> tuple[Tensor | QuantizedRows, Tensor]:
        """`add_rows` of the sum over the tp axis of every rank's part; a collective operation."""
        if part_TD is None or mesh.tp_size == 1:
            return self.add_rows(x_TD, part_TD)
        if mesh.norm_sums is not None:
            done: tuple[Tensor | QuantizedRows, Tensor] | None = mesh.norm_sums.add_rms_norm(
                x_TD, part_TD, self.weight, self.eps, quantizes=self.quantizes
            )
            if done is not None:
                return done
        return self.add_rows(x_TD, mesh.tp_sum(kernels.settled(part_TD)))


class LayerNorm(nn.Module):
    """(x - mean) / sqrt(variance + eps) · g + b."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = parameter(size)
        self.bias = parameter(size)
        self.eps = eps

    def forward(self, x_TD: Tensor) -> Tensor:
        """[T, D] -> [T, D]."""
        return kernels.layer_norm(x_TD, self.weight, self.bias, self.eps)
