"""From sampling parameters and logits to tokens, through the public path of the sampler."""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from glimt.runner import sampler
from glimt.runner.sampling_rows import SamplingRows
from glimt.wire import ErrorInfo, SamplingParams, TokenLogprobs

CPU = torch.device("cpu")


def params(**fields: Any) -> SamplingParams:
    return SamplingParams(max_tokens=100, **fields)


@dataclass
class Case:
    """One row: its parameters, its logits, its tokens so far."""

    params: SamplingParams
    logits: list[float]
    prompt: list[int] = field(default_factory=lambda: [0])
    generated: list[int] = field(default_factory=list)


@dataclass
class Drawn:
    tokens: dict[int, int] = field(default_factory=dict)
    logprobs: dict[int, TokenLogprobs] = field(default_factory=dict)
    failed: dict[int, ErrorInfo] = field(default_factory=dict)


def sample(cases: list[Case]) -> Drawn:
    """Draw for all cases in one batch; row numbers differ from places in the batch."""
    rows = SamplingRows(len(cases) + 1, len(cases[0].logits))
    tokens_RL = torch.full((len(cases) + 1, 40), 5, dtype=torch.int32)
    for n, case in enumerate(cases):
        rows.take(n + 1, len(case.prompt), case.params)
        known = case.prompt + case.generated
        tokens_RL[n + 1, : len(known)] = torch.tensor(known)
    drawn = Drawn()
    row_N = np.arange(len(cases)) + 1
    prompt_N = np.array([len(case.prompt) for case in cases])
    length_N = prompt_N + np.array([len(case.generated) for case in cases])
    logits_NV = torch.tensor([case.logits for case in cases])
    kept = logits_NV.clone()
    for inputs in sampler.prepare_draws(rows, row_N, prompt_N, length_N, CPU):
        outputs = sampler.draw(logits_NV, tokens_RL, inputs)
        names = list(range(inputs.first, inputs.first + inputs.count))
        for into, part in zip(
            (drawn.tokens, drawn.logprobs, drawn.failed),
            sampler.read_draw(inputs, outputs, names),
            strict=True,
        ):
            into.update(part)  # type: ignore[arg-type]
    assert torch.equal(logits_NV, kept) or kept.isnan().any()
    return drawn


def chi_square(counts: np.ndarray, probabilities: np.ndarray) -> float:
    expected = probabilities * counts.sum()
    return float(((counts - expected) ** 2 / expected).sum())


LOGITS = [0.3, -1.0, 2.0, 1.1, -0.2, 0.9, 1.6, -3.0]

# 99.99 % quantiles of the chi-square distribution by degrees of freedom; seeds are fixed
QUANTILE = {1: 15.1, 2: 18.4, 3: 21.1, 4: 23.5, 5: 25.7, 6: 27.9, 7: 29.9}


@pytest.mark.parametrize(
    ("fields", "support"),
    [
        ({}, {0, 1, 2, 3, 4, 5, 6, 7}),
        ({"temperature": 0.5}, {0, 1, 2, 3, 4, 5, 6, 7}),
        ({"temperature": 2.0}, {0, 1, 2, 3, 4, 5, 6, 7}),
        ({"top_k": 3}, {2, 6, 3}),
        ({"top_p": 0.6}, {2, 6}),  # 0.406, 0.272 make 0.678
        ({"top_p": 0.7}, {2, 6, 3}),
        ({"min_p": 0.35}, {2, 6, 3}),  # e^-0.9 = 0.41, e^-1.1 = 0.33
        ({"top_k": 4, "top_p": 0.9, "temperature": 1.5}, {2, 6, 3, 5}),
        ({"allowed_token_ids": (0, 4, 7)}, {0, 4, 7}),
        ({"logit_bias": {2: -100.0, 7: 4.0}}, {0, 1, 3, 4, 5, 6, 7}),
    ],
)
def test_draws_follow_the_restricted_softmax(fields: dict[str, Any], support: set[int]) -> None:
    num_draws = 4000
    drawn = sample([Case(params(seed=s, **fields), LOGITS) for s in range(num_draws)])
    counts = np.bincount(list(drawn.tokens.values()), minlength=8)
    assert set(np.flatnonzero(counts)) <= support
    biased = np.array(LOGITS)
    for token, bias in fields.get("logit_bias", {}).items():
        biased[token] += bias
    weights = np.exp(biased / fields.get("temperature", 1.0))
    kept = sorted(support)
    probabilities = weights[kept] / weights[kept].sum()
    assert chi_square(counts[kept], probabilities) < QUANTILE[len(kept) - 1]


