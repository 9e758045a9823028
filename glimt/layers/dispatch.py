"""Experts that other replicas share: rows go to the ranks that have them, results come back.

    all-gather      every rank gets the rows of all replicas, computes those of its experts, and
                    a reduce-scatter sums the results of all ranks for each replica's rows
    all-to-all      a row goes only to ranks that have one of its experts, and each gives it back

Both run over the ranks of equal tp rank of all replicas; what comes back is this rank's part of the
sum over tp, as it is without other replicas. A row travels as bytes: its numbers (FP8 ones with
their scale, if experts are FP8; the result is then that of quantising on arrival, to the bit), and
the weights and places of its experts.

Letters: T own tokens, N rows of a message, D width, K experts of a token, B bytes, W replicas.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from glimt import kernels
from glimt.kernels import QuantizedRows
from glimt.layers.linear import FP8
from glimt.parallel.exchange import Exchange
from glimt.parallel.mesh import Mesh

Rows = Tensor | QuantizedRows
Compute = Callable[[Rows, Tensor, Tensor], Tensor]  # rows, weights, places of experts -> [N, D]

_ALIGNMENT = 16  # bytes; where kernels may begin to read


class Form(NamedTuple):
    """What a message's rows are made of."""

    width: int
    dtype: torch.dtype  # of the activations
    per_token: int
    is_fp8: bool

    @property
    def num_bytes(self) -> int:
        """Of a row."""
        numbers = self.width + 4 if self.is_fp8 else self.width * self.dtype.itemsize
        return -(-(numbers + 8 * self.per_token) // _ALIGNMENT) * _ALIGNMENT


def shared_experts(
    mesh: Mesh,
    num_places: int,
    compute: Compute,
    x: Rows,
    weights_TK: Tensor,
    places_TK: Tensor,
    exchange: Exchange,
    *,
    is_fp8: bool,
) -> Tensor:
    """[T, D]: this rank's column's part of each token's sum over its experts, wherever they are.

    `compute` gives [N, D] of rows for the experts of this rank, and zeros for all others.
    A collective operation of all replicas. T may be 0.
    """
    x_TD = x.x_TI if isinstance(x, QuantizedRows) else x
    form = Form(x_TD.shape[1], x_TD.dtype, weights_TK.shape[1], is_fp8)
    packed_TB = pack(x, weights_TK, places_TK, form)
    if exchange.deals:
        return _deal(mesh, num_places, compute, packed_TB, places_TK, form)
    num_rows = exchange.num_rows or len(packed_TB)
    rows = unpack(mesh.dp_gather(filled(packed_TB, num_rows)), form)
    return mesh.dp_scatter_sum(compute(*rows))[: len(packed_TB)]


def _deal(
    mesh: Mesh,
    num_places: int,
    compute: Compute,
    packed_TB: Tensor,
    places_TK: Tensor,
    form: Form,
) -> Tensor:
    """Each row to the replicas whose rank of this column has one of its experts, once."""
    replica_W = torch.arange(mesh.dp_size, device=places_TK.device)
    ranks_W11 = (replica_W * mesh.tp_size + mesh.tp_rank)[:, None, None]
    needs_WT = (places_TK // num_places == ranks_W11).any(-1)
    given_W = needs_WT.sum(1)
    ones = [1] * mesh.dp_size
    given, taken = torch.stack([given_W, mesh.dp_deal(given_W, ones, ones)]).tolist()
    replica_N, token_N = needs_WT.nonzero(as_tuple=True)
    rows = unpack(mesh.dp_deal(packed_TB[token_N], given, taken), form)
    back_ND = mesh.dp_deal(compute(*rows), taken, given)
    parts_WTD = back_ND.new_zeros(mesh.dp_size, *packed_TB.shape[:1], form.width)
    parts_WTD[replica_N, token_N] = back_ND
    return parts_WTD.float().sum(0).to(form.dtype)


def pack(x: Rows, weights_TK: Tensor, places_TK: Tensor, form: Form) -> Tensor:
    """uint8 [T, B]. Places are counted from 1, so that a row of zeros has no expert."""
    if form.is_fp8:
        rows = x if isinstance(x, QuantizedRows) else QuantizedRows(x, *kernels.quantize_rows(x))
        parts = [rows.q_TI, rows.scale_T1]
    else:
        parts = [x.x_TI if isinstance(x, QuantizedRows) else x]
    parts += [weights_TK, (places_TK + 1).int()]
    parts_TB = [part.contiguous().view(torch.uint8) for part in parts]
    missing = form.num_bytes - sum(part.shape[1] for part in parts_TB)
    if missing:
        parts_TB.append(parts_TB[0].new_zeros(len(weights_TK), missing))
    return torch.cat(parts_TB, 1)


def unpack(rows_NB: Tensor, form: Form) -> tuple[Rows, Tensor, Tensor]:
    """(rows, weights float32 [N, K], places int64 [N, K]); the place of no expert is -1."""
    width, per_token = form.width, form.per_token
    if form.is_fp8:
        q_ND, scale_N1, rest_NB = _cut(rows_NB, FP8, width, torch.float32, 1)
        # Only the type and the shape of what was quantised are looked at any more.
        x: Rows = QuantizedRows(q_ND.new_empty(q_ND.shape, dtype=form.dtype), q_ND, scale_N1)
        weights_NK, places_NK, _ = _cut(rest_NB, torch.float32, per_token, torch.int32, per_token)
        return x, weights_NK, places_NK.long() - 1
    num_bytes = width * form.dtype.itemsize
    x = rows_NB[:, :num_bytes].contiguous().view(form.dtype)
    rest_NB = rows_NB[:, num_bytes:]
    weights_NK, places_NK, _ = _cut(rest_NB, torch.float32, per_token, torch.int32, per_token)
    return x, weights_NK, places_NK.long() - 1


def _cut(
    rows_NB: Tensor, first: torch.dtype, num_first: int, second: torch.dtype, num_second: int
) -> tuple[Tensor, Tensor, Tensor]:
    """So many numbers of one type, then of another, and the bytes behind them."""
    middle = num_first * first.itemsize
    end = middle + num_second * second.itemsize
    one = rows_NB[:, :middle].contiguous().view(first)
    return one, rows_NB[:, middle:end].contiguous().view(second), rows_NB[:, end:]


def filled(rows_TB: Tensor, num_rows: int) -> Tensor:
    """With rows of zeros, up to `num_rows`."""
    missing = num_rows - len(rows_TB)
    if not missing:
        return rows_TB
    return torch.cat([rows_TB, rows_TB.new_zeros(missing, rows_TB.shape[1])])
