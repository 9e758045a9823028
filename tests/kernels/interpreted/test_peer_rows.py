"""Rows that every rank has a part of: summed through memory of all, added, normed, quantised."""

import mmap
import os
import traceback
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.distributed import FileStore, ProcessGroupGloo

from glimt.kernels import triton_experts, triton_linear, triton_peer_rows, triton_rows
from glimt.kernels.pending import Delta, ExpertRows, LinearParts
from glimt.kernels.triton_peer_rows import (
    PeerRows,
    as_words,
    num_words,
    peer_rows,
    slots,
    sum_add_rms_norm,
)
from glimt.parallel import norm_sums
from glimt.parallel.norm_sums import NormSums
from glimt.parallel.trial import all_same

WIDTH, MAX_ROWS, EPS = 96, 4, 1e-5
TIMEOUT = timedelta(seconds=30)


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


def memory(num_ranks: int) -> Tensor:
    """One rank's words, in memory that a forked process shares."""
    size = 4 * num_words(num_ranks, MAX_ROWS, WIDTH)
    return torch.frombuffer(mmap.mmap(-1, size), dtype=torch.int32)


def peers_of(words: list[Tensor], rank: int, count: int = 0) -> PeerRows:
    """The memory of all ranks as `rank` sees it, after `count` sums of each row."""
    peers = peer_rows(words, rank, MAX_ROWS, WIDTH)
    peers.count_T.fill_(count)
    return peers


@pytest.mark.parametrize("num_ranks", [2, 4])
@pytest.mark.parametrize("count", [1, 2, 65536])  # of which a word keeps 16 bits
@pytest.mark.parametrize("quantizes", [False, True])
def test_a_rank_pushes_its_part_and_norms_the_sum_of_all(
    num_ranks: int, count: int, quantizes: bool
) -> None:
    rank, num_tokens = 1, 3
    words = [memory(num_ranks) for _ in range(num_ranks)]
    parts = [randn(num_tokens, WIDTH, seed=seed) for seed in range(num_ranks)]
    parts[0][0] = -0.0
    x, g = randn(num_tokens, WIDTH, seed=8), randn(WIDTH, seed=9)
    peers = peers_of(words, rank, count - 1)
    for source, part in enumerate(parts):
        if source != rank:
            slots(words[rank], peers, count)[source, :num_tokens] = as_words(part, count)

    rows, total = sum_add_rms_norm(parts[rank], x, g, EPS, peers, quantizes=quantizes)

    delta = torch.stack([part.float() for part in parts]).sum(0).bfloat16()
    expected, expected_total = triton_rows.add_rms_norm_quantize(x, delta, g, EPS)
    assert torch.equal(total, expected_total)
    assert torch.equal(rows.x_TI, expected.x_TI)
    if quantizes:
        assert torch.equal(rows.q_TI.float(), expected.q_TI.float())
        assert torch.equal(rows.scale_T1, expected.scale_T1)
    assert peers.count_T.tolist() == [count] * num_tokens + [count - 1]
    for own in words:
        received = slots(own, peers, count)[rank]
        assert torch.equal(received[:num_tokens] >> 16, parts[rank].view(torch.int16).int())
        assert ((received[:num_tokens] & 0xFFFF) == count % 65536).all()
        assert not received[num_tokens:].any()
        assert not slots(own, peers, count + 1).any()


def left_over(kind: str, num_tokens: int) -> Delta:
    """Rank 1's part, as a product or experts leave it; of the latter's rows some are elsewhere."""
    if kind == "product":
        part = randn(2, num_tokens, WIDTH, seed=3).float()
        scales = randn(num_tokens + WIDTH, seed=4).abs().float()
        return LinearParts(part, scales[:num_tokens, None].contiguous(), scales[num_tokens:])
    experts = torch.tensor([[1, -3], [0, 7], [2, 3]])[:num_tokens]
    weights = randn(num_tokens, 2, seed=5).abs().float()
    row = randn(num_tokens * (3 if kind == "experts and shared" else 2), WIDTH, seed=6)
    row[: 2 * num_tokens].view(num_tokens, 2, WIDTH)[(experts < 0) | (experts > 3)] = torch.nan
    return ExpertRows(row, weights, experts, 4, kind == "experts and shared")


