"""Norms, activations and quantisation of whole rows."""

import pytest
import torch
from torch import Tensor

from glimt.kernels import reference, triton_rows


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


def same(got: Tensor, expected: Tensor) -> None:
    """Equal, but for an occasional last bit: a sum in another order rounds otherwise."""
    assert got.dtype == expected.dtype
    a, b = got.float(), expected.float()
    assert torch.isfinite(a).all()
    assert (a != b).sum() <= 0.02 * a.numel()
    torch.testing.assert_close(a, b, rtol=0.14, atol=0.001)


@pytest.mark.parametrize("shape", [(1, 64), (3, 96), (17, 1408), (0, 64), (5, 3, 48)])
def test_rows_are_quantised_as_defined(shape: tuple[int, ...]) -> None:
    x = randn(*shape) * 3
    if x.numel():
        x.view(-1, shape[-1])[0] = 0.0
    q, scale = triton_rows.quantize_rows(x)
    q_expected, scale_expected = reference.quantize_rows(x)
    assert torch.equal(scale, scale_expected)
    assert torch.equal(q.float(), q_expected.float())


def test_small_values_of_a_row_become_subnormal_as_defined() -> None:
    x = torch.cat([torch.tensor([448.0]), torch.linspace(-0.03, 0.03, 1023)])[None].bfloat16()
    q, _ = triton_rows.quantize_rows(x)
    assert torch.equal(q.float(), reference.quantize_rows(x)[0].float())


@pytest.mark.parametrize("num_tokens", [0, 1, 3, 17])
@pytest.mark.parametrize("width", [64, 96])
def test_norms_are_those_defined(num_tokens: int, width: int) -> None:
    x, delta, g = randn(num_tokens, width), randn(num_tokens, width, seed=1), randn(width, seed=2)
    same(triton_rows.rms_norm(x, g, 1e-5), reference.rms_norm(x, g, 1e-5))
    got = triton_rows.add_rms_norm(x, delta, g, 1e-5)
    for ours, theirs in zip(got, reference.add_rms_norm(x, delta, g, 1e-5), strict=True):
        same(ours, theirs)


@pytest.mark.parametrize("adds", [False, True])
def test_a_norm_quantises_what_it_gives(adds: bool) -> None:
    x, g = randn(3, 96), randn(96, seed=2)
    delta = randn(3, 96, seed=1) if adds else None
    rows, total = triton_rows.add_rms_norm_quantize(x, delta, g, 1e-5)
    expected, total_expected = reference.add_rms_norm_quantize(x, delta, g, 1e-5)
    assert torch.equal(total, total_expected)
    same(rows.x_TI, expected.x_TI)
    q, scale = reference.quantize_rows(rows.x_TI)
    assert torch.equal(rows.q_TI.float(), q.float())
    assert torch.equal(rows.scale_T1, scale)


@pytest.mark.parametrize("num_tokens", [0, 1, 17])
def test_activations_are_those_defined_and_are_quantised(num_tokens: int) -> None:
    gate_up = randn(num_tokens, 192)
    same(triton_rows.silu_mul(gate_up), reference.silu_mul(gate_up))
    rows = triton_rows.silu_mul_quantize(gate_up)
    same(rows.x_TI, reference.silu_mul(gate_up))
    assert torch.equal(rows.q_TI.float(), reference.quantize_rows(rows.x_TI)[0].float())
    alone = triton_rows.silu_mul_quantize(gate_up, keeps=False)
    assert torch.equal(alone.q_TI.float(), rows.q_TI.float())
    assert torch.equal(alone.scale_T1, rows.scale_T1)
    assert alone.x_TI.isnan().all()  # as the poisoned memory was: nobody wrote it


@pytest.mark.parametrize("num_rows", [0, 1, 40])
def test_quantised_rows_are_gathered_with_their_scales(num_rows: int) -> None:
    q, scale = reference.quantize_rows(randn(9, 96))
    token = torch.randint(0, 9, (num_rows,), generator=torch.Generator().manual_seed(1))
    q_rows, scale_rows = triton_rows.gather_rows(q, scale, token)
    assert torch.equal(q_rows.float(), q.float()[token])
    assert torch.equal(scale_rows, scale[token, 0])
