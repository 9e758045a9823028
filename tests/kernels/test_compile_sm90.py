"""What the kernels compile to for Hopper, at GLM-4.5V's shapes: no GPU is needed to see it.

Spilled registers, loads of single bytes or the wrong tensor-core instruction make a kernel several
times slower and no less right, so no other test sees them.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

triton = pytest.importorskip("triton", reason="Triton has packages for Linux only")

from glimt.kernels import (  # noqa: E402
    triton_attention,
    triton_chunks,
    triton_cut,
    triton_decoding,
    triton_experts,
    triton_grouped,
    triton_linear,
    triton_messages,
    triton_noise,
    triton_norm_route,
    triton_peer_rows,
    triton_rope,
    triton_router,
    triton_rows,
    triton_segments,
    triton_top,
    triton_turned,
    triton_widen,
)
from glimt.kernels.pending import ExpertRows, LinearParts  # noqa: E402
from glimt.kernels.reference import QuantizedRows  # noqa: E402
from glimt.kernels.reference_experts import Fp8Mlp  # noqa: E402
from glimt.kernels.reference_messages import RowForm  # noqa: E402
from tests.support.hopper import Binary, binaries, caught_launches, compile_launch  # noqa: E402

pytestmark = pytest.mark.skipif(triton.knobs.runtime.interpret, reason="kernels are interpreted")

ROWS, PAGES, PAGE = 16, 128, 64
MANY_ROWS = 2048
HEADS_106B = (96, 8, 128)  # query heads, key-value heads, head dim
HEADS_9B = (32, 2, 128)


def also(*values: Any) -> Any:
    """A case for `make test-all`; a compilation takes one to five seconds."""
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


def meta(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def paged_cache(heads: tuple[int, int, int], fp8: bool) -> tuple[Tensor, Tensor | None]:
    shape = (PAGES, 2, heads[1], PAGE, heads[2])
    if not fp8:
        return meta(*shape), None
    return meta(*shape, dtype=torch.float8_e4m3fn), meta(*shape[:4], dtype=torch.float32)


def attention(
    attend: Callable[..., object], heads: tuple[int, int, int], fp8: bool, **options: Any
) -> list[Binary]:
    """The binaries of one of the two halves of paged attention."""
    cache, scale = paged_cache(heads, fp8)
    q = meta(ROWS, heads[0], heads[2])
    ints = [meta(*shape, dtype=torch.int32) for shape in ((ROWS, 40), (ROWS + 1,), (ROWS,))]
    return binaries(lambda: attend(q, cache, *ints, q, scale, **options))


@pytest.mark.parametrize("heads", [HEADS_106B, also(HEADS_9B)])
def test_decoding_streams_the_cache_in_wide_loads(heads: tuple[int, int, int]) -> None:
    split, combine = attention(triton_decoding.attend_singles, heads, False, max_context_len=4096)
    assert split.stack_bytes == combine.stack_bytes == 0
    assert split.registers <= 128
    assert split.count("LDGSTS.E.BYPASS.128") >= 8  # asynchronous, 16 bytes for each thread
    assert split.count("LDG.E.U8") == split.count("LDG.E.U16") == 0
    assert split.count("HMMA.16816.F32") > 0
    assert split.shared_bytes <= 48 * 1024  # four programs on a multiprocessor
    assert combine.count("LDG.E.128") >= 4


@pytest.mark.parametrize("turns", [True, also(False)])
@pytest.mark.parametrize(
    "tiles", [triton_decoding.PAIR_CONFIGS[0], also(triton_decoding.PAIR_CONFIGS[1])]
)
def test_pairs_of_e4m3_are_turned_on_the_way_and_widened_two_at_once(
    tiles: triton_decoding.Tiles, turns: bool
) -> None:
    angles, slots = meta(ROWS, 32, dtype=torch.float32), meta(ROWS, dtype=torch.int64)
    turning = triton_turned.Turning(angles, angles, slots, interleaved=False)
    split, _ = attention(
        triton_decoding.attend_singles, HEADS_106B, True, max_context_len=4096,
        tiles=tiles, turning=turning if turns else None,
    )  # fmt: skip
    assert split.stack_bytes == 0
    assert split.registers <= 128  # four programs on a multiprocessor
    assert split.shared_bytes <= 57 * 1024
    assert split.count("LDGSTS.E.BYPASS.128") >= 8
    assert split.count("LDSM.16.MT88.4") >= 4
    assert split.count("LDS.U8") == split.count("LDG.E.U8") == 0
    # Keys and values of 64 tokens, 128 numbers of each thread, and no way round by float32.
    assert split.count("F2FP.F16.E4M3.UNPACK_B") == 64
    assert split.count("HADD2.F32") == 0


@pytest.mark.parametrize("fp8", [False, also(True)])
def test_chunks_are_attended_by_warpgroups(fp8: bool) -> None:
    tiles = triton_chunks.CONFIGS[0]
    (chunk,) = attention(triton_chunks.attend_chunks, HEADS_106B, fp8, tiles=tiles)
    assert chunk.stack_bytes == 0
    assert chunk.registers <= 255
    assert chunk.count("HGMMA") > 0
    assert chunk.count("LDGSTS.E.BYPASS.128") > 0
    assert chunk.count("LDG.E.U8") == chunk.count("LDG.E.U16") == 0
    assert chunk.shared_bytes <= 113 * 1024  # two programs on a multiprocessor


def test_pages_are_widened_in_wide_loads_and_stores() -> None:
    cache, scale = paged_cache(HEADS_106B, fp8=True)
    assert scale is not None
    ints = [meta(*shape, dtype=torch.int32) for shape in ((ROWS, 40), (ROWS + 1,), (ROWS,))]
    (widen,) = binaries(
        lambda: triton_widen.widened(cache, scale, *ints, num_pages=PAGES, dtype=torch.bfloat16)
    )
    assert widen.stack_bytes == 0
    assert widen.registers <= 64  # eight programs of four warps on a multiprocessor
    assert widen.count("LDG.E.128") >= 4
    assert widen.count("STG.E.128") >= 8
    assert widen.count("LDG.E.U8") == widen.count("STG.E.U16") == 0


def test_the_vision_tower_attends_by_warpgroups() -> None:
    q, k, v = meta(1000, 36, 128).chunk(3, dim=1)
    starts = meta(3, dtype=torch.int32)
    (segments,) = binaries(lambda: triton_segments.segment_attention(q, k, v, starts))
    assert segments.stack_bytes == 0
    assert segments.count("HGMMA") > 0
    assert segments.count("LDGSTS.E.BYPASS.128") > 0
    assert segments.count("LDG.E.U16") == 0


@pytest.mark.parametrize("fp8", [also(False), True])
def test_heads_are_turned_in_wide_loads_and_stores(fp8: bool) -> None:
    cache, scale = paged_cache(HEADS_106B, fp8)
    angles, slots = meta(ROWS, 32, dtype=torch.float32), meta(ROWS, dtype=torch.int64)
    (turn,) = binaries(
        lambda: triton_rope.turn_and_write_kv(
            meta(ROWS, 112, 128), angles, angles, cache, slots, scale, interleaved=False
        )
    )
    assert turn.stack_bytes == 0
    assert turn.count("LDG.E.128") >= 3
    assert turn.count("STG.E.128") >= 3
    assert turn.count("STG.E.64") >= 2 or not fp8  # eight e4m3 values
    assert turn.count("LDG.E.U16") == turn.count("STG.E.U16") == turn.count("STG.E.U8") == 0


def test_the_heads_of_the_vision_tower_are_turned_in_wide_loads_and_stores() -> None:
    heads, angles = meta(ROWS, 36, 128)[:, :24], meta(ROWS, 64, dtype=torch.float32)
    (turn,) = binaries(lambda: triton_rope.rope(heads, angles, angles, interleaved=False))
    assert turn.stack_bytes == 0
    assert turn.count("LDG.E.128") >= 2
    assert turn.count("STG.E.128") >= 2


@pytest.mark.parametrize("num_tokens", [1, also(64)])
@pytest.mark.parametrize(("num_outputs", "num_inputs"), [(4096, 12288), also(14336, 4096)])
def test_fp8_products_of_few_rows_use_the_fp8_tensor_cores(
    num_outputs: int, num_inputs: int, num_tokens: int
) -> None:
    rows = QuantizedRows(
        meta(num_tokens, num_inputs),
        meta(num_tokens, num_inputs, dtype=torch.float8_e4m3fn),
        meta(num_tokens, 1, dtype=torch.float32),
    )
    weight = meta(num_outputs, num_inputs, dtype=torch.float8_e4m3fn)
    scale = meta(num_outputs, dtype=torch.float32)
    product, *_ = binaries(lambda: triton_linear.fp8_linear(rows, weight, scale))
    assert product.stack_bytes == 0
    assert product.count("QGMMA") > 0  # HMMA would mean that FP8 is widened first
    assert product.count("HMMA") == product.count("HGMMA") == 0
    assert product.count("LDGSTS.E.BYPASS.128") > 0
    assert product.count("LDG.E.U8") == product.count("LDGSTS.E.U8") == 0


def mlp(*count: int, width: int = 1408) -> Fp8Mlp:
    """The experts' weights, or one's."""
    values, scale = torch.float8_e4m3fn, torch.float32
    return Fp8Mlp(
        meta(*count, 2 * width, 4096, dtype=values),
        meta(*count, 2 * width, dtype=scale),
        meta(*count, 4096, width, dtype=values),
        meta(*count, 4096, dtype=scale),
    )


def test_scales_are_read_before_the_weights() -> None:
    rows = QuantizedRows(
        meta(1, 4096), meta(1, 4096, dtype=torch.float8_e4m3fn), meta(1, 1, dtype=torch.float32)
    )
    weight, scale = meta(14336, 4096, dtype=torch.float8_e4m3fn), meta(14336, dtype=torch.float32)
    (product,) = binaries(lambda: triton_linear.fp8_linear(rows, weight, scale, meta(14336)))
    assert product.stack_bytes == 0
    assert "LDG.E" not in product.sass[product.sass.index("QGMMA") :]


@pytest.mark.parametrize(
    ("num_tokens", "shared_width"),
    [(1, 1408), also(16, 1408), also(128, 1408), (1, 704), also(64, 704)],
)
def test_few_tokens_experts_use_the_fp8_tensor_cores(num_tokens: int, shared_width: int) -> None:
    rows = QuantizedRows(
        meta(num_tokens, 4096),
        meta(num_tokens, 4096, dtype=torch.float8_e4m3fn),
        meta(num_tokens, 1, dtype=torch.float32),
    )
    weights, experts = meta(num_tokens, 8, dtype=torch.float32), meta(num_tokens, 8)
    found = binaries(
        lambda: triton_experts.fp8_experts(
            rows, weights, experts.long(), mlp(128), mlp(width=shared_width)
        )
    )
    products = [binary for binary in found if binary.name in ("gate_up_kernel", "down_kernel")]
    assert len(products) == 2
    for product in products:
        assert product.stack_bytes == 0
        assert product.count("QGMMA") > 0
        assert product.count("HMMA") == product.count("HGMMA") == 0
        assert product.count("LDGSTS.E.BYPASS.128") > 0
        assert product.count("LDG.E.U8") == product.count("LDGSTS.E.U8") == 0
        assert product.shared_bytes <= 113 * 1024  # two programs on a multiprocessor


@pytest.mark.parametrize("place", [0, also(1)], ids=["gate_up", "down"])
@pytest.mark.parametrize("number", [0, 1, *map(also, range(2, len(triton_grouped.CONFIGS)))])
def test_products_of_many_tokens_experts_feed_the_fp8_tensor_cores_by_tma(
    number: int, place: int
) -> None:
    tile = triton_grouped.CONFIGS[number]
    q, scale = meta(11464, 4096, dtype=torch.float8_e4m3fn), meta(11464, dtype=torch.float32)
    ends = meta(128, dtype=torch.int32)
    with caught_launches() as launches:
        triton_grouped.outputs(q, scale, ends, mlp(128), tile)
    products = [each for each in launches if each.kernel.__name__ == "grouped_kernel"]
    product = compile_launch(products[place])
    assert product.stack_bytes == 0
    assert product.count("QGMMA") > 0
    assert product.count("HMMA") == product.count("HGMMA") == 0
    assert product.count("UTMALDG") >= 2 * (tile.stages - 1)
    assert product.count("LDG.E.U8") == product.count("STG.E.U16") == 0
    assert product.shared_bytes <= 227 * 1024  # what one program may have
    # A step's tiles go from TMA to tensor cores: only scales and results are moved otherwise.
    assert product.count("STS") <= 20


def test_the_router_reads_its_matrix_in_wide_loads() -> None:
    rule = {"num_experts_per_token": 8, "norm_topk_prob": True, "scale": 1.0}
    bias = meta(128, dtype=torch.float32)
    logits, select = binaries(
        lambda: triton_router.route(meta(1, 4096), meta(128, 4096), bias, **rule)
    )
    assert logits.stack_bytes == select.stack_bytes == 0
    assert logits.count("LDG.E.128") > 0  # one step for each program, so nothing to run ahead of
    assert logits.count("LDG.E.U16") == 0


def test_a_norm_and_the_router_behind_it_fit_one_kernel() -> None:
    rule = {"num_experts_per_token": 8, "norm_topk_prob": True, "scale": 1.0}
    scales = (meta(1, 1, dtype=torch.float32), meta(4096, dtype=torch.float32))
    delta = LinearParts(meta(4, 1, 4096, dtype=torch.float32), *scales)
    bias, arrived = meta(128, dtype=torch.float32), meta(1, dtype=torch.int32)
    given = (meta(1, 4096), delta, meta(4096), 1e-5, meta(128, 4096), bias, arrived)
    (both,) = binaries(lambda: triton_norm_route.norm_and_route(*given, quantizes=True, **rule))
    assert both.stack_bytes == 0
    assert both.registers <= 168
    assert both.count("LDG.E.EF.128") == 4  # the matrix, before anything is summed
    assert "LDG.E.EF" not in both.sass[both.sass.index("SHFL") :]
    before, _, after = both.sass.partition("ATOMG")  # counts who has come
    assert re.search(r"STG(?s:.*)BAR\.SYNC(?s:.*)MEMBAR\.\S+\.GPU", before)
    assert "LDG.E.STRONG.GPU" not in before
    assert after.count("LDG.E.STRONG.GPU") == 16  # logits, each once, past the processor's cache


def test_the_router_of_many_tokens_uses_warpgroups() -> None:
    rule = {"num_experts_per_token": 8, "norm_topk_prob": True, "scale": 1.0}
    bias = meta(128, dtype=torch.float32)
    with caught_launches() as launches:
        triton_router.route(meta(2048, 4096), meta(128, 4096), bias, **rule)
    logits = compile_launch(launches[0])
    assert logits.stack_bytes == 0
    assert logits.count("HGMMA") > 0
    assert logits.count("LDGSTS.E.BYPASS.128") > 0
    assert logits.shared_bytes <= 113 * 1024  # two programs on a multiprocessor


def test_many_rows_are_normed_and_quantised_in_wide_loads() -> None:
    x, weight = meta(MANY_ROWS, 4096), meta(4096)
    for call in (
        lambda: triton_rows.add_rms_norm_quantize(x, x, weight, 1e-5),
        lambda: triton_rows.silu_mul_quantize(meta(MANY_ROWS, 2816)),
        lambda: triton_rows.quantize_rows(x),
    ):
        for binary in binaries(call):
            assert binary.stack_bytes == 0
            assert binary.registers <= 128
            assert binary.count("LDG.E.128") > 0
            assert binary.count("LDG.E.U16") == binary.count("STG.E.U8") == 0


@pytest.mark.parametrize("num_ranks", [2, also(4), also(8)])
def test_parts_are_pushed_and_awaited_in_wide_words(num_ranks: int) -> None:
    peers = triton_peer_rows.PeerRows(
        meta(num_ranks, dtype=torch.int64), meta(128, dtype=torch.int32), 1, 128, 4096
    )
    x, weight = meta(ROWS, 4096), meta(4096)
    (sums,) = binaries(
        lambda: triton_peer_rows.sum_add_rms_norm(x, x, weight, 1e-5, peers, quantizes=True)
    )
    assert sums.stack_bytes == 0
    assert sums.registers <= 128
    pushes = sums.count("STG.E.128")
    assert pushes >= 2 * num_ranks
    assert sums.count("LDG.E.128.STRONG.SYS") >= 2 * pushes  # once before the loop, once in it
    # Threads keep their numbers from the parts to the norm: only sums pass through shared memory.
    assert sums.shared_bytes <= 1024


def left_over(kind: str) -> LinearParts | ExpertRows:
    """What a branch of the 106B model leaves to the norm."""
    ones = meta(ROWS, 1, dtype=torch.float32)
    if kind == "product":
        part = meta(4, ROWS, 4096, dtype=torch.float32)
        return LinearParts(part, ones, meta(4096, dtype=torch.float32))
    weights, experts = meta(ROWS, 8, dtype=torch.float32), meta(ROWS, 8, dtype=torch.int64)
    return ExpertRows(meta(9 * ROWS, 4096), weights, experts, 128, True)


@pytest.mark.parametrize("num_ranks", [2, also(8)])
@pytest.mark.parametrize("kind", ["product", "experts"])
def test_parts_that_are_left_over_are_summed_before_they_are_pushed(
    kind: str, num_ranks: int
) -> None:
    peers = triton_peer_rows.PeerRows(
        meta(num_ranks, dtype=torch.int64), meta(128, dtype=torch.int32), 1, 128, 4096
    )
    x, weight, part = meta(ROWS, 4096), meta(4096), left_over(kind)
    (sums,) = binaries(
        lambda: triton_peer_rows.sum_add_rms_norm(part, x, weight, 1e-5, peers, quantizes=True)
    )
    assert sums.stack_bytes == 0
    assert sums.registers <= 128
    assert sums.count("STG.E.128") >= 2 * num_ranks
    assert sums.count("LDG.E.U16") == 0
    assert sums.shared_bytes <= 1024


@pytest.mark.parametrize("num_parts", [4, also(8)])
def test_norms_of_many_rows_add_the_parts_of_a_product_in_wide_loads(num_parts: int) -> None:
    num_rows, f32 = MANY_ROWS, torch.float32
    x, weight, scale = meta(num_rows, 4096), meta(4096), meta(4096, dtype=f32)
    parts = LinearParts(
        meta(num_parts, num_rows, 4096, dtype=f32), meta(num_rows, 1, dtype=f32), scale
    )
    (norm,) = binaries(lambda: triton_rows.add_rms_norm_quantize(x, parts, weight, 1e-5))
    assert norm.stack_bytes == 0
    assert norm.registers <= 128
    assert norm.count("LDG.E.128") >= 4 * num_parts


@pytest.mark.parametrize("num_parts", [4, also(8)])
def test_norms_of_few_rows_ask_for_all_parts_before_they_add_one(num_parts: int) -> None:
    x, weight, scale = meta(1, 4096), meta(4096), meta(4096, dtype=torch.float32)
    parts = LinearParts(
        meta(num_parts, 1, 4096, dtype=torch.float32), meta(1, 1, dtype=torch.float32), scale
    )
    (norm,) = binaries(lambda: triton_rows.add_rms_norm_quantize(x, parts, weight, 1e-5))
    assert norm.stack_bytes == 0
    assert norm.registers <= 128
    assert norm.sass.partition("FADD")[0].count("LDG.E.128") >= 2 * num_parts
    assert norm.count("CCTL.E.PF2") == 1  # the weights, which are wanted last
    assert norm.shared_bytes <= 1024  # nothing but sums passes through it


def test_as_many_rows_as_processors_are_few() -> None:
    registers = []
    for num_rows in (132, 133):
        with caught_launches() as launches:
            triton_rows.rms_norm(meta(num_rows, 4096), meta(4096), 1e-5)
        registers += [each.options.get("maxnreg") for each in launches]
    assert registers == [128, None]


def test_norms_of_few_rows_have_room_for_the_rows_of_experts() -> None:
    weights, experts = meta(1, 8, dtype=torch.float32), meta(1, 8, dtype=torch.int64)
    rows = ExpertRows(meta(9, 4096), weights, experts, 0, True)
    (norm,) = binaries(
        lambda: triton_rows.add_rms_norm_quantize(meta(1, 4096), rows, meta(4096), 1e-5)
    )
    assert norm.stack_bytes == 0
    assert norm.sass.partition("FFMA")[0].count("LDG.E.64") >= 9
    assert norm.shared_bytes <= 1024


def test_norms_of_many_rows_add_the_rows_of_experts_in_wide_loads() -> None:
    num_rows = MANY_ROWS
    x, weight = meta(num_rows, 4096), meta(4096)
    weights, experts = meta(num_rows, 8, dtype=torch.float32), meta(num_rows, 8, dtype=torch.int64)
    rows = ExpertRows(meta(9 * num_rows, 4096), weights, experts, 128, True)
    (norm,) = binaries(lambda: triton_rows.add_rms_norm_quantize(x, rows, weight, 1e-5))
    assert norm.stack_bytes == 0
    assert norm.registers <= 128
    assert norm.count("LDG.E.128") >= 2 * 9


def test_noise_is_added_in_wide_loads_and_stores() -> None:
    numbers = meta(4, dtype=torch.int64)
    scores, is_random = meta(4, 151552, dtype=torch.float32), meta(4, dtype=torch.bool)
    (noise,) = binaries(lambda: triton_noise.add_noise_(scores, numbers, numbers, is_random))
    assert noise.stack_bytes == 0
    assert noise.registers <= 64
    assert noise.count("LDG.E.128") > 0
    assert noise.count("STG.E.128") > 0


@pytest.mark.slow
def test_cuts_read_scores_in_wide_loads() -> None:
    numbers, shares = meta(4, dtype=torch.int64), meta(4, dtype=torch.float32)
    scores = meta(4, 151552, dtype=torch.float32)
    for binary in binaries(lambda: triton_cut.least_kept(scores, numbers, shares, 151552)):
        assert binary.stack_bytes == 0
        assert binary.count("LDG.E.128") > 0 or binary.name == "cut_kernel"


@pytest.mark.slow
def test_cuts_of_few_candidates_stay_in_registers() -> None:
    numbers, shares = meta(4, dtype=torch.int64), meta(4, dtype=torch.float32)
    scores = meta(4, 151552, dtype=torch.float32)
    for binary in binaries(lambda: triton_top.least_kept(scores, numbers, shares, 64)):
        assert binary.stack_bytes == 0
        assert binary.count("LDG.E.128") > 0


@pytest.mark.slow
@pytest.mark.parametrize("fp8", [False, True])
def test_no_candidate_of_the_decoding_tiles_spills(fp8: bool) -> None:
    configs = triton_decoding.PAIR_CONFIGS if fp8 else triton_decoding.CONFIGS
    least = configs[0].least_tokens  # makes no other code
    for tiles in (tiles for tiles in configs if tiles.least_tokens == least):
        options = {"max_context_len": 4096, "tiles": tiles}
        split = attention(triton_decoding.attend_singles, HEADS_106B, fp8, **options)[0]
        assert split.stack_bytes == 0, tiles


@pytest.mark.slow
@pytest.mark.parametrize("fp8", [False, True])
def test_no_candidate_of_the_chunk_tiles_spills(fp8: bool) -> None:
    for tiles in triton_chunks.CONFIGS:
        if fp8 and tiles.block_l == 128:
            continue  # for BF16 caches: to widen so many keys at a time takes too many registers
        (chunk,) = attention(triton_chunks.attend_chunks, HEADS_106B, fp8, tiles=tiles)
        assert chunk.stack_bytes == 0, tiles


def test_paged_attention_launches_what_the_step_needs() -> None:
    cache, _ = paged_cache(HEADS_106B, False)
    ints = [meta(*shape, dtype=torch.int32) for shape in ((2, 40), (3,), (2,))]

    def num_launches(num_tokens: int, longest: int) -> int:
        options = {"max_query_len": longest, "max_context_len": 100}
        with caught_launches() as launches:
            triton_attention.paged_attention(meta(num_tokens, 96, 128), cache, *ints, **options)
        return len(launches)

    assert num_launches(2, 1) == 1  # so short a context is not split
    assert num_launches(20, 10) == 1  # each row has ten tokens
    assert num_launches(20, 19) == 2


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, also(torch.bfloat16)])
def test_messages_are_copied_in_wide_words(dtype: torch.dtype) -> None:
    form = RowForm(4096, dtype, 8)
    weights, places = meta(ROWS, 8, dtype=torch.float32), meta(ROWS, 8, dtype=torch.int64)
    scale = meta(ROWS, 1, dtype=torch.float32) if form.has_scale else None
    values, message = meta(ROWS, 4096, dtype=dtype), meta(ROWS, form.num_bytes, dtype=torch.uint8)
    (pack,) = binaries(lambda: triton_messages.pack_rows(values, scale, weights, places, ROWS))
    (unpack,) = binaries(lambda: triton_messages.unpack_rows(message, form))
    for binary in (pack, unpack):
        assert binary.stack_bytes == 0
        assert binary.count("LDG.E.128") >= 2
        assert binary.count("STG.E.128") >= 2
