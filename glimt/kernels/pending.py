"""Sums that a branch leaves to the norm that follows it, which saves a launch and a pass each.

`total` is the definition; `triton_rows` adds the same terms in the same order, so that it makes no
difference to any bit who carries a sum out. Letters: T tokens, D width, K experts of a token.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class LinearParts(NamedTuple):
    """y = s_x · s_w · Σ_S part, rounded to bfloat16: an FP8 product whose inputs were split."""

    part_STD: Tensor  # float32
    scale_T1: Tensor
    weight_scale_D: Tensor

    def total(self) -> Tensor:
        """y [T, D]."""
        sum_TD = torch.zeros_like(self.part_STD[0])
        for part_TD in self.part_STD:
            sum_TD += part_TD
        return (sum_TD * self.scale_T1 * self.weight_scale_D).bfloat16()


ALL_HERE = 0  # for a number of experts: nobody needs to look whether one is here


class ExpertRows(NamedTuple):
    """y = Σ_k w_k · row_k, in float32, rounded to bfloat16: the experts' output rows.

    Rows are those of `experts_TK` in order, then one of the shared expert for each token, if there
    is one. Rows of experts outside [0, num_experts) are not set, and do not count; with ALL_HERE
    there are none.
    """

    row_PD: Tensor  # bfloat16
    weights_TK: Tensor
    experts_TK: Tensor
    num_experts: int
    has_shared: bool

    def total(self) -> Tensor:
        """y [T, D]."""
        num_tokens, per_token = self.weights_TK.shape
        num_routed = num_tokens * per_token
        row_TKD = self.row_PD[:num_routed].view(num_tokens, per_token, -1).float()
        is_here_TK = (self.experts_TK >= 0) & (self.experts_TK < self.num_experts)
        if self.num_experts == ALL_HERE:
            is_here_TK = torch.ones_like(is_here_TK)
        sum_TD = torch.zeros_like(row_TKD[:, 0])
        for k in range(per_token):
            is_here_T1 = is_here_TK[:, k, None]
            sum_TD += torch.where(is_here_T1, row_TKD[:, k], 0.0) * self.weights_TK[:, k, None]
        if self.has_shared:
            sum_TD += self.row_PD[num_routed:].float()
        return sum_TD.bfloat16()


Delta = Tensor | LinearParts | ExpertRows


def tensors_of(delta_TD: Delta) -> tuple[Tensor, ...]:
    """All that it is made of."""
    if isinstance(delta_TD, Tensor):
        return (delta_TD,)
    return tuple(part for part in delta_TD if isinstance(part, Tensor))


def settled(delta_TD: Delta) -> Tensor:
    """The branch itself, by the definition."""
    return delta_TD if isinstance(delta_TD, Tensor) else delta_TD.total()
