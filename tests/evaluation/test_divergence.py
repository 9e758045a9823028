"""Distances of distributions: by hand, and the promise that listed tokens never exaggerate."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from glimt.evaluation.divergence import Place, coarse_kl, divergence_of, shared_places
from glimt.evaluation.replies import Alternatives, Reply


def drawn(token: str, **logprobs: float) -> Alternatives:
    return Alternatives(token, logprobs[token], tuple(logprobs.items()))


def test_the_figures_by_hand() -> None:
    answers = [
        [Place(0.0, True, 1.0, 1.0), Place(0.2, False, 2.0, 3.0)],
        [],
        [Place(0.1, True, 0, 0)],
    ]
    figures = divergence_of(answers, "by hand")
    assert figures is not None
    assert (figures.num_answers, figures.num_places) == (2, 3)
    assert figures.mean_kl == pytest.approx(0.1)
    assert figures.kl_quantiles["50%"] == pytest.approx(0.1)
    assert figures.kl_quantiles["100%"] == pytest.approx(0.2)
    assert figures.same_top.num == 2
    assert figures.perplexity_a == pytest.approx(math.e)
    assert figures.perplexity_ratio == pytest.approx(math.exp(1 / 3))
    assert divergence_of([[]], "nothing") is None


@given(st.integers(0, 10_000), st.integers(2, 40), st.integers(1, 20))
def test_listed_tokens_give_a_lower_bound(seed: int, vocabulary: int, num_listed: int) -> None:
    rng = np.random.default_rng(seed)
    p, q = rng.dirichlet(np.ones(vocabulary), size=2) * 0.999 + 0.001 / vocabulary

    def listed(probabilities: np.ndarray) -> dict[str, float]:
        likeliest = np.argsort(-probabilities)[:num_listed]
        return {str(token): float(probabilities[token]) for token in likeliest}

    true_kl = float((p * np.log(p / q)).sum())
    assert 0.0 <= coarse_kl(listed(p), listed(q)) <= true_kl + 1e-6
    if num_listed >= vocabulary:
        assert coarse_kl(listed(p), listed(q)) == pytest.approx(true_kl, abs=1e-6)
    assert coarse_kl(listed(p), listed(p)) == pytest.approx(0.0, abs=1e-9)


def test_places_are_shared_up_to_the_first_difference() -> None:
    first = drawn("a", a=-0.1, b=-3.0)
    one, other = drawn("b", b=-0.5, c=-1.0), drawn("c", c=-0.6, b=-0.9)
    places = list(
        shared_places(
            Reply(alternatives=(first, one, first)), Reply(alternatives=(first, other, first))
        )
    )
    assert len(places) == 2
    assert places[0] == Place(pytest.approx(0.0), True, 0.1, 0.1)
    assert not places[1].same_top
    assert (places[1].nll_a, places[1].nll_b) == (0.5, 0.9)


def test_a_token_that_is_not_listed_is_at_most_as_likely_as_the_last_one() -> None:
    one, other = drawn("x", x=-0.2), drawn("b", b=-0.6, c=-4.0)
    [place] = shared_places(Reply(alternatives=(one,)), Reply(alternatives=(other,)))
    assert place.nll_b == 4.0


def test_tokens_that_cannot_be_told_apart_are_not_held_against_each_other() -> None:
    one = Alternatives("\ufffd", -0.1, (("\ufffd", -0.1), ("a", -3.0), ("a", -3.1)))
    [place] = shared_places(Reply(alternatives=(one,)), Reply(alternatives=(one,)))
    assert place.kl == 0.0
