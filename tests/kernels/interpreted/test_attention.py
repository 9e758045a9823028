"""Paged attention and rotary embedding, interpreted, against their definitions."""

import pytest
import torch
from torch import Tensor

from glimt.kernels import (
    reference,
    reference_attention,
    triton_attention,
    triton_chunks,
    triton_decoding,
    triton_rope,
    triton_segments,
)
from glimt.kernels.triton_attention_block import Tiles
from tests.support.paged_rows import Heads, paged_rows

DECODING = [(5, 1), (300, 1), (1, 1), (129, 1)]
PREFILL = [(30, 30), (1, 1), (150, 20), (33, 1), (40, 3)]
HEADS_AND_PAGE = [(Heads(24, 2, 128), 64), (Heads(32, 1, 64), 16), (Heads(3, 1, 24), 12)]


@pytest.mark.parametrize("fp8", [False, True])
@pytest.mark.parametrize(("heads", "page"), HEADS_AND_PAGE)
def test_decoding_rows_attend_to_their_whole_context(heads: Heads, page: int, fp8: bool) -> None:
    rows = paged_rows(DECODING, heads, page, fp8=fp8)
    got = triton_attention.paged_attention(*rows.tensors, **rows.options)
    torch.testing.assert_close(got, rows.exact(), atol=3e-6, rtol=1e-5)


