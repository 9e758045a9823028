"""Draws over ranks that have shares of the vocabulary: the tokens of one that has all of it."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from glimt.engine.plan import TokenMasks
from glimt.kernels import draws
from glimt.parallel.mesh import Mesh
from glimt.runner import sampler
from glimt.runner.sampler import DrawInputs, DrawOutputs
from glimt.runner.sampling_rows import SamplingRows
from glimt.runner.split_draw import can_split, draw_over_ranks
from glimt.wire import SamplingParams
from tests.support.ranks import on_ranks

CPU = torch.device("cpu")
VOCAB, LENGTH = 2400, 3

PLAIN: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {},
    {"temperature": 0.6},
    {"min_p": 0.05},
    {"top_k": 1},
    {"top_k": 7},
    {"top_k": 40, "top_p": 0.8},
    {"top_k": 40, "top_p": 0.8, "min_p": 0.2, "temperature": 1.7},
]
TOGETHER: list[dict[str, Any]] = [
    {"top_p": 0.7},
    {"top_p": 0.999, "temperature": 2.0},
    {"top_p": 1e-6},
    {"top_p": 0.9, "min_p": 0.02},
    {"top_k": 1500},
    {"top_k": 1500, "top_p": 0.95},
]
WHOLE: list[dict[str, Any]] = [
    {"logprobs": 3},
    {"logprobs": 3, "top_p": 0.7},
    {"repetition_penalty": 1.4},
    {"logit_bias": {5: 3.0, 2399: -9.0}},
    {"bad_words": ((7,),)},
    {"allowed_token_ids": (3, 1200, 2399)},
    {"min_tokens": 5, "eos_token_ids": (9,)},
]


def prepare(wishes: list[dict[str, Any]]) -> list[DrawInputs]:
    """The draws of one batch, a row for each wish."""
    rows = SamplingRows(len(wishes), VOCAB)
    for row, fields in enumerate(wishes):
        rows.take(row, 1, SamplingParams(max_tokens=9, seed=100 + row, **fields))
    row_N = np.arange(len(wishes))
    return sampler.prepare_draws(rows, row_N, np.ones_like(row_N), row_N * 0 + LENGTH, CPU)


def logits_of(num_rows: int, dtype: torch.dtype = torch.float32) -> Tensor:
    drawn = torch.randn(num_rows, VOCAB, generator=torch.Generator().manual_seed(num_rows))
    return (2 * drawn).to(dtype)


def history(num_rows: int) -> Tensor:
    return torch.arange(num_rows * 9, dtype=torch.int32).view(num_rows, 9)


def compare(
    size: int,
    logits_NV: Tensor,
    draws: list[DrawInputs],
    peers_draws: list[DrawInputs] | None = None,
) -> list[DrawOutputs]:
    """Draw on one rank and on several; what all of them drew."""
    tokens_RL = history(len(logits_NV))

    def work(mesh: Mesh) -> list[DrawOutputs]:
        share_NU = logits_NV.chunk(size, dim=1)[mesh.tp_rank]
        given = draws if mesh.tp_rank == 0 or peers_draws is None else peers_draws
        return [draw_over_ranks(share_NU, tokens_RL, inputs, mesh) for inputs in given]

    expected = [sampler.draw(logits_NV, tokens_RL, inputs) for inputs in draws]
    for outputs in on_ranks(size, work):
        for ours, theirs in zip(outputs, expected, strict=True):
            assert torch.equal(ours.token_N, theirs.token_N)
            assert torch.equal(ours.status_N, theirs.status_N)
            assert len(ours.logprobs) == len(theirs.logprobs)
            for a, b in zip(ours.logprobs, theirs.logprobs, strict=True):
                assert torch.equal(a, b)
    return expected


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])  # of which many tie
def test_ranks_draw_the_token_of_one(size: int, dtype: torch.dtype) -> None:
    wishes = PLAIN * 30
    (inputs,) = prepare(wishes)
    assert can_split(inputs, CPU)
    (drawn,) = compare(size, logits_of(len(wishes), dtype), [inputs])
    assert len(set(drawn.token_N.tolist())) > 100


@pytest.mark.parametrize("fields", PLAIN, ids=str)
def test_each_wish_alone_is_drawn_from_candidates(fields: dict[str, Any]) -> None:
    (inputs,) = prepare([fields] * 20)
    assert can_split(inputs, CPU)
    compare(2, logits_of(20), [inputs])


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_ranks_find_together_where_top_p_cuts(
    size: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All logits are never in one place."""
    gathered: list[int] = []
    gather = Mesh.tp_concat

    def watched(mesh: Mesh, part: Tensor) -> Tensor:
        gathered.append(part.shape[-1])
        return gather(mesh, part)

    monkeypatch.setattr(Mesh, "tp_concat", watched)
    wishes = (TOGETHER + PLAIN) * 12
    (inputs,) = prepare(wishes)
    (drawn,) = compare(size, logits_of(len(wishes), dtype), [inputs])
    assert gathered == [1] * size
    assert len(set(drawn.token_N.tolist())) > 60