@pytest.mark.parametrize("kind", ["product", "experts", "experts and shared"])
def test_a_part_that_is_left_over_is_what_a_launch_of_its_own_makes_of_it(kind: str) -> None:
    delta, x, g = left_over(kind, 3), randn(3, WIDTH, seed=8), randn(WIDTH, seed=9)
    if isinstance(delta, LinearParts):
        alone = triton_linear.sum_of_parts(delta)
    else:
        assert isinstance(delta, ExpertRows)
        alone = triton_experts.sum_of_rows(delta)
    assert alone.isfinite().all()
    torch.testing.assert_close(delta.total(), alone, rtol=0.01, atol=1e-4)
    found = []
    for part in (delta, alone):
        words = [memory(2), memory(2)]
        peers = peers_of(words, 1)
        slots(words[1], peers, 1)[0, :3] = as_words(randn(3, WIDTH, seed=2), 1)
        rows, total = sum_add_rms_norm(part, x, g, EPS, peers, quantizes=True)
        found.append((words[0], words[1], total, rows.x_TI, rows.q_TI.float(), rows.scale_T1))
    assert found[0][0].any()
    for ours, expected in zip(*found, strict=True):
        assert torch.equal(ours, expected)


def test_a_wait_in_vain_ends_in_nan() -> None:
    words = [memory(2), memory(2)]
    peers = peers_of(words, 0)
    x, g = randn(2, WIDTH, seed=8), randn(WIDTH, seed=9)
    slots(words[0], peers, 1)[1, 0] = as_words(randn(WIDTH, seed=1), 1)  # no second row comes
    rows, total = sum_add_rms_norm(x, x, g, EPS, peers, quantizes=False, patience=2)
    assert rows.x_TI[0].isfinite().all()
    assert total[1].isnan().all()
    assert rows.x_TI[1].isnan().all()


@pytest.fixture
def trial(monkeypatch: pytest.MonkeyPatch) -> None:
    """The trial at the start, where there is no CUDA."""
    monkeypatch.setattr(norm_sums, "triton_peer_rows", triton_peer_rows)
    monkeypatch.setattr(norm_sums, "_PATIENCE", 2000)


def sums_of(words: list[Tensor], rank: int) -> NormSums:
    return NormSums(peers_of(words, rank), words[rank])


@pytest.mark.usefixtures("trial")
def test_two_processes_sum_again_and_again_without_a_barrier(tmp_path: Path) -> None:
    words = [memory(2), memory(2)]
    store = FileStore(str(tmp_path / "store"), 2)

    def prove(rank: int) -> None:
        normed = norm_sums._prove(sums_of(words, rank))
        host = ProcessGroupGloo(store, rank, 2, TIMEOUT)
        assert all_same(host, normed)
        normed[0][0, rank] += 1
        assert not all_same(host, normed)

    child = os.fork()
    if child == 0:
        try:
            prove(1)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    try:
        prove(0)
    finally:
        _, status = os.waitpid(child, 0)
    assert status == 0


@pytest.mark.usefixtures("trial")
def test_a_rank_rehearses_alone_and_its_memory_stays_as_it_was() -> None:
    words = [memory(2), memory(2)]
    sums = sums_of(words, 1)
    norm_sums._rehearse(sums)
    assert not sums.peers.count_T.any()
    assert not words[0].any()
    assert not words[1].any()


@pytest.mark.usefixtures("trial")
def test_a_trial_finds_that_words_arrive_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(norm_sums, "_PATIENCE", 3)
    words = [memory(2), memory(2)]
    sums = sums_of(words, 1)
    with pytest.raises(RuntimeError, match="a sum of 1 rows was wrong"):
        norm_sums._prove(sums)