@pytest.mark.parametrize(("interleaved", "fp8"), [(False, True), (True, False)])
@pytest.mark.parametrize(("heads", "page"), [HEADS_AND_PAGE[1], (Heads(3, 1, 24), 12)])
def test_decoding_rows_turn_their_heads_and_write_their_keys_and_values(
    heads: Heads, page: int, interleaved: bool, fp8: bool
) -> None:
    rows = paged_rows(DECODING, heads, page, fp8=fp8)
    _, cache, table, starts, lengths = rows.tensors
    num_rows, generator = len(lengths), torch.Generator().manual_seed(1)
    shape = (num_rows, heads.queries + 2 * heads.groups, heads.dim)
    vectors = torch.randn(shape, generator=generator)
    angles = torch.randn(num_rows, heads.dim // 4, generator=generator)
    last = lengths.long() - 1
    slots = table[torch.arange(num_rows), last // page].long() * page + last % page
    options = {"max_context_len": 300, "interleaved": interleaved}
    results = []
    for module in (reference_attention, triton_attention):
        copies = cache.clone(), rows.options["scale_P2GS"]
        scale = None if copies[1] is None else copies[1].clone()
        given = (vectors, angles.cos(), angles.sin(), copies[0], slots, table, starts, lengths)
        if module is reference_attention:
            given = (*given[:5], table.clamp(max=len(cache) - 1), *given[6:])
        out = module.decode_attention(*given, **options, scale_P2GS=scale)
        places = slots // page, slots % page
        written = copies[0].float()[places[0], :, :, places[1]]
        results.append((out, written))
        if scale is not None:
            results[-1] = (out, written * scale[places[0], :, :, places[1]][..., None])
    for got, expected in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(got, expected, atol=3e-6, rtol=1e-5)


@pytest.mark.parametrize("context", [300, 2000])
def test_decoding_rows_are_measured_for_the_product_that_follows(context: int) -> None:
    rows = paged_rows(DECODING, Heads(24, 2, 128), 64)
    q, *rest = rows.tensors
    out, largest = q.new_empty(q.shape), torch.full(q.shape[:2], torch.nan)
    triton_decoding.attend_singles(q, *rest, out, None, max_context_len=context, largest_TN=largest)
    assert torch.equal(largest, out.bfloat16().float().abs().amax(-1))


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
def test_products_with_e4m3_pages_are_good_for_values_of_any_size(size: float) -> None:
    rows = paged_rows([(300, 1), (40, 9)], Heads(4, 2, 32), 16, fp8=True, dtype=torch.bfloat16)
    rows.options["scale_P2GS"][:, 1] *= size
    got = triton_attention.paged_attention(*rows.tensors, **rows.options).float()
    exact = rows.exact()
    assert float(((got - exact).norm(dim=-1) / exact.norm(dim=-1)).max()) < 0.01


@pytest.mark.parametrize("max_context_len", [4096, 131072])
def test_a_launch_for_longer_contexts_gives_the_same(max_context_len: int) -> None:
    rows = paged_rows(DECODING, Heads(4, 2, 32), 16)
    options = {**rows.options, "max_context_len": max_context_len}
    got = triton_attention.paged_attention(*rows.tensors, **options)
    torch.testing.assert_close(got, rows.exact(), atol=3e-6, rtol=1e-5)


@pytest.mark.parametrize("fp8", [False, True])
@pytest.mark.parametrize(("heads", "page"), HEADS_AND_PAGE)
def test_tokens_of_chunks_attend_up_to_themselves(heads: Heads, page: int, fp8: bool) -> None:
    rows = paged_rows(PREFILL, heads, page, fp8=fp8)
    got = triton_attention.paged_attention(*rows.tensors, **rows.options)
    torch.testing.assert_close(got, rows.exact(), atol=3e-6, rtol=1e-5)


@pytest.mark.parametrize("tiles", triton_decoding.CONFIGS[::5], ids=str)
def test_any_tiles_of_decoding_give_the_same(tiles: triton_decoding.Tiles) -> None:
    rows = paged_rows(DECODING, Heads(4, 2, 32), 16)
    q, *rest = rows.tensors
    out = torch.full_like(q, torch.nan, memory_format=torch.contiguous_format)
    triton_decoding.attend_singles(q, *rest, out, None, max_context_len=300, tiles=tiles)
    torch.testing.assert_close(out, rows.exact(), atol=3e-6, rtol=1e-5)


@pytest.mark.parametrize("tiles", triton_chunks.CONFIGS[1:], ids=str)
def test_any_tiles_of_chunks_give_the_same(tiles: Tiles) -> None:
    rows = paged_rows([(30, 30), (90, 20)], Heads(4, 2, 32), 16)
    q, *rest = rows.tensors
    out = torch.full_like(q, torch.nan, memory_format=torch.contiguous_format)
    triton_chunks.attend_chunks(q, *rest, out, None, tiles=tiles)
    torch.testing.assert_close(out, rows.exact(), atol=3e-6, rtol=1e-5)


def test_rows_that_are_all_of_one_length_are_all_attended() -> None:
    rows = paged_rows([(40, 7), (9, 7), (7, 7)], Heads(4, 2, 32), 16)
    got = triton_attention.paged_attention(*rows.tensors, **rows.options)
    torch.testing.assert_close(got, rows.exact(), atol=3e-6, rtol=1e-5)


def test_a_row_without_context_gives_zeros_and_harms_no_other() -> None:
    rows = paged_rows([(300, 1), (10, 1), (20, 1)], Heads(4, 2, 32), 16)
    expected = rows.exact()
    rows.tensors[4][1] = 0
    got = triton_attention.paged_attention(*rows.tensors, **rows.options)
    assert not got[1].any()
    torch.testing.assert_close(got[::2], expected[::2], atol=3e-6, rtol=1e-5)


def test_a_step_without_rows_gives_nothing() -> None:
    cache = torch.zeros(1, 2, 2, 16, 32)
    empty = torch.zeros(0, dtype=torch.int32)
    got = triton_attention.paged_attention(
        torch.zeros(0, 4, 32), cache, empty[:, None], torch.zeros(1, dtype=torch.int32), empty,
        max_query_len=1, max_context_len=1,
    )  # fmt: skip
    assert got.shape == (0, 4, 32)


def test_a_cache_with_gaps_is_refused() -> None:
    rows = paged_rows([(5, 1)], Heads(4, 2, 32), 16)
    q, cache, *rest = rows.tensors
    with pytest.raises(ValueError, match="contiguous"):
        triton_attention.paged_attention(q, cache.transpose(2, 3), *rest, **rows.options)


@pytest.mark.parametrize("lengths", [[5], [70, 1, 64, 130], [64, 64]])
@pytest.mark.parametrize(("num_heads", "head_dim"), [(2, 128), (3, 24)])
def test_segments_do_not_see_each_other(lengths: list[int], num_heads: int, head_dim: int) -> None:
    q, k, v = torch.randn(sum(lengths), 3 * num_heads, head_dim).chunk(3, dim=1)
    starts = torch.tensor([0, *lengths]).cumsum(0).int()
    got = triton_segments.segment_attention(q, k, v, starts)
    expected = reference_attention.segment_attention(q, k, v, lengths)
    torch.testing.assert_close(got, expected, atol=3e-6, rtol=1e-5)


def cache_and_scale(heads: Heads, page: int, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    cache = torch.full((5, 2, heads.groups, page, heads.dim), torch.nan).to(dtype)
    return cache, torch.full(cache.shape[:-1], 7.0) if dtype.itemsize == 1 else None


@pytest.mark.parametrize(
    ("dtype", "fp8", "interleaved"),  # each two of their values together once
    [
        (torch.float32, False, False),
        (torch.float32, True, True),
        (torch.bfloat16, False, True),
        (torch.bfloat16, True, False),
    ],
)
@pytest.mark.parametrize(
    ("heads", "num_pairs"), [(Heads(24, 2, 128), 32), (Heads(4, 2, 32), 16), (Heads(5, 1, 24), 3)]
)
def test_queries_are_turned_and_keys_and_values_are_in_their_slots(
    heads: Heads, num_pairs: int, dtype: torch.dtype, fp8: bool, interleaved: bool
) -> None:
    x = torch.randn(7, heads.queries + 2 * heads.groups, heads.dim).to(dtype)
    x[3] = 0.0  # the smallest scale
    angles = torch.randn(7, num_pairs) * 10
    slots = torch.randperm(5 * 4)[:7]
    results = []
    for module in (reference_attention, triton_rope):
        cache, scale = cache_and_scale(heads, 4, torch.float8_e4m3fn if fp8 else dtype)
        q = module.turn_and_write_kv(
            x, angles.cos(), angles.sin(), cache, slots, scale, interleaved=interleaved
        )
        results.append((q, cache.float(), torch.zeros(1) if scale is None else scale))
    for got, expected in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(got, expected, atol=0, rtol=0, equal_nan=True)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(("num_heads", "num_pairs"), [(24, 16), (3, 5)])
def test_heads_of_a_wider_row_are_turned(num_heads: int, num_pairs: int, interleaved: bool) -> None:
    x = torch.randn(5, num_heads + 4, 32)[:, :num_heads]
    cos, sin = torch.randn(2, 5, num_pairs)
    got = triton_rope.rope(x, cos, sin, interleaved=interleaved)
    expected = reference.rope(x, cos, sin, interleaved=interleaved)
    torch.testing.assert_close(got, expected, atol=0, rtol=0)


def test_heads_with_gaps_are_refused() -> None:
    x, angles = torch.zeros(2, 8, 64)[..., :32], torch.zeros(2, 8)
    cache, _ = cache_and_scale(Heads(4, 2, 32), 4, torch.float32)
    with pytest.raises(ValueError, match="contiguous"):
        triton_rope.turn_and_write_kv(x, angles, angles, cache, torch.arange(2), interleaved=False)
    with pytest.raises(ValueError, match="contiguous"):
        triton_rope.rope(x, angles, angles, interleaved=False)


@pytest.mark.parametrize("fp8", [False, True])
@pytest.mark.parametrize(("heads", "page"), [(Heads(24, 2, 128), 64), (Heads(3, 1, 24), 12)])
def test_parts_of_contexts_are_combined_by_their_weights(
    heads: Heads, page: int, fp8: bool
) -> None:
    rows = paged_rows(DECODING, heads, page, fp8=fp8)
    q, *rest = rows.tensors
    tiles = next(tiles for tiles in triton_decoding.CONFIGS if tiles[:2] == (32, 64))
    out, largest = torch.full(q.shape, torch.nan), torch.full(q.shape[:2], torch.nan)
    triton_decoding.attend_singles(
        q, *rest, out, rows.options["scale_P2GS"],
        max_context_len=300, largest_TN=largest, tiles=tiles, splits=6,
    )  # fmt: skip
    torch.testing.assert_close(out, rows.exact(), atol=3e-6, rtol=1e-5)
    assert torch.equal(largest, out.bfloat16().float().abs().amax(-1))
