"""Cuts by top_k and top_p without sorting."""

import math
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

from glimt.kernels import sampling, triton_cut, triton_top


def cuts(
    scores: Tensor, top_k: list[int], top_p: list[float], block: int = 1024
) -> tuple[Tensor, Tensor]:
    """(found, defined)."""
    given = (scores, torch.tensor(top_k), torch.tensor(top_p), scores.shape[1])
    return triton_cut.least_kept(*given, block=block), sampling.least_kept(*given)


def test_cuts_are_those_that_sorting_finds() -> None:
    scores = torch.randn(6, 40, generator=torch.Generator().manual_seed(1)) * 3
    scores[2, ::2] = -math.inf
    top_k, top_p = [40, 1, 7, 20, 40, 30], [1.0, 1.0, 1.0, 0.8, 0.01, 0.3]
    found, defined = cuts(scores, top_k, top_p)
    assert torch.equal(found, defined)


def test_a_row_of_several_blocks_is_cut_as_one() -> None:
    scores = torch.randn(2, 150, generator=torch.Generator().manual_seed(3))
    found, defined = cuts(scores, [50, 150], [0.9, 0.5], block=64)
    assert torch.equal(found, defined)


def test_scores_that_tie_are_kept_together() -> None:
    scores = torch.tensor([[2.0, 1.0, 1.0, 1.0, 0.0, -1.0]]).repeat(3, 1)
    top_k, top_p = [2, 3, 4], [0.9, 0.6, 0.2]
    found, defined = cuts(scores, top_k, top_p)
    assert torch.equal(found, defined)


def test_scores_rounded_to_few_values_are_cut_between_them() -> None:
    scores = torch.randn(3, 700, generator=torch.Generator().manual_seed(2)).bfloat16().float()
    top_k, top_p = [700, 50, 200], [0.9, 0.95, 0.42]
    found, defined = cuts(scores, top_k, top_p)
    assert torch.equal(found, defined)


def test_zeros_of_both_signs_and_huge_scores_have_their_places() -> None:
    scores = torch.tensor([[0.0, -0.0, -3e38, 3e38, 1e-40, -1e-40]])
    found, defined = cuts(scores, [3], [1.0])
    assert torch.equal(found, defined)


def test_two_shares_are_cut_where_all_scores_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each by a thread of its own; the interpreter runs one kernel at a time."""
    scores = torch.randn(3, 30, generator=torch.Generator().manual_seed(6)) * 3
    scores[1] = scores[1].bfloat16().float().round()
    scores[2, ::2] = -math.inf
    top_k, top_p = torch.tensor([30, 7, 12]), torch.tensor([0.8, 1.0, 0.6])
    launch, alone = triton_cut.launch, threading.Lock()

    def launch_alone(*given: Any, **options: Any) -> None:
        with alone:
            launch(*given, **options)

    monkeypatch.setattr(triton_cut, "launch", launch_alone)
    parts: list[Tensor] = [torch.empty(0)] * 2
    met = threading.Barrier(2, timeout=60)

    def cut(rank: int) -> Tensor:
        def add(sums: Tensor) -> Tensor:
            parts[rank] = sums
            met.wait()
            total = parts[0] + parts[1]
            met.wait()
            return total

        share = scores.split([16, 14], 1)[rank].contiguous()
        given = (share, scores.amax(1), top_k, top_p, 30, add)
        return triton_cut.least_kept_of_shares(*given, block=16)

    with ThreadPoolExecutor(2) as threads:
        found = list(threads.map(cut, range(2)))
    defined = sampling.least_kept(scores, top_k, top_p, 30)
    assert all(torch.equal(each, defined) for each in found)


def check_few(scores: Tensor, top_k: list[int], top_p: list[float], block: int = 128) -> None:
    """Rows whose k is small are cut where the definition cuts them, and where the search does."""
    ks, ps = torch.tensor(top_k), torch.tensor(top_p)
    found = triton_top.least_kept(scores, ks, ps, 64, block=block)
    assert torch.equal(found, sampling.least_kept(scores, ks, ps, scores.shape[1]))


def test_cuts_of_few_candidates_are_those_that_sorting_finds() -> None:
    scores = torch.randn(7, 300, generator=torch.Generator().manual_seed(4)) * 3
    scores[2, ::2] = -math.inf
    scores[3] = scores[3].bfloat16().float().round()  # many tie
    check_few(scores, [300, 1, 7, 20, 64, 2, 64], [1.0, 1.0, 1.0, 0.8, 0.9, 0.6, 0.01])


def test_few_candidates_that_tie_are_kept_together() -> None:
    scores = torch.tensor([[2.0, 1.0, 1.0, 1.0, 0.0, -1.0]]).repeat(4, 1)
    check_few(scores, [2, 3, 4, 2], [0.9, 0.6, 0.2, 1.0])


def test_the_highest_may_all_be_in_one_block_or_in_each() -> None:
    scores = torch.linspace(-9, 9, 512).repeat(2, 1)
    scores[1] = scores[1].view(4, 128).t().flatten()
    check_few(scores, [50, 50], [0.97, 0.97])
