"""Other ways to read e4m3 pages, on a GPU, against the definitions in float32."""

import pytest
import torch
from torch import Tensor

from glimt import kernels
from tests.support.paged_rows import Heads, PagedRows, paged_rows

pytest.importorskip("triton", reason="Triton has packages for Linux only")

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype"),
]

GLM = Heads(96, 8, 128)
HEADS = [GLM, Heads(24, 2, 128), Heads(32, 2, 128), Heads(4, 2, 64), Heads(4, 2, 32)]
DECODING = [(1 + 97 * i % 3000, 1) for i in range(64)]
STEPS = {
    "one": [(1, 1)],
    "one long": [(20000, 1)],
    "decoding": DECODING,
    "prompt": [(1433, 1433)],
    "prompts": [(700 + i, 700 + i) for i in range(11)],
    "chunk": [(5000, 700)],
    "few of many": [(16000, 2)],
    "mixed": [(1600, 1), (1, 1), (2000, 513), (64, 64), (33, 1), (800, 2), (65, 64)],
}


def on_gpu(step: list[tuple[int, int]], heads: Heads, page: int = 64) -> PagedRows:
    return paged_rows(step, heads, page, fp8=True, dtype=torch.bfloat16, device="cuda")


def errors(got: Tensor, exact: Tensor) -> Tensor:
    """Of each head of each token, as a share of it."""
    return (got.float() - exact).norm(dim=-1) / exact.norm(dim=-1)


@pytest.mark.parametrize("page", [64, 16, 48, 128])
@pytest.mark.parametrize("step", ["one", "one long", "decoding", "mixed"])
@pytest.mark.parametrize("heads", HEADS, ids=str)
def test_pages_are_read_in_pairs(heads: Heads, step: str, page: int) -> None:
    rows = on_gpu(STEPS[step], heads, page)
    found = errors(kernels.paged_attention(*rows.tensors, **rows.options), rows.exact())
    assert float(found.max()) < 0.02
    assert float(found.mean()) < 0.005


def test_pairs_are_as_exact_as_bfloat16_pages_of_the_same_numbers() -> None:
    rows = on_gpu(DECODING, GLM)
    q, cache, *rest = rows.tensors
    scale, means = rows.options["scale_P2GS"], []
    wide = (cache.float() * scale[..., None]).bfloat16()
    for pages, of_pages in ((wide, None), (cache, scale)):
        options = {**rows.options, "scale_P2GS": of_pages}
        got = kernels.paged_attention(q, pages, *rest, **options)
        means.append(float(errors(got, rows.exact()).mean()))
    assert means[1] < 1.05 * means[0]


@pytest.mark.parametrize("heads", HEADS, ids=str)
def test_what_a_step_writes_is_read_in_pairs_by_the_same_kernel(heads: Heads) -> None:
    rows = on_gpu(DECODING, heads)
    _, cache, table, starts, lengths = rows.tensors
    num_rows, last = len(lengths), lengths.long() - 1
    vectors = torch.randn(num_rows, heads.queries + 2 * heads.groups, heads.dim, device="cuda")
    vectors = vectors.bfloat16()
    angles = torch.randn(num_rows, heads.dim // 4, device="cuda") * 100
    slots = table[torch.arange(num_rows, device="cuda"), last // 64].long() * 64 + last % 64
    scale = rows.options["scale_P2GS"]
    turning = (vectors, angles.cos(), angles.sin(), cache, slots)
    options = {"max_context_len": 3000, "scale_P2GS": scale}
    q = kernels.turn_and_write_kv(*turning, scale, interleaved=True)
    expected = kernels.paged_attention(
        q, cache, table, starts, lengths, max_query_len=1, **options
    ).float()
    outs = []
    for _ in range(50):
        cache.view(torch.uint8)[slots // 64, :, :, slots % 64] = 0xFF  # NaN until it is written
        out = kernels.decode_attention(
            *turning, table, starts, lengths, interleaved=True, **options
        )
        assert isinstance(out, Tensor)
        outs.append(out)
    assert all(torch.equal(outs[0], other) for other in outs)
    assert float(errors(outs[0].view(expected.shape), expected).max()) < 0.07


@pytest.mark.parametrize("num_rows", [1, 5, 64])
def test_pairs_repeat_themselves_exactly_in_a_graph(num_rows: int) -> None:
    rows = on_gpu([(3000 - 7 * i, 1) for i in range(num_rows)], GLM)
    expected = kernels.paged_attention(*rows.tensors, **rows.options)
    assert float(errors(expected, rows.exact()).max()) < 0.02
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = kernels.paged_attention(*rows.tensors, **rows.options)
    differing = torch.zeros((), dtype=torch.int64, device="cuda")
    for _ in range(1000):
        got.fill_(torch.nan)
        graph.replay()
        differing += (got != expected).sum()
    assert int(differing) == 0


@pytest.mark.parametrize("page", [64, 16, 48])
@pytest.mark.parametrize("step", ["prompt", "prompts", "chunk", "few of many", "mixed"])
@pytest.mark.parametrize("heads", HEADS, ids=str)
def test_widened_pages_are_attended_as_pages_of_the_same_numbers(
    heads: Heads, step: str, page: int
) -> None:
    works = STEPS[step]
    rows = on_gpu(works, heads, page)
    q, cache, *rest = rows.tensors
    scale = rows.options["scale_P2GS"]
    num_pages = sum(-(-length // page) for length, count in works if count > 1)

    def attend() -> Tensor:
        return kernels.paged_attention(q, cache, *rest, **rows.options, num_chunk_pages=num_pages)

    wide = (cache.float() * scale[..., None]).bfloat16()
    options = {**rows.options, "scale_P2GS": None}
    expected = kernels.paged_attention(q, wide, *rest, **options)
    is_chunk = torch.tensor([count > 1 for _, count in works for _ in range(count)])
    torch.cuda.set_sync_debug_mode("error")
    try:
        outs = [attend() for _ in range(20)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(torch.equal(outs[0], other) for other in outs)
    assert torch.equal(outs[0].cpu()[is_chunk], expected.cpu()[is_chunk])
    assert float(errors(outs[0], rows.exact()).max()) < 0.03  # keys and values are rounded, too
