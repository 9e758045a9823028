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

import torch
from torch import Tensor

from glimt import kernels
from glimt.kernels import QuantizedRows, RowForm
from glimt.layers.linear import plain
from glimt.parallel.exchange import Exchange
from glimt.parallel.mesh import Mesh

Rows = Tensor | QuantizedRows
Compute = Callable[[Rows, Tensor, Tensor], Tensor]  # rows, weights, places of experts -> [N, D]


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
    """[T, D]: this rank's part of each token's sum over its experts, wherever they are.

    `compute` gives [N, D] of rows for the experts of this rank, and zeros for all others.
    `is_fp8`: it wants quantised rows. A collective operation of all replicas. T may be 0.
    """
    num_tokens = len(places_TK)
    x_TD = plain(x)
    values_TD, scale_T1 = _numbers(x, is_fp8=is_fp8)
    form = RowForm(x_TD.shape[1], values_TD.dtype, places_TK.shape[1])
    num_rows = num_tokens if exchange.deals else (exchange.num_rows or num_tokens)
    message = kernels.pack_rows(values_TD, scale_T1, weights_TK, places_TK, num_rows)
    if exchange.deals:
        return _deal(mesh, num_places, compute, message, places_TK, form, x_TD.dtype)
    rows = _taken_apart(mesh.dp_gather(message), form, x_TD.dtype)
    return mesh.dp_scatter_sum(compute(*rows))[:num_tokens]


def _deal(
    mesh: Mesh,
    num_places: int,
    compute: Compute,
    message_TB: Tensor,
    places_TK: Tensor,
    form: RowForm,
    dtype: torch.dtype,
) -> Tensor:
    """Each row to the replicas whose rank of this column has one of its experts, once."""
    replica_W = torch.arange(mesh.dp_size, device=places_TK.device)
    ranks_W11 = (replica_W * mesh.tp_size + mesh.tp_rank)[:, None, None]
    needs_WT = (places_TK // num_places == ranks_W11).any(-1)
    given_W = needs_WT.sum(1)
    ones = [1] * mesh.dp_size
    given, taken = torch.stack([given_W, mesh.dp_deal(given_W, ones, ones)]).tolist()
    replica_N, token_N = needs_WT.nonzero(as_tuple=True)
    rows = _taken_apart(mesh.dp_deal(message_TB[token_N], given, taken), form, dtype)
    back_ND = mesh.dp_deal(compute(*rows), taken, given)
    parts_WTD = back_ND.new_zeros(mesh.dp_size, len(places_TK), form.width)
    parts_WTD[replica_N, token_N] = back_ND
    return parts_WTD.float().sum(0).to(dtype)


def _numbers(x: Rows, *, is_fp8: bool) -> tuple[Tensor, Tensor | None]:
    """What travels of rows, and their scales."""
    if not is_fp8:
        return plain(x), None
    if isinstance(x, QuantizedRows):
        return x.q_TI, x.scale_T1
    return kernels.quantize_rows(x)


def _taken_apart(
    message_NB: Tensor, form: RowForm, dtype: torch.dtype
) -> tuple[Rows, Tensor, Tensor]:
    """(rows, weights float32 [N, K], places int64 [N, K]) of a message."""
    values_ND, scale_N1, weights_NK, places_NK = kernels.unpack_rows(message_NB, form)
    if scale_N1 is None:
        return values_ND, weights_NK, places_NK
    # Of what was quantised, only the type and the shape are looked at any more.
    x_ND = values_ND.new_empty(values_ND.shape, dtype=dtype)
    return QuantizedRows(x_ND, values_ND, scale_N1), weights_NK, places_NK
