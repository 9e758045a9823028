"""The definition of messages that carry rows to experts elsewhere, and of taking them apart.

A message is uint8 [N, B]. A row of it: the row's numbers, its scale if they are e4m3, the weights
of its K experts, their places counted from 1, and zeros up to a multiple of 16 bytes. So a row of
zeros has no expert.
"""

from typing import NamedTuple

import torch
from torch import Tensor

ALIGNMENT = 16  # bytes; where kernels may begin to read


class RowForm(NamedTuple):
    """What the rows of a message are made of."""

    width: int
    dtype: torch.dtype  # of the numbers that travel: e4m3 with a scale, or the activations' own
    per_token: int

    @property
    def has_scale(self) -> bool:
        """Whether each row has one."""
        return self.dtype == torch.float8_e4m3fn

    @property
    def value_bytes(self) -> int:
        """Of a row's numbers."""
        return self.width * self.dtype.itemsize

    @property
    def num_bytes(self) -> int:
        """B."""
        used = self.value_bytes + 4 * self.has_scale + 8 * self.per_token
        return -(-used // ALIGNMENT) * ALIGNMENT


def pack_rows(
    values_TD: Tensor,
    scale_T1: Tensor | None,
    weights_TK: Tensor,
    places_TK: Tensor,
    num_rows: int,
) -> Tensor:
    """The message of T rows, with rows of zeros up to `num_rows`: uint8 [N, B].

    `places_TK` int64, -1 = none.
    """
    form = RowForm(values_TD.shape[1], values_TD.dtype, weights_TK.shape[1])
    scales = [] if scale_T1 is None else [scale_T1]
    parts = [values_TD, *scales, weights_TK, (places_TK + 1).int()]
    message_NB = values_TD.new_zeros(num_rows, form.num_bytes, dtype=torch.uint8)
    packed_TB = torch.cat([part.contiguous().view(torch.uint8) for part in parts], 1)
    message_NB[: len(packed_TB), : packed_TB.shape[1]] = packed_TB
    return message_NB


def unpack_rows(message_NB: Tensor, form: RowForm) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """(numbers [N, D], scales [N, 1] or None, weights float32 [N, K], places int64 [N, K])."""
    per_token = form.per_token
    values = _cut(message_NB, 0, form.dtype, form.width)
    at = form.value_bytes
    scale = None
    if form.has_scale:
        scale, at = _cut(message_NB, at, torch.float32, 1), at + 4
    weights = _cut(message_NB, at, torch.float32, per_token)
    places = _cut(message_NB, at + 4 * per_token, torch.int32, per_token)
    return values, scale, weights, places.long() - 1


def _cut(message_NB: Tensor, at: int, dtype: torch.dtype, count: int) -> Tensor:
    """So many numbers of each row, from a byte on."""
    return message_NB[:, at : at + count * dtype.itemsize].contiguous().view(dtype)
