"""The attention kernels on a GPU against their definitions in float32, at the models' shapes."""

import pytest
import torch

from glimt import kernels
from glimt.kernels import reference, reference_attention
from tests.support.paged_rows import Heads, PagedRows, paged_rows

pytest.importorskip("triton", reason="Triton has packages for Linux only")

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype"),
]

# 106B on one, two and four GPUs, the dense 9B, and the tiny models
HEADS = [Heads(96, 8, 128), Heads(24, 2, 128), Heads(32, 2, 128), Heads(4, 2, 64), Heads(4, 2, 32)]
STEPS = {
    "one": [(1, 1)],
    "one long": [(20000, 1)],
    "decoding": [(1 + 97 * i % 3000, 1) for i in range(64)],
    "prompt": [(1433, 1433)],
    "chunk": [(5000, 700)],
    "mixed": [(1600, 1), (1, 1), (2000, 513), (64, 64), (33, 1), (800, 2), (65, 64)],
}


def on_gpu(step: str, heads: Heads, page: int, fp8: bool) -> PagedRows:
    return paged_rows(STEPS[step], heads, page, fp8=fp8, dtype=torch.bfloat16, device="cuda")


def check(got: torch.Tensor, rows: PagedRows) -> None:
    """Each head of each token within a few roundings of bfloat16."""
    exact = rows.exact()
    error = (got.float() - exact).norm(dim=-1) / exact.norm(dim=-1)
    assert float(error.max()) < 0.02
    assert float(error.mean()) < 0.005


@pytest.mark.parametrize("fp8", [False, True])
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("heads", HEADS, ids=str)
def test_paged_attention(heads: Heads, step: str, fp8: bool) -> None:
    rows = on_gpu(step, heads, 64, fp8)
    check(kernels.paged_attention(*rows.tensors, **rows.options), rows)


@pytest.mark.parametrize("page", [16, 32, 48, 128])
def test_paged_attention_with_other_pages(page: int) -> None:
    for step in ("decoding", "mixed"):
        rows = on_gpu(step, HEADS[0], page, False)
        check(kernels.paged_attention(*rows.tensors, **rows.options), rows)