@pytest.mark.parametrize("fields", TOGETHER, ids=str)
def test_each_wish_alone_is_cut_together(fields: dict[str, Any]) -> None:
    (inputs,) = prepare([fields] * 20)
    assert can_split(inputs, CPU)
    compare(2, logits_of(20), [inputs])


def test_gpus_split_draws_only_where_that_was_found_to_be_faster() -> None:
    gpu = torch.device("cuda")
    assert [draws.splits(gpu, rows) for rows in (1, 8, 64)] == [False, False, True]
    assert [draws.cuts_together(gpu, rows) for rows in (1, 8, 64)] == [False, False, True]
    assert draws.splits(CPU, 1)
    assert draws.cuts_together(CPU, 1)


def test_greedy_draws_need_nothing_but_the_logits() -> None:
    (inputs,) = prepare([{"temperature": 0.0}] * 3)
    inputs = replace(inputs, tensors={})
    assert can_split(inputs, CPU)
    assert not can_split(inputs, torch.device("cuda"))  # so few are gathered
    compare(2, logits_of(3), [inputs])


@pytest.mark.parametrize("fields", WHOLE, ids=str)
def test_what_candidates_cannot_tell_is_drawn_from_all(fields: dict[str, Any]) -> None:
    (inputs,) = prepare([{}, fields, {"temperature": 0.0}])
    assert not can_split(inputs, CPU)
    compare(2, logits_of(3), [inputs])


def test_grammars_hold_over_ranks_of_which_the_first_alone_knows_them() -> None:
    (inputs,) = prepare([{}, {}])
    bits = np.zeros((1, -(-VOCAB // 32)), np.int32)
    bits[0, 40] = 5  # tokens 1280 and 1282, of the second rank
    limited = sampler.masked(inputs, [3, 8], TokenMasks((8,), bits), CPU)
    unlimited = sampler.masked(inputs, [3, 8], TokenMasks((), bits[:0]), CPU)
    (drawn,) = compare(2, logits_of(2), [limited], [unlimited])
    assert drawn.token_N[1].item() in (1280, 1282)


def test_the_lowest_of_equal_tokens_wins_wherever_it_lies() -> None:
    logits_NV = torch.zeros(2, VOCAB)
    logits_NV[0, [700, 1900]] = logits_NV[1, [1900, 2100]] = 3.0
    (drawn,) = compare(2, logits_NV, prepare([{"temperature": 0.0}] * 2))
    assert drawn.token_N.tolist() == [700, 1900]


def test_all_that_tie_at_the_cut_may_be_drawn() -> None:
    """More than `top_k` on one rank alone, so not all of them are candidates."""
    wishes = [{"top_k": 2}] * 200
    logits_NV = torch.full((200, VOCAB), -1.0)
    logits_NV[:, 1300:1310] = 4.0
    (drawn,) = compare(2, logits_NV, prepare(wishes))
    assert set(drawn.token_N.tolist()) == set(range(1300, 1310))


@pytest.mark.parametrize("place", [3, 2000])
@pytest.mark.parametrize("number", [torch.nan, torch.inf])
def test_a_number_that_is_none_fails_its_row_on_every_rank(place: int, number: float) -> None:
    logits_NV = logits_of(3)
    logits_NV[1, place] = number
    (drawn,) = compare(2, logits_NV, prepare([{}, {"top_k": 5}, {"temperature": 0.0}]))
    assert drawn.status_N.tolist() == [0, 1, 0]
    (drawn,) = compare(2, logits_NV, prepare([{}, {"top_p": 0.5}, {"temperature": 0.0}]))
    assert drawn.status_N.tolist() == [0, 1, 0]


def test_large_batches_are_drawn_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampler, "MAX_SCORES_PER_DRAW", 2 * VOCAB)
    draws = prepare(PLAIN[:5])
    assert [inputs.count for inputs in draws] == [2, 2, 1]
    compare(2, logits_of(5), draws)
