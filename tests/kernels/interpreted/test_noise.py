"""Gumbel noise in one pass."""

import pytest
import torch

from glimt.kernels import sampling, triton_noise


@pytest.mark.parametrize(("num_rows", "vocab_size"), [(1, 50), (3, 1024), (4, 3001)])
def test_random_rows_get_the_noise_that_is_defined(num_rows: int, vocab_size: int) -> None:
    generator = torch.Generator().manual_seed(num_rows)
    scores = torch.randn(num_rows, vocab_size, generator=generator)
    seed = torch.randint(-(2**63), 2**63 - 1, (num_rows,), generator=generator)
    index = torch.arange(num_rows) * 100_003
    is_random = torch.arange(num_rows) != 1
    expected = scores.clone()
    sampling.add_noise_(expected, seed, index, is_random)
    got = scores.clone()
    triton_noise.add_noise_(got, seed, index, is_random)
    torch.testing.assert_close(got, expected, rtol=2e-6, atol=2e-6)
    if num_rows > 1:
        assert torch.equal(got[1], scores[1])


def test_a_share_of_the_vocabulary_gets_its_part_of_the_noise() -> None:
    one = torch.ones(1, dtype=torch.int64)
    whole, share = torch.zeros(1, 300), torch.zeros(1, 100)
    triton_noise.add_noise_(whole, one, one, one.bool())
    triton_noise.add_noise_(share, one, one, one.bool(), first_token=200)
    assert torch.equal(share, whole[:, 200:])


def test_the_largest_noise_is_as_exact_as_the_rest() -> None:
    """It decides the draws: a million tokens, of which some have u below 2^-20."""
    got = torch.zeros(1, 1 << 20)
    one = torch.ones(1, dtype=torch.int64)
    triton_noise.add_noise_(got, one, one, one.bool())
    expected = sampling.gumbel_noise(one, one, 1 << 20)
    assert expected.max() > 12
    torch.testing.assert_close(got, expected, rtol=2e-6, atol=3e-6)