def test_one_seed_draws_independent_tokens_along_the_sequence() -> None:
    cases = [Case(params(seed=11), LOGITS, prompt=[0] * (1 + i % 30)) for i in range(30)]
    along = list(sample(cases).tokens.values())
    assert len(set(along)) > 3
    again = list(sample(cases[::-1]).tokens.values())[::-1]
    assert along == again


def test_greedy_takes_the_first_of_the_highest() -> None:
    tie = [0.0, 3.0, 1.0, 3.0]
    cases = [
        Case(params(temperature=0.0), tie),
        Case(params(temperature=9e-6, top_p=0.1), tie),
        Case(params(top_k=1, seed=4), tie),
    ]
    assert list(sample(cases).tokens.values()) == [1, 1, 1]


def test_a_greedy_batch_gathers_nothing_but_its_rows() -> None:
    rows = SamplingRows(2, 8)
    rows.take(0, 1, params(temperature=0.0, top_p=0.5, min_p=0.1))
    rows.take(1, 1, params(top_k=1))
    arrays = rows.gather(np.array([0, 1]), np.array([1, 1]), np.array([3, 4]))
    assert set(arrays) == {"row_N", "length_N"}


def test_a_row_gets_a_feature_only_while_it_needs_it() -> None:
    rows = SamplingRows(1, 8)
    rows.take(0, 2, params(temperature=0.0, min_tokens=2, eos_token_ids=(1,)))
    names = [set(rows.gather(np.array([0]), np.array([2]), np.array([n]))) for n in (2, 3, 4)]
    assert ["bias_place_B" in name for name in names] == [True, True, False]


def any_params(vocab_size: int) -> st.SearchStrategy[SamplingParams]:
    token = st.integers(0, vocab_size - 1)
    return st.builds(
        params,
        seed=st.integers(-(2**63), 2**63 - 1),
        temperature=st.sampled_from([0.0, 0.3, 1.0, 1.7]),
        top_k=st.sampled_from([0, 1, 2, 5, 1000]),
        top_p=st.sampled_from([0.1, 0.6, 1.0]),
        min_p=st.sampled_from([0.0, 0.3]),
        repetition_penalty=st.sampled_from([1.0, 1.5]),
        frequency_penalty=st.sampled_from([0.0, 0.8]),
        presence_penalty=st.sampled_from([0.0, -0.6]),
        min_tokens=st.integers(0, 3),
        eos_token_ids=st.lists(token, max_size=2).map(tuple),
        stop_token_ids=st.lists(token, max_size=2).map(tuple),
        bad_words=st.lists(st.lists(token, min_size=1, max_size=3).map(tuple), max_size=3).map(
            tuple
        ),
        allowed_token_ids=st.none()
        | st.lists(token, min_size=1, max_size=8, unique=True).map(tuple),
        logit_bias=st.dictionaries(token, st.sampled_from([-100.0, -1.5, 2.0]), max_size=3),
        logprobs=st.none() | st.integers(0, 4),
    )


def any_case(vocab_size: int = 12) -> st.SearchStrategy[Case]:
    token = st.integers(0, vocab_size - 1)
    return st.builds(
        Case,
        any_params(vocab_size),
        st.lists(st.integers(-40, 40).map(lambda i: i / 10), min_size=12, max_size=12),
        st.lists(token, min_size=1, max_size=5),
        st.lists(token, max_size=5),
    )


@given(cases=st.lists(any_case(), min_size=1, max_size=6), rows_per_draw=st.integers(1, 4))
def test_a_row_draws_the_same_alone_and_in_any_company(
    cases: list[Case], rows_per_draw: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampler, "MAX_SCORES_PER_DRAW", rows_per_draw * 12)
        together = sample(cases)
    for n, case in enumerate(cases):
        alone = sample([case])
        assert alone.tokens.get(0) == together.tokens.get(n)
        assert alone.logprobs.get(0) == together.logprobs.get(n)
        assert alone.failed.get(0) == together.failed.get(n)