def test_paged_attention_waits_for_nothing_and_repeats_itself() -> None:
    rows = on_gpu("mixed", HEADS[0], 64, False)
    first = kernels.paged_attention(*rows.tensors, **rows.options)
    torch.cuda.set_sync_debug_mode("error")
    try:
        again = [kernels.paged_attention(*rows.tensors, **rows.options) for _ in range(20)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(torch.equal(first, other) for other in again)


@pytest.mark.parametrize("num_rows", [1, 32])
def test_a_captured_decode_step_follows_the_lengths_on_the_device(num_rows: int) -> None:
    options = {"dtype": torch.bfloat16, "device": "cuda"}
    rows = paged_rows([(3000, 1)] * num_rows, HEADS[0], 64, **options)
    lengths = rows.tensors[4]
    kernels.paged_attention(*rows.tensors, **rows.options)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = kernels.paged_attention(*rows.tensors, **rows.options)
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        lengths.copy_(torch.randint(1, 3000, (num_rows,), generator=generator))
        out.fill_(torch.nan)
        graph.replay()
        check(out, rows)
    lengths.zero_()
    graph.replay()
    assert not out.any()


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("fp8", [False, True])
@pytest.mark.parametrize("num_tokens", [1, 64, 2000])
@pytest.mark.parametrize("heads", HEADS, ids=str)
def test_turn_and_write_kv(heads: Heads, num_tokens: int, fp8: bool, interleaved: bool) -> None:
    shape = (num_tokens, heads.queries + 2 * heads.groups, heads.dim)
    x = torch.randn(shape, device="cuda").bfloat16()
    angles = torch.randn(num_tokens, heads.dim // 4, device="cuda") * 100
    slots = torch.randperm(40 * 64, device="cuda")[:num_tokens]
    results = []
    for module in (reference_attention, kernels):
        dtype = torch.float8_e4m3fn if fp8 else torch.bfloat16
        cache = torch.zeros(40, 2, heads.groups, 64, heads.dim, dtype=dtype, device="cuda")
        scale = torch.zeros(cache.shape[:-1], device="cuda") if fp8 else None
        q = module.turn_and_write_kv(
            x, angles.cos(), angles.sin(), cache, slots, scale, interleaved=interleaved
        )
        results.append((q.float(), cache.float(), scale))
    (q, cache, scale), (got_q, got_cache, got_scale) = results
    torch.testing.assert_close(got_q, q, atol=1e-2, rtol=1e-2)  # one rounding, the other way
    if scale is None:
        torch.testing.assert_close(got_cache, cache, atol=1e-2, rtol=1e-2)
    else:
        torch.testing.assert_close(got_scale, scale, atol=1e-6, rtol=1e-2)
        values, got_values = cache * scale[..., None], got_cache * got_scale[..., None]
        assert float((values - got_values).abs().max() / values.abs().max()) < 0.07
        assert float((values - got_values).norm() / values.norm()) < 0.01


@pytest.mark.parametrize("fp8", [False, True])
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("heads", HEADS, ids=str)
def test_decoding_at_once_is_turning_and_writing_and_attending(
    heads: Heads, interleaved: bool, fp8: bool
) -> None:
    rows = paged_rows(STEPS["decoding"], heads, 64, fp8=fp8, dtype=torch.bfloat16, device="cuda")
    _, cache, table, starts, lengths = rows.tensors
    num_rows, last = len(lengths), lengths.long() - 1
    shape = (num_rows, heads.queries + 2 * heads.groups, heads.dim)
    vectors = torch.randn(shape, device="cuda").bfloat16()
    angles = torch.randn(num_rows, heads.dim // 4, device="cuda") * 100
    slots = table[torch.arange(num_rows, device="cuda"), last // 64].long() * 64 + last % 64
    places, results = (slots // 64, slots % 64), []
    for turns in (20, 1):  # of what is done at once: a race would show sooner or later
        kv, scale = cache.clone(), rows.options["scale_P2GS"]
        scale = None if scale is None else scale.clone()
        turning = (vectors, angles.cos(), angles.sin(), kv, slots)
        attended = (table, starts, lengths)
        options = {"max_context_len": 3000, "scale_P2GS": scale}
        if turns == 1:
            q = kernels.turn_and_write_kv(*turning, scale, interleaved=interleaved)
            out = kernels.paged_attention(q, kv, *attended, max_query_len=1, **options)
        outs = []
        for _ in range(turns if turns > 1 else 0):
            kv.view(torch.uint8)[places[0], :, :, places[1]] = 0xFF  # NaN until it is written
            outs.append(
                kernels.decode_attention(*turning, *attended, interleaved=interleaved, **options)
            )
        if outs:
            out = outs[0]
            assert all(torch.equal(out, other) for other in outs)
        written = kv.float()[places[0], :, :, places[1]]
        if scale is not None:
            written *= scale[places[0], :, :, places[1]][..., None]
        results.append((out.float().view(num_rows, -1, heads.dim), written))
    for got, expected in zip(*results, strict=True):
        error = (got - expected).norm(dim=-1) / expected.norm(dim=-1)
        assert float(error.max()) < (0.07 if fp8 else 0.02)


@pytest.mark.parametrize("interleaved", [False, True])
def test_rope_of_the_vision_tower(interleaved: bool) -> None:
    x = torch.randn(1369, 36, 128, device="cuda").bfloat16()[:, :24]
    angles = torch.randn(1369, 64, device="cuda") * 50
    got = kernels.rope(x, angles.cos(), angles.sin(), interleaved=interleaved)
    expected = reference.rope(x, angles.cos(), angles.sin(), interleaved=interleaved)
    torch.testing.assert_close(got, expected, atol=1e-2, rtol=1e-2)  # one rounding, the other way


@pytest.mark.parametrize("head_dim", [128, 32])
@pytest.mark.parametrize("lengths", [[16], [5476, 64, 1, 1024], [256] * 20])
def test_segments_are_attended_without_waiting(lengths: list[int], head_dim: int) -> None:
    heads = torch.randn(sum(lengths), 36, head_dim, device="cuda").bfloat16()
    q, k, v = heads.chunk(3, dim=1)
    kernels.segment_attention(q, k, v, lengths[::-1])
    torch.cuda.set_sync_debug_mode("error")
    try:
        got = kernels.segment_attention(q, k, v, lengths)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    exact = reference_attention.segment_attention(q.float(), k.float(), v.float(), lengths)
    error = (got.float() - exact).norm(dim=-1) / exact.norm(dim=-1)
    assert float(error.max()) < 0.05
    assert float(error.mean()) < 0.005


def test_pixels_are_normed_without_waiting() -> None:
    patches = torch.randint(0, 256, (64, 3, 1, 14, 14), dtype=torch.uint8)
    mean, std = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)
    expected = kernels.normalize_pixels(patches, 2, mean, std)
    on_gpu = patches.cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        got = kernels.normalize_pixels(on_gpu, 2, mean, std)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(got.cpu(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("at_once", [False, True])
def test_decoding_repeats_itself_exactly_in_a_graph(at_once: bool) -> None:
    """In a chain where each reads what the last one gave."""
    rows = paged_rows([(3000, 1)] * 8, HEADS[0], 64, dtype=torch.bfloat16, device="cuda")
    _, cache, table, *rest = rows.tensors
    heads = torch.randn(8, 112, 128, device="cuda").bfloat16()
    angles = torch.randn(8, 32, device="cuda")
    slots = table[:, 2999 // 64].long() * 64 + 2999 % 64

    def layers() -> torch.Tensor:
        x = heads
        for _ in range(6):
            turning = (x, angles.cos(), angles.sin(), cache, slots)
            if at_once:
                out = kernels.decode_attention(
                    *turning, table, *rest, interleaved=False, max_context_len=3000
                )
                assert isinstance(out, torch.Tensor)
                out = out.unflatten(1, (96, 128))
            else:
                q = kernels.turn_and_write_kv(*turning, interleaved=False)
                out = kernels.paged_attention(q, cache, table, *rest, **rows.options)
            x = torch.cat((out, x[:, 96:]), dim=1)
        return x

    expected = layers()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = layers()
    for _ in range(50):
        got.fill_(torch.nan)
        graph.replay()
        assert torch.equal(got, expected)
