"""Splits of contexts and the combining of parts on a GPU, at GLM-4.5V's shapes."""

import pytest
import torch
from torch import Tensor

from glimt import kernels
from glimt.kernels.reference import MeasuredRows
from tests.support.paged_rows import Heads, PagedRows, paged_rows

pytest.importorskip("triton", reason="Triton has packages for Linux only")

from glimt.kernels import triton_decoding

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype"),
]

HEADS = Heads(96, 8, 128)
KINDS = pytest.mark.parametrize("kind", ["bf16", "e4m3"])


def decoding(num_rows: int, kind: str, longest: int = 5000) -> PagedRows:
    """Contexts of 1 … longest tokens."""
    generator = torch.Generator().manual_seed(num_rows)
    lengths = torch.randint(1, longest + 1, (num_rows,), generator=generator).tolist()
    lengths[-1] = longest
    rows = [(length, 1) for length in lengths]
    fp8 = kind != "bf16"
    return paged_rows(rows, HEADS, 64, fp8=fp8, dtype=torch.bfloat16, device="cuda")


def full(num_rows: int) -> PagedRows:
    """Contexts of 2048 tokens, which may be told to be shorter."""
    rows = [(2048, 1)] * num_rows
    return paged_rows(rows, HEADS, 64, dtype=torch.bfloat16, device="cuda")


def exact(rows: PagedRows) -> Tensor:
    """`rows.exact()`, few rows at a time: the definition copies keys and values for every head."""
    q, cache, table, _, lengths = rows.tensors
    parts = []
    for few in torch.arange(len(q), device="cuda").split(8):
        starts = torch.arange(len(few) + 1, dtype=torch.int32, device="cuda")
        given = (q[few], cache, table[few], starts, lengths[few])
        parts.append(PagedRows(given, rows.options).exact())
    return torch.cat(parts)


def attended(rows: PagedRows, splits: int | None = None) -> tuple[Tensor, Tensor]:
    """(heads [T, N, H], the largest of each [T, N]) into memory that held NaN."""
    q, *rest = rows.tensors
    out = torch.full(q.shape, torch.nan, dtype=q.dtype, device="cuda")
    largest = torch.full(q.shape[:2], torch.nan, device="cuda")
    triton_decoding.attend_singles(
        q, *rest, out, rows.options["scale_P2GS"], largest_TN=largest, splits=splits,
        max_context_len=rows.options["max_context_len"]
    )  # fmt: skip
    return out, largest


def compare(got: tuple[Tensor, Tensor], expected: Tensor) -> None:
    out, largest = got
    error = (out.float() - expected).norm(dim=-1) / expected.norm(dim=-1)
    assert float(error.max()) < 0.02
    assert float(error.mean()) < 0.005
    assert torch.equal(largest, out.float().abs().amax(-1))


@KINDS
@pytest.mark.parametrize("num_rows", [1, 2, 8, 64, 66, 67, 82, 120, 128])
def test_rows_of_mixed_contexts_give_the_definition(num_rows: int, kind: str) -> None:
    rows = decoding(num_rows, kind)
    compare(attended(rows), exact(rows))


@KINDS
@pytest.mark.parametrize("splits", [2, 3, 5, 16, 33, 64])
def test_any_number_of_parts_gives_the_definition_and_repeats_itself(
    splits: int, kind: str
) -> None:
    rows = decoding(8, kind)
    first, largest = attended(rows, splits)
    compare((first, largest), exact(rows))
    for _ in range(100):
        again = attended(rows, splits)
        assert torch.equal(again[0], first)
        assert torch.equal(again[1], largest)


@pytest.mark.parametrize("num_rows", [1, 8, 82])
def test_replays_and_usual_launches_take_turns(num_rows: int) -> None:
    rows = full(num_rows)
    lengths = rows.tensors[4]
    attended(rows, 3)  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out, largest = attended(rows, 3)
    torch.cuda.set_sync_debug_mode("error")
    try:
        attended(rows, 3)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for turn in range(1000):
        if turn % 100 == 0:  # other lengths and so other numbers of parts, on the device only
            generator = torch.Generator().manual_seed(turn)
            lengths.copy_(torch.randint(1, 2049, (num_rows,), generator=generator))
            expected = attended(rows, 3)
        out.fill_(torch.nan)
        graph.replay()
        assert torch.equal(out, expected[0])
        assert torch.equal(largest, expected[1])
        if turn % 7 == 0:
            assert torch.equal(attended(rows, 3)[0], out)


@KINDS
@pytest.mark.parametrize("num_rows", [1, 8, 16])
def test_decoding_that_turns_writes_and_measures_repeats_itself(num_rows: int, kind: str) -> None:
    rows = decoding(num_rows, kind, 2000)
    _, cache, table, starts, lengths = rows.tensors
    last = lengths.long() - 1
    slots = table[torch.arange(num_rows, device="cuda"), last // 64].long() * 64 + last % 64
    vectors = torch.randn(num_rows, 112, 128, device="cuda").bfloat16()
    angles = torch.randn(num_rows, 32, device="cuda")

    def decoded() -> MeasuredRows:
        cache.view(torch.uint8)[slots // 64, :, :, slots % 64] = 0xFF  # NaN until it is written
        out = kernels.decode_attention(
            vectors, angles.cos(), angles.sin(), cache, slots, table, starts, lengths,
            interleaved=False, max_context_len=2048, scale_P2GS=rows.options["scale_P2GS"],
            measures=True,
        )  # fmt: skip
        assert isinstance(out, MeasuredRows)
        return out

    first = decoded()
    assert bool(first.x_TI.isfinite().all())
    assert torch.equal(first.largest_TC, first.x_TI.float().unflatten(1, (96, 128)).abs().amax(-1))
    for _ in range(200):
        again = decoded()
        assert torch.equal(again.x_TI, first.x_TI)
        assert torch.equal(again.largest_TC, first.largest_TC)