def forbidden_naively(case: Case) -> set[int]:
    p, vocab = case.params, range(len(case.logits))
    forbidden = set()
    if p.allowed_token_ids is not None:
        forbidden |= set(vocab) - set(p.allowed_token_ids)
    if len(case.generated) < p.min_tokens:
        forbidden |= {*p.eos_token_ids, *p.stop_token_ids}
    for word in p.bad_words:
        prefix = list(word[:-1])
        if len(prefix) <= len(case.generated) and (
            case.generated[len(case.generated) - len(prefix) :] == prefix
        ):
            forbidden.add(word[-1])
    return forbidden


@given(case=any_case())
def test_forbidden_tokens_are_never_drawn_and_others_can_be(case: Case) -> None:
    allowed = set(range(len(case.logits))) - forbidden_naively(case)
    drawn = sample([case])
    if allowed:
        assert drawn.tokens[0] in allowed
    else:
        assert drawn.failed[0].code == "invalid_request"
    for token in allowed:  # any of them is drawn once it is by far the highest
        logits = [-200.0] * len(case.logits)
        logits[token] = 600.0
        assert sample([Case(case.params, logits, case.prompt, case.generated)]).tokens[0] == token


def test_a_bad_word_counts_only_where_it_lies_in_the_generated_tokens() -> None:
    logits = [0.0, 0.0, 5.0, 1.0]
    greedy = params(temperature=0.0, bad_words=((1, 2),))
    cases = [
        Case(greedy, logits, prompt=[1], generated=[]),
        Case(greedy, logits, prompt=[0], generated=[1]),
        Case(greedy, logits, prompt=[0], generated=[1, 0]),
    ]
    assert list(sample(cases).tokens.values()) == [2, 3, 2]


def test_logprobs_are_those_of_the_raw_logits() -> None:
    case = Case(
        params(temperature=0.2, logit_bias={7: 100.0}, repetition_penalty=1.9, logprobs=3),
        LOGITS,
        prompt=[2, 7],
    )
    logprobs = sample([case]).logprobs[0]
    expected = torch.tensor(LOGITS).log_softmax(0)
    assert (logprobs.token_id, logprobs.rank) == (7, 8)
    assert math.isclose(logprobs.logprob, expected[7].item(), rel_tol=1e-5)
    assert [token for token, _ in logprobs.top] == [2, 6, 3]
    assert all(math.isclose(value, expected[v].item(), rel_tol=1e-5) for v, value in logprobs.top)


def test_each_row_gets_as_many_logprobs_as_it_asked_for() -> None:
    counts = [None, 0, 2, 50]
    drawn = sample([Case(params(logprobs=count), LOGITS) for count in counts])
    assert {n: len(row.top) for n, row in drawn.logprobs.items()} == {1: 0, 2: 2, 3: 8}


@pytest.mark.parametrize("poison", [math.nan, math.inf])
@pytest.mark.parametrize("fields", [{"temperature": 0.0}, {"top_p": 0.9, "logprobs": 2}])
def test_a_row_without_numbers_fails_alone(poison: float, fields: dict[str, Any]) -> None:
    good = Case(params(seed=3, **fields), LOGITS)
    bad = Case(params(seed=3, **fields), [*LOGITS[:5], poison, *LOGITS[6:]])
    drawn = sample([good, bad, good])
    assert drawn.failed[1].code == "numerical_error"
    assert set(drawn.failed) == {1}
    alone = sample([good])
    assert drawn.tokens == {0: alone.tokens[0], 2: alone.tokens[0]}
    assert 1 not in drawn.logprobs


@pytest.mark.parametrize(
    "fields",
    [
        {"logit_bias": {8: 1.0}},
        {"allowed_token_ids": (-1,)},
        {"stop_token_ids": (99,)},
        {"bad_words": ((1, 8),)},
    ],
)
def test_token_ids_outside_the_vocabulary_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="not in the vocabulary"):
        SamplingRows(1, 8).take(0, 1, params(**fields))
