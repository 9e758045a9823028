"""`NormSums`: sums over the GPUs of one machine that end in a norm, the whole of it in one kernel.

A decoder block's branch is summed over the ranks, added to the residual stream, normed, and often
quantised for the product that follows. With few rows all of that is latency, so one kernel does it
(`kernels/triton_peer_rows.py`), over memory that torch lets the GPUs share. With many rows NCCL
moves fewer bytes, and the norm is a kernel of its own.
"""

import logging
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from glimt.kernels import Delta, QuantizedRows, reference
from glimt.kernels.pending import tensors_of
from glimt.kernels.twins import has_twin, triton_peer_rows
from glimt.parallel.trial import all_agree, all_same

log = logging.getLogger(__name__)

MAX_PUSHES = 128  # rows times the ranks that each is pushed to; see benchmarks/all_reduce.py
_PATIENCE = 5_000_000  # of a trial: some seconds
_EPS = 1e-5


@dataclass(frozen=True, slots=True)
class NormSums:
    """The shared memory of one group of ranks, for rows of one width."""

    peers: Any  # triton_peer_rows.PeerRows
    words_V: Tensor  # this rank's memory, here so that it lives as long

    def add_rms_norm(
        self, x_TD: Tensor, part_TD: Delta, weight_D: Tensor, eps: float, *, quantizes: bool
    ) -> tuple[Tensor | QuantizedRows, Tensor] | None:
        """(norm of y, y) where y is x plus the sum of all ranks' parts; the norm also quantised
        if it `quantizes`. None: too many rows, or not of the kernel's type and width.
        """
        num_rows, width = x_TD.shape
        if not 0 < num_rows <= self.peers.max_rows or width != self.peers.width:
            return None
        if not has_twin(x_TD, *tensors_of(part_TD), weight_D):
            return None
        rows, sum_TD = triton_peer_rows.sum_add_rms_norm(
            part_TD, x_TD, weight_D, eps, self.peers, quantizes=quantizes
        )
        return (rows if quantizes else rows.x_TI), sum_TD


def make_norm_sums(
    group_name: str, host: Any, rank: int, size: int, device: torch.device, width: int
) -> NormSums | None:
    """All ranks call this; `group_name`: of a group that shares memory (see `one_kernel`),
    `host`: its gloo. None on all of them where it cannot be done, or was wrong in a trial; the log
    says why.
    """
    made, cause = None, None
    try:
        made = _share_memory(group_name, rank, size, device, width)
        _rehearse(made)
    except Exception as error:
        made, cause = None, error
    # From here on ranks wait for each other's words, so all must have come so far.
    works = all_agree(host, size, made is not None)
    if works and made is not None:
        normed: list[Tensor] = []
        try:
            normed = _prove(made)
        except Exception as error:
            cause = error
        works = all_agree(host, size, cause is None)
        if works and not all_same(host, normed):
            works, cause = False, RuntimeError("ranks have different norms")
    if not works:
        log.warning("sums are not fused with norms: %s", cause or "another rank cannot do it")
        return None
    return made


def _share_memory(
    group_name: str, rank: int, size: int, device: torch.device, width: int
) -> NormSums:
    """A collective operation. Raises RuntimeError where there is no kernel."""
    if triton_peer_rows is None or width % 16 or size & (size - 1):
        raise RuntimeError(f"there is no kernel for {size} GPUs and rows of {width} numbers")
    max_rows = MAX_PUSHES // (size - 1)
    internal: Any = torch._C._distributed_c10d
    memory = internal._SymmetricMemory
    num_words = triton_peer_rows.num_words(size, max_rows, width)
    words_V = memory.empty_strided_p2p((num_words,), (1,), torch.int32, device, None)
    words_V.zero_()
    handle = memory.rendezvous(words_V, group_name)
    seen = [handle.get_buffer(peer, (num_words,), torch.int32) for peer in range(size)]
    return NormSums(triton_peer_rows.peer_rows(seen, rank, max_rows, width), words_V)


def _rehearse(made: NormSums) -> None:
    """Compile the kernel and run it without the others, in memory that has their words already.

    Raises RuntimeError where it is wrong.
    """
    peers = made.peers
    words_V = torch.zeros_like(made.words_V)
    alone = triton_peer_rows.peer_rows(
        [words_V] * peers.num_ranks, peers.rank, peers.max_rows, peers.width
    )
    sums = NormSums(alone, words_V)
    parts = _parts(made, 1, seed=0)
    for count in (1, 2):  # as many as `_check` does
        triton_peer_rows.slots(words_V, alone, count)[:, :1] = triton_peer_rows.as_words(
            parts, count
        )
    _check(sums, parts)


def _prove(made: NormSums) -> list[Tensor]:
    """Sums of small integers, which are exact; the norms, which must be the same to the bit on
    every rank: ranks whose activations differ may choose other experts. Raises RuntimeError.

    A rank that stops here leaves the others waiting for no longer than their patience.
    """
    sizes = (1, made.peers.max_rows, 1)
    return [_check(made, _parts(made, num_rows, seed)) for seed, num_rows in enumerate(sizes)]


def _parts(made: NormSums, num_rows: int, seed: int) -> Tensor:
    """bfloat16 [W, T, D] of small integers, the same on every rank."""
    shape = (made.peers.num_ranks, num_rows, made.peers.width)
    drawn = torch.randint(-15, 16, shape, generator=torch.Generator().manual_seed(seed))
    return drawn.to(made.words_V.device, torch.bfloat16)


def _check(made: NormSums, parts_WTD: Tensor) -> Tensor:
    """Sum them; the norm, if that went well, else RuntimeError."""
    part_TD = parts_WTD[made.peers.rank].contiguous()
    x_TD = parts_WTD[0] / 16
    weight_D = x_TD[0].contiguous()
    expected_TD = x_TD + parts_WTD.float().sum(0).bfloat16()
    for quantizes in (False, True):
        rows, sum_TD = triton_peer_rows.sum_add_rms_norm(
            part_TD, x_TD, weight_D, _EPS, made.peers, quantizes=quantizes, patience=_PATIENCE
        )
        if not torch.equal(sum_TD, expected_TD):
            raise RuntimeError(f"a sum of {len(x_TD)} rows was wrong")
        normed_TD = reference.rms_norm(expected_TD, weight_D, _EPS)
        if not torch.allclose(rows.x_TI.float(), normed_TD.float(), rtol=0.02, atol=0.001):
            raise RuntimeError(f"a norm of {len(x_TD)} rows was wrong")
    return rows.x_TI
