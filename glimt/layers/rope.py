"""`Angles`: cos and sin of a pass's rotary embedding, computed once and used by every layer."""

from dataclasses import dataclass

from torch import Tensor

from glimt import kernels


@dataclass(frozen=True, slots=True)
class Angles:
    """float32 [T, J] for J pairs in the first 2J dims of a head; the other dims do not turn."""

    cos_TJ: Tensor
    sin_TJ: Tensor
    interleaved: bool

    @staticmethod
    def of_text(
        positions_3T: Tensor,
        *,
        theta: float,
        rotary_dim: int,
        sections: tuple[int, int, int],
        interleaved: bool,
    ) -> "Angles":
        """The decoder's M-RoPE angles at int64 positions (temporal, height, width)."""
        cos_TJ, sin_TJ = kernels.rope_angles(positions_3T, theta, rotary_dim, sections)
        return Angles(cos_TJ, sin_TJ, interleaved)

    def turn(self, x_TNH: Tensor) -> Tensor:
        """x with every head of token t turned by the angles of t."""
        return kernels.rope(x_TNH, self.cos_TJ, self.sin_TJ, interleaved=self.interleaved)
