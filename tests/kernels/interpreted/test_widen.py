"""e4m3 pages widened once for all queries of a step, interpreted, against the definitions."""

import pytest
import torch

from glimt.kernels import triton_attention, triton_widen
from tests.support.paged_rows import Heads, paged_rows

PREFILL = [(30, 30), (1, 1), (150, 20), (33, 1), (40, 3)]
HEADS_AND_PAGE = [(Heads(24, 2, 128), 64), (Heads(32, 1, 64), 16), (Heads(3, 1, 24), 12)]


def pages_of_chunks(rows: list[tuple[int, int]], page: int) -> int:
    return sum(-(-length // page) for length, count in rows if count > 1)


@pytest.mark.parametrize(("heads", "page"), HEADS_AND_PAGE)
def test_tokens_of_chunks_attend_up_to_themselves(heads: Heads, page: int) -> None:
    rows = paged_rows(PREFILL, heads, page, fp8=True)
    num_pages = pages_of_chunks(PREFILL, page)
    got = triton_attention.paged_attention(*rows.tensors, **rows.options, num_chunk_pages=num_pages)
    torch.testing.assert_close(got, rows.exact(), atol=3e-6, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("num_others", [0, 140])  # more rows than are looked at together
def test_pages_hold_the_rounded_values_in_their_rows_order(
    dtype: torch.dtype, num_others: int
) -> None:
    heads, page = Heads(4, 2, 32), 16
    works = [(20, 5), *[(3, 1)] * num_others, (40, 40), (17, 1), (70, 2)]
    rows = paged_rows(works, heads, page, fp8=True)
    _, kv, table, starts, lengths = rows.tensors
    scale, needed = rows.options["scale_P2GS"], pages_of_chunks(works, page)
    wide, own_table = triton_widen.widened(
        kv, scale, table, starts, lengths, num_pages=needed + 3, dtype=dtype
    )
    exact = kv.float() * scale[..., None]
    seen = []
    for row, (length, count) in enumerate(works):
        for place in range(-(-length // page) if count > 1 else 0):
            own = int(own_table[row, place])
            expected = exact[table[row, place]].to(dtype)
            assert torch.equal(wide[own].nan_to_num(), expected.nan_to_num())
            seen.append(own)
    assert seen == list(range(needed))


def test_more_pages_than_there_is_room_for_are_read_as_they_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(triton_attention, "MAX_WIDENED", 63)
    monkeypatch.setattr(triton_attention, "widened", None)  # cannot be called
    rows = paged_rows([(60, 2)], Heads(4, 2, 32), 16, fp8=True)
    got = triton_attention.paged_attention(*rows.tensors, **rows.options, num_chunk_pages=4)
    torch.testing.assert_close(got, rows.exact(), atol=3e-6, rtol=1e-5)
