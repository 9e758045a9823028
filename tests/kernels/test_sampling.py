"""The sampling operations against plain formulas, token by token."""

import math

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from glimt.kernels import sampling
from glimt.kernels.draws import mask_top_k_top_p_

MASK = (1 << 64) - 1


def splitmix_uniform(seed: int, index: int, token: int) -> float:
    """The uniform number behind the noise, in Python's integers."""

    def mix(z: int) -> int:
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & MASK
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB & MASK
        return z ^ (z >> 31)

    gamma = 0x9E3779B97F4A7C15
    state = mix(mix((seed + gamma) & MASK) ^ index)
    bits = mix((state + (token + 1) * gamma) & MASK)
    return ((bits >> 11) + 0.5) / 2**53


@given(seed=st.integers(-(2**63), 2**63 - 1), index=st.integers(0, 2**20))
def test_noise_is_the_splitmix_stream_of_seed_and_index(seed: int, index: int) -> None:
    noise_NV = sampling.gumbel_noise(torch.tensor([seed]), torch.tensor([index]), 50)
    expected = [-math.log(-math.log1p(-splitmix_uniform(seed, index, v))) for v in range(50)]
    torch.testing.assert_close(noise_NV[0].tolist(), expected, rtol=1e-5, atol=1e-5)


def test_noise_has_the_mean_and_spread_of_a_gumbel_distribution() -> None:
    noise = sampling.gumbel_noise(torch.arange(64), torch.arange(64) * 7, 4096).double()
    assert noise.isfinite().all()
    assert abs(noise.mean().item() - 0.5772157) < 0.01
    assert abs(noise.var().item() - math.pi**2 / 6) < 0.02
    across_rows = torch.corrcoef(noise)
    assert (across_rows - torch.eye(64)).abs().max() < 0.1


def scores(num_rows: int, vocab_size: int, seed: int) -> torch.Tensor:
    """Distinct scores, so that sets by rank are unique."""
    generator = np.random.default_rng(seed)
    grid = np.arange(vocab_size) * 0.05 - 2
    return torch.tensor(
        np.stack([generator.permutation(grid) for _ in range(num_rows)]), dtype=torch.float32
    )


def kept_naively(row: list[float], top_k: int, top_p: float) -> set[int]:
    order = sorted(range(len(row)), key=lambda v: -row[v])[:top_k]
    total = sum(math.exp(row[v]) for v in order)
    kept, reached = set(), 0.0
    for v in order:
        if top_p < 1 and reached >= top_p:
            break
        kept.add(v)
        reached += math.exp(row[v]) / total
    return kept


@given(
    rows=st.lists(
        st.tuples(st.integers(1, 40), st.sampled_from([0.05, 0.313, 0.5, 0.77, 0.95, 0.9999, 1.0])),
        min_size=1,
        max_size=5,
    ),
    seed=st.integers(0, 1000),
    spare=st.integers(0, 10),
)
def test_top_k_then_top_p_keep_the_smallest_set_that_reaches_p(
    rows: list[tuple[int, float]], seed: int, spare: int
) -> None:
    vocab_size = 40
    scores_NV = scores(len(rows), vocab_size, seed)
    before = scores_NV.clone()
    limits = [k for k, p in rows if k < vocab_size or p < 1]
    num_candidates = min(vocab_size, max(limits, default=1) + spare)
    mask_top_k_top_p_(
        scores_NV,
        torch.tensor([k for k, _ in rows]),
        torch.tensor([p for _, p in rows]),
        num_candidates,
    )
    for (top_k, top_p), row, was in zip(rows, scores_NV, before, strict=True):
        kept = set(torch.nonzero(row > -math.inf).flatten().tolist())
        assert kept == kept_naively(was.tolist(), top_k, top_p)
        assert all(row[v] == was[v] for v in kept)


def test_tokens_that_tie_with_the_last_one_kept_are_kept() -> None:
    scores_NV = torch.tensor([[1.0, 2.0, 1.0, 0.0]])
    mask_top_k_top_p_(scores_NV, torch.tensor([2]), torch.tensor([1.0]), 2)
    assert scores_NV.tolist() == [[1.0, 2.0, 1.0, -math.inf]]


