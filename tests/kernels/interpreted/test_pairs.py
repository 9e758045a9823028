"""Rows of one token over e4m3 pages read in pairs, interpreted, against the definitions."""

import pytest
import torch

from glimt.kernels import reference_attention, triton_attention, triton_decoding
from tests.support.paged_rows import Heads, paged_rows

ROWS = [(5, 1), (300, 1), (1, 1), (129, 1)]
HEADS_AND_PAGE = [(Heads(24, 2, 128), 64), (Heads(12, 1, 64), 16), (Heads(6, 2, 40), 12)]


@pytest.mark.parametrize(("heads", "page"), HEADS_AND_PAGE)
def test_rows_attend_to_their_whole_context(heads: Heads, page: int) -> None:
    rows = paged_rows(ROWS, heads, page, fp8=True)
    got = triton_attention.paged_attention(*rows.tensors, **rows.options)
    torch.testing.assert_close(got, rows.exact(), atol=3e-6, rtol=1e-5)


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
def test_values_may_be_of_any_size(size: float) -> None:
    rows = paged_rows([(300, 1), (40, 9)], Heads(4, 2, 32), 16, fp8=True, dtype=torch.bfloat16)
    rows.options["scale_P2GS"][:, 1] *= size
    got = triton_attention.paged_attention(*rows.tensors, **rows.options).float()
    exact = rows.exact()
    assert float(((got - exact).norm(dim=-1) / exact.norm(dim=-1)).max()) < 0.01


def test_rows_turn_their_heads_and_write_what_they_then_read() -> None:
    heads, page = Heads(12, 1, 64), 16
    rows = paged_rows(ROWS, heads, page, fp8=True)
    _, cache, table, starts, lengths = rows.tensors
    generator = torch.Generator().manual_seed(1)
    vectors = torch.randn(len(ROWS), 14, heads.dim, generator=generator)
    angles = torch.randn(len(ROWS), 16, generator=generator)
    last = lengths.long() - 1
    slots = table[torch.arange(len(ROWS)), last // page].long() * page + last % page
    outs = []
    for module in (reference_attention, triton_attention):
        kv, scale = cache.clone(), rows.options["scale_P2GS"].clone()
        in_range = table.clamp(max=len(cache) - 1)
        outs.append(
            module.decode_attention(
                vectors, angles.cos(), angles.sin(), kv, slots, in_range, starts, lengths,
                interleaved=True, max_context_len=300, scale_P2GS=scale,
            )
        )  # fmt: skip
    torch.testing.assert_close(outs[1], outs[0], atol=3e-6, rtol=1e-5)


@pytest.mark.parametrize("tiles", triton_decoding.PAIR_CONFIGS[::3], ids=str)
def test_any_tiles_give_the_same(tiles: triton_decoding.Tiles) -> None:
    rows = paged_rows(ROWS, Heads(4, 2, 32), 32, fp8=True)
    q, *rest = rows.tensors
    out = torch.full_like(q, torch.nan, memory_format=torch.contiguous_format)
    scale, options = rows.options["scale_P2GS"], {"max_context_len": 300, "tiles": tiles}
    triton_decoding.attend_singles(q, *rest, out, scale, **options)
    torch.testing.assert_close(out, rows.exact(), atol=3e-6, rtol=1e-5)


def test_heads_of_an_odd_width_or_few_numbers_are_read_one_by_one() -> None:
    for width in (16, 33):
        rows = paged_rows(ROWS[:2], Heads(2, 1, width), 16, fp8=True)
        got = triton_attention.paged_attention(*rows.tensors, **rows.options)
        torch.testing.assert_close(got, rows.exact(), atol=3e-6, rtol=1e-5)


def test_a_row_without_context_gives_zeros() -> None:
    rows = paged_rows([(300, 1), (10, 1)], Heads(4, 2, 32), 16, fp8=True)
    rows.tensors[4][1] = 0
    got = triton_attention.paged_attention(*rows.tensors, **rows.options)
    assert not got[1].any()
