"""Paged attention and the KV cache against dense attention over the same tokens."""

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from glimt import kernels
from glimt.kernels.reference_attention import _attend_decoding

PAGE = 4
HEADS = st.sampled_from([(4, 2, 16), (2, 2, 8), (6, 1, 32)])


@dataclass
class Cache:
    """Rows of keys and values, written to scattered pages of a cache full of NaN."""

    k: list[Tensor]  # [L, G, H] per row
    v: list[Tensor]
    kv: Tensor
    page_table: Tensor
    scale: Tensor | None

    def attend(self, q: list[Tensor]) -> Tensor:
        """q[r] are the queries of the last tokens of row r."""
        starts = [0]
        for part in q:
            starts.append(starts[-1] + part.shape[0])
        lengths = [k.shape[0] for k in self.k]
        return kernels.paged_attention(
            torch.cat(q),
            self.kv,
            self.page_table,
            torch.tensor(starts, dtype=torch.int32),
            torch.tensor(lengths, dtype=torch.int32),
            max_query_len=max(part.shape[0] for part in q),
            max_context_len=max(lengths),
            scale_P2GS=self.scale,
        )


def make_cache(lengths: list[int], num_groups: int, head_dim: int, *, fp8: bool = False) -> Cache:
    generator = torch.Generator().manual_seed(sum(lengths))
    num_pages = [-(-length // PAGE) for length in lengths]
    order = torch.randperm(sum(num_pages) + 3, generator=generator)
    dtype = torch.float8_e4m3fn if fp8 else torch.float32
    kv = torch.full((order.numel(), 2, num_groups, PAGE, head_dim), torch.nan).to(dtype)
    scale = torch.full(kv.shape[:-1], torch.nan) if fp8 else None
    table = torch.zeros(len(lengths), max(num_pages), dtype=torch.int32)
    k, v = [], []
    for row, length in enumerate(lengths):
        pages, order = order[: num_pages[row]], order[num_pages[row] :]
        table[row, : num_pages[row]] = pages
        k.append(torch.randn(length, num_groups, head_dim, generator=generator))
        v.append(torch.randn(length, num_groups, head_dim, generator=generator))
        index = torch.arange(length)
        kernels.write_kv(k[-1], v[-1], kv, pages[index // PAGE] * PAGE + index % PAGE, scale)
    return Cache(k, v, kv, table, scale)


def dense(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Token by token, head by head, in float64."""
    out = torch.empty_like(q)
    group = q.shape[1] // k.shape[1]
    for token in range(q.shape[0]):
        seen = k.shape[0] - q.shape[0] + token + 1
        for head in range(q.shape[1]):
            keys, values = k[:seen, head // group].double(), v[:seen, head // group].double()
            weights = torch.softmax(keys @ q[token, head].double() / q.shape[2] ** 0.5, 0)
            out[token, head] = (weights @ values).float()
    return out


@given(
    heads=HEADS,
    rows=st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30)), min_size=1, max_size=4),
)
def test_every_token_attends_to_its_own_row_up_to_itself(
    heads: tuple[int, int, int], rows: list[tuple[int, int]]
) -> None:
    num_heads, num_groups, head_dim = heads
    cache = make_cache([length for length, _ in rows], num_groups, head_dim)
    q = [torch.randn(min(new, length), num_heads, head_dim) for length, new in rows]
    expected = torch.cat([dense(*row) for row in zip(q, cache.k, cache.v, strict=True)])
    torch.testing.assert_close(cache.attend(q), expected, atol=2e-6, rtol=1e-5)


@given(heads=HEADS, lengths=st.lists(st.integers(1, 20), min_size=1, max_size=5))
def test_the_path_for_decoding_steps_gives_the_same(
    heads: tuple[int, int, int], lengths: list[int]
) -> None:
    num_heads, num_groups, head_dim = heads
    cache = make_cache(lengths, num_groups, head_dim)
    q = torch.randn(len(lengths), num_heads, head_dim)
    lens = torch.tensor(lengths, dtype=torch.int32)
    got = _attend_decoding(q, cache.kv, cache.page_table, lens, max(lengths), None)
    torch.testing.assert_close(got, cache.attend(list(q[:, None])), atol=2e-6, rtol=1e-5)


def test_fp8_pages_hold_each_vector_within_e4m3_precision_of_its_own_scale() -> None:
    cache = make_cache([9, 5], 2, 16, fp8=True)
    assert cache.scale is not None
    kept: list[list[Tensor]] = [[], []]
    for row, length in enumerate((9, 5)):
        pages = cache.page_table[row, : -(-length // PAGE)].long()
        values = cache.kv.float()[pages] * cache.scale[pages, ..., None]
        for index in (0, 1):
            kept[index].append(values[:, index].transpose(1, 2).flatten(0, 1)[:length])
    for stored, given_ in zip(kept[0] + kept[1], cache.k + cache.v, strict=True):
        largest = given_.abs().amax(-1, keepdim=True)
        # half a step: 2^-4 of the value, or 2^-10 of the smallest normal's scale
        assert bool(((stored - given_).abs() <= given_.abs() / 16 + largest * 2e-5).all())
    q = [torch.randn(2, 4, 16), torch.randn(1, 4, 16)]
    expected = torch.cat([dense(*row) for row in zip(q, *kept, strict=True)])
    torch.testing.assert_close(cache.attend(q), expected, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("heads", [(8, 2, 32), (4, 4, 16)])
@pytest.mark.parametrize("length", [37, 300])
def test_a_token_gets_the_same_in_any_chunk_and_batch(
    heads: tuple[int, int, int], length: int
) -> None:
    num_heads, num_groups, head_dim = heads
    whole_cache = make_cache([length], num_groups, head_dim)
    q = torch.randn(length, num_heads, head_dim)
    whole = whole_cache.attend([q])
    k, v = whole_cache.k[0], whole_cache.v[0]
    for start, new in ((0, 1), (0, 20), (16, 1), (17, 3), (21, 16), (length - 1, 1)):
        cache = make_cache([start + new, 11], num_groups, head_dim)
        index = torch.arange(start + new)
        slots = cache.page_table[0, index // PAGE].long() * PAGE + index % PAGE
        kernels.write_kv(k[: start + new], v[: start + new], cache.kv, slots)
        got = cache.attend([q[start : start + new], torch.randn(2, num_heads, head_dim)])
        expected = whole[start : start + new]
        torch.testing.assert_close(got[:new], expected, atol=2e-6, rtol=0)


@given(st.lists(st.integers(1, 20), min_size=1, max_size=4))
def test_segments_do_not_see_each_other(lengths: list[int]) -> None:
    q, k, v = (torch.randn(sum(lengths), 2, 8) for _ in range(3))
    got = kernels.segment_attention(q, k, v, lengths)
    start = 0
    for length in lengths:
        part = slice(start, start + length)
        scores = torch.einsum("qnh,knh->nqk", q[part], k[part]) / 8**0.5
        expected = torch.einsum("nqk,knh->qnh", scores.softmax(-1), v[part])
        torch.testing.assert_close(got[part], expected, atol=2e-6, rtol=1e-5)
        start += length