@given(min_p=st.sampled_from([0.0, 0.01, 0.2, 0.5, 1.0]), seed=st.integers(0, 1000))
def test_min_p_keeps_what_is_at_least_that_share_of_the_most_likely(
    min_p: float, seed: int
) -> None:
    scores_NV = scores(2, 30, seed)
    before = scores_NV.clone()
    sampling.mask_min_p_(scores_NV, torch.tensor([min_p, 0.0]))
    share = (before - before.amax(1, keepdim=True)).exp()
    assert (scores_NV[0] > -math.inf).tolist() == (share[0] >= min_p - 1e-6).tolist()
    assert torch.equal(scores_NV[1], before[1])


@given(
    prompt=st.lists(st.integers(0, 9), max_size=6),
    generated=st.lists(st.integers(0, 9), max_size=6),
    repetition=st.sampled_from([0.5, 1.0, 1.3]),
    frequency=st.sampled_from([-0.5, 0.0, 0.7]),
    presence=st.sampled_from([-1.0, 0.0, 0.25]),
)
def test_penalties_follow_their_formula(
    prompt: list[int], generated: list[int], repetition: float, frequency: float, presence: float
) -> None:
    scores_NV = scores(1, 10, len(prompt))
    expected = []
    for token, score in enumerate(scores_NV[0].tolist()):
        if token in prompt + generated:
            score = score / repetition if score > 0 else score * repetition
        count = generated.count(token)
        expected.append(score - frequency * count - presence * (count > 0))
    junk = [3, 3, 9, 9]  # what lies beyond the known tokens does not count
    sampling.apply_penalties_(
        scores_NV,
        torch.tensor([prompt + generated + junk], dtype=torch.int32),
        torch.tensor([len(prompt)]),
        torch.tensor([len(prompt) + len(generated)]),
        torch.tensor([repetition]),
        torch.tensor([frequency]),
        torch.tensor([presence]),
    )
    torch.testing.assert_close(scores_NV[0].tolist(), expected, rtol=1e-5, atol=1e-5)


@given(
    logits=st.lists(st.floats(-5, 5, width=32), min_size=3, max_size=12),
    data=st.data(),
)
def test_logprobs_are_a_plain_log_softmax(logits: list[float], data: st.DataObject) -> None:
    token = data.draw(st.integers(0, len(logits) - 1))
    num_top = data.draw(st.integers(0, len(logits)))
    logits_NV = torch.tensor([logits])
    expected_V = logits_NV.double().log_softmax(1)[0]
    logprob_N, rank_N, top_NC, top_id_NC = sampling.token_logprobs(
        logits_NV, torch.tensor([token]), num_top
    )
    torch.testing.assert_close(logprob_N[0].double(), expected_V[token], rtol=1e-4, atol=1e-4)
    assert rank_N.tolist() == [1 + sum(other > logits[token] for other in logits)]
    torch.testing.assert_close(
        top_NC[0].double(), expected_V.sort(descending=True).values[:num_top], rtol=1e-4, atol=1e-4
    )
    torch.testing.assert_close(top_NC[0].double(), expected_V[top_id_NC[0]], rtol=1e-4, atol=1e-4)


@given(
    num_rows=st.integers(1, 4),
    vocab_size=st.integers(1, 100),
    chosen=st.lists(st.integers(0, 3), max_size=4, unique=True),
    seed=st.integers(0, 2**16),
)
def test_masks_forbid_exactly_the_tokens_whose_bit_is_not_set(
    num_rows: int, vocab_size: int, chosen: list[int], seed: int
) -> None:
    generator = np.random.default_rng(seed)
    rows = [row for row in chosen if row < num_rows]
    allowed = generator.random((len(rows), vocab_size)) < 0.5
    padded = np.zeros((len(rows), -(-vocab_size // 32) * 32), bool)
    padded[:, :vocab_size] = allowed
    padded[:, vocab_size:] = generator.random(padded[:, vocab_size:].shape) < 0.5
    bits = np.packbits(padded, axis=1, bitorder="little").view(np.int32)
    before = scores(num_rows, vocab_size, seed)
    after = before.clone()
    sampling.allow_bits_(after, torch.tensor(rows, dtype=torch.int64), torch.from_numpy(bits))
    for row in range(num_rows):
        for token in range(vocab_size):
            banned = row in rows and not allowed[rows.index(row), token]
            assert after[row, token] == (-math.inf if banned else before[row, token])
