"""How far two models' next-token distributions are apart, place by place of the first's answers."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import msgspec

from glimt.evaluation.replies import Alternatives, Reply
from glimt.evaluation.results import Share
from glimt.evaluation.statistics import quantiles

SHARES = (0.5, 0.9, 0.99, 1.0)
_LEAST = 1e-7  # probabilities below come from rounding
_BROKEN = "\ufffd"  # a token that is no text by itself cannot be told from others


class NotComparable(Exception):
    """Why the logits of two models cannot be held against each other."""


class Place(NamedTuple):
    """One token of A's answer, after the same tokens for both models."""

    kl: float  # KL(A || B) in nats
    same_top: bool  # both find the same token likeliest
    nll_a: float  # -log p of the token in nats
    nll_b: float


class Divergence(msgspec.Struct, frozen=True, kw_only=True):
    """What the places sum up to. Of servers, `mean_kl` and its quantiles are lower bounds."""

    method: str
    num_answers: int
    num_places: int
    mean_kl: float
    kl_quantiles: dict[str, float]
    same_top: Share
    perplexity_a: float  # exp of the mean nll
    perplexity_b: float
    perplexity_ratio: float  # B / A


def divergence_of(answers: Sequence[Sequence[Place]], method: str) -> Divergence | None:
    """The figures over all places of all answers; None where there is no place."""
    places = [place for answer in answers for place in answer]
    if not places:
        return None
    n = len(places)
    mean_a = sum(place.nll_a for place in places) / n
    mean_b = sum(place.nll_b for place in places) / n
    kls = [place.kl for place in places]
    return Divergence(
        method=method,
        num_answers=sum(bool(answer) for answer in answers),
        num_places=n,
        mean_kl=sum(kls) / n,
        kl_quantiles={
            f"{share:.0%}": value
            for share, value in zip(SHARES, quantiles(kls, SHARES), strict=True)
        },
        same_top=Share.of(sum(place.same_top for place in places), n),
        perplexity_a=_exp(mean_a),
        perplexity_b=_exp(mean_b),
        perplexity_ratio=_exp(mean_b - mean_a),
    )


def shared_places(a: Reply, b: Reply) -> Iterator[Place]:
    """The places of two answers up to the first at which they differ, that one included: so far
    both models have seen the same tokens."""
    for one, other in zip(a.alternatives, b.alternatives, strict=False):
        yield _place(one, other)
        if one.token != other.token:
            return


def _place(a: Alternatives, b: Alternatives) -> Place:
    p, q = _by_text(a), _by_text(b)
    # B's probability of A's token is at most that of the least likely token that B lists.
    other = dict(b.top).get(a.token, min((logprob for _, logprob in b.top), default=b.logprob))
    return Place(
        kl=coarse_kl(p, q),
        same_top=_likeliest(a) == _likeliest(b),
        nll_a=-a.logprob,
        nll_b=-other,
    )


def coarse_kl(p: dict[str, float], q: dict[str, float]) -> float:
    """KL(p || q) in nats over the tokens that both list, and one bucket for all the rest.

    Merging outcomes never raises it (the data-processing inequality): a lower bound.
    """
    shared = p.keys() & q.keys()
    cells = [(p[text], q[text]) for text in shared]
    cells.append((1 - sum(x for x, _ in cells), 1 - sum(y for _, y in cells)))
    kl = sum(x * math.log(x / max(y, _LEAST)) for x, y in cells if x > _LEAST)
    return max(0.0, kl)


def _by_text(place: Alternatives) -> dict[str, float]:
    """Probabilities of the listed tokens whose text tells them apart."""
    counts = Counter(text for text, _ in place.top)
    return {
        text: math.exp(logprob)
        for text, logprob in place.top
        if counts[text] == 1 and _BROKEN not in text
    }


def _exp(x: float) -> float:
    """JSON has no infinity; servers write -9999 for log 0."""
    return math.exp(min(x, 700.0))


def _likeliest(place: Alternatives) -> str:
    return max(place.top, key=lambda each: each[1])[0] if place.top else place.token
