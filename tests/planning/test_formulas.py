"""The estimates against tables that were calculated by hand, and against the loader's own sizes.

The tables are for GLM-4.5V-FP8 on H200s that stream 4.3 TB/s, 1600 tokens of context per request,
16-bit KV cache; sums over two GPUs at the times that were published when the tables were made.
"""

import math
import random
from dataclasses import replace

import pytest
import torch

from glimt.kernels.reference_messages import RowForm
from glimt.models.config_json import read_config
from glimt.models.names import Share, fp8_modules, parameters, scale_name
from glimt.models.split import Split
from glimt.planning.constants import SOURCES, load_constants
from glimt.planning.fit import Room, fit
from glimt.planning.layout import Cluster, Layout, layouts
from glimt.planning.links import all_reduce_s, exchange_s, row_bytes
from glimt.planning.published import published
from glimt.planning.routing import distinct_experts, fullest_gpu
from glimt.planning.shares import gpu_share
from glimt.planning.speed import Speed
from tests.support.configs import tiny_config

CONSTANTS = load_constants()
BY_HAND = replace(
    CONSTANTS,
    collectives=replace(
        CONSTANTS.collectives,
        floor_s=3e-6,
        all_reduce={
            **CONSTANTS.collectives.all_reduce,
            2: (
                (4096, 3.9e-6),
                (32768, 4.5e-6),
                (262144, 7.9e-6),
                (2**19, 12.5e-6),
                (2**20, 19.9e-6),
            ),
            4: (
                (4096, 3.7e-6),
                (32768, 4.8e-6),
                (2**19, 10e-6),
                (2**20, 15e-6),
                (2**21, 22e-6),
            ),
        },
    ),
    engine=replace(
        CONSTANTS.engine,
        decode_efficiency=0.85,
        launches_per_layer=10,
        launch_s=1.3e-6,
        layer_s=1e-12,
        split_efficiency=1.0,
    ),
)
FP8 = published("zai-org/GLM-4.5V-FP8")
DENSE = published("GLM-4.6V-Flash")
assert FP8 is not None
assert DENSE is not None


def speed(tp: int, *, floor: bool, fp8_kv: bool = False, layout: Layout | None = None) -> Speed:
    gpu = CONSTANTS.gpu("h200")
    return Speed(FP8, layout or Layout(tp), gpu, BY_HAND, True, fp8_kv, floor)


@pytest.mark.parametrize(
    ("batch", "experts", "gigabytes"),
    [
        (1, 8.0, 13.45),
        (2, 15.5, 19.29),
        (4, 29.1, 29.89),
        (8, 51.6, 47.41),
        (16, 82.4, 71.39),
        (32, 111.8, 94.24),
        (64, 125.9, 105.27),
        (128, 128.0, 106.85),
        (256, 128.0, 106.87),
    ],
)
def test_a_step_reads_what_was_calculated_by_hand(
    batch: int, experts: float, gigabytes: float
) -> None:
    one = speed(1, floor=True)
    assert one.touched_experts(batch) == pytest.approx(experts, abs=0.06)
    read = one.share.read_bytes(one.touched_experts(batch))
    assert read / 1e9 == pytest.approx(gigabytes, rel=0.003)  # the hand left out the scales


@pytest.mark.parametrize(
    ("batch", "tp1", "tp2", "tp4", "tp4_fp8_kv"),
    [
        (1, 3.20, 1.88, 1.08, 1.07),
        (8, 11.6, 6.07, 3.18, 3.1),
        (32, 24.2, 12.4, 6.32, 6.0),
        (64, 29.0, 15.6, 8.5, 8.0),
        (128, 33.8, 18.8, 9.8, 8.7),
        (256, 42.8, 24.2, 12.7, 10.5),
    ],
)
def test_floors_of_a_step_are_those_calculated_by_hand(
    batch: int, tp1: float, tp2: float, tp4: float, tp4_fp8_kv: float
) -> None:
    floors = [1e3 * speed(tp, floor=True).step_s(batch, 1600) for tp in (1, 2, 4)]
    assert floors[:2] == pytest.approx([tp1, tp2], rel=0.01)
    assert floors[2] == pytest.approx(tp4, rel=0.04)  # between published all-reduce times
    half = 1e3 * speed(4, floor=True, fp8_kv=True).step_s(batch, 1600)
    assert half == pytest.approx(tp4_fp8_kv, rel=0.05)


@pytest.mark.parametrize(
    ("batch", "tp1", "tp2", "tp4"),
    [
        (1, 4.4, 2.9, 2.0),
        (8, 14.2, 7.8, 4.5),
        (32, 29.0, 15.5, 8.6),
        (64, 34.7, 18.8, 10.4),
        (256, 51.0, 28.5, 15.2),
    ],
)
def test_a_good_engines_steps_are_the_aims_of_the_design(
    batch: int, tp1: float, tp2: float, tp4: float
) -> None:
    steps = [1e3 * speed(tp, floor=False).step_s(batch, 1600) for tp in (1, 2, 4)]
    assert steps == pytest.approx([tp1, tp2, tp4], rel=0.045)


@pytest.mark.parametrize(
    ("image", "decoder", "tower", "decoder_tp4", "sums_tp4"),
    [
        (500, 29.5, 5.4, 7.4, 1.9),
        (1000, 35.8, 12.6, 8.9, 3.4),
        (1500, 43.1, 21.6, 10.8, 5.0),
        (2000, 51.3, 32.4, 12.8, 6.6),
        (3000, 78.2, 59.5, 19.6, 9.7),
    ],
)
def test_prompts_and_images_take_what_was_calculated_by_hand(
    image: int, decoder: float, tower: float, decoder_tp4: float, sums_tp4: float
) -> None:
    one, four = speed(1, floor=True), speed(4, floor=True)
    assert 1e3 * one.prompt_s(image + 90, 8192) == pytest.approx(decoder, rel=0.02)
    assert 1e3 * one.image_s(image) == pytest.approx(tower, rel=0.01)
    whole = 1e3 * four.prompt_s(image + 90, 8192)
    assert whole == pytest.approx(decoder_tp4 + sums_tp4, rel=0.02)


def test_a_long_prompt_reads_the_experts_once_for_each_chunk() -> None:
    """Short chunks cost more; one chunk of all costs least."""
    one = speed(1, floor=True)
    times = [one.prompt_s(8192, chunk) for chunk in (512, 2048, 8192)]
    assert times == sorted(times, reverse=True)
    assert times[0] > 2 * times[2]


@pytest.mark.parametrize(("tp", "tokens"), [(1, 178e3), (2, 0.94e6), (4, 2.46e6)])
def test_as_much_kv_fits_beside_the_weights_as_was_calculated_by_hand(
    tp: int, tokens: float
) -> None:
    fits = fit(
        FP8,
        Layout(tp, vision_data=True),
        CONSTANTS.gpu("h200"),
        replace(CONSTANTS.engine, reserve_bytes=6e9),
        Room(utilization=1.0, max_num_seqs=10_000, max_model_len=None),
        fp8=True,
        fp8_kv=False,
        request_tokens=1600,
        step_tokens=8192,
    )
    assert fits.kv_tokens == pytest.approx(tokens, rel=0.015)
    assert fits.requests == fits.kv_tokens // 1600


def test_the_published_sizes_are_those_of_the_hub() -> None:
    assert gpu_share(FP8, Layout(), fp8=True).weight_bytes == 109_999_771_648
    assert gpu_share(FP8, Layout(), fp8=False).weight_bytes == 215_421_877_760
    assert gpu_share(DENSE, Layout(), fp8=False).weight_bytes == 20_585_554_944
    assert gpu_share(DENSE, Layout(), fp8=True).weight_bytes == 12_434_064_384


TINY = {
    "glm4v_moe": read_config(
        tiny_config(
            "glm4v_moe",
            text={"num_key_value_heads": 2, "intermediate_size": 96, "moe_intermediate_size": 32},
        )
    ),
    "glm4v": read_config(tiny_config("glm4v")),
}


@pytest.mark.parametrize("fp8", [False, True])
@pytest.mark.parametrize("kind", list(TINY))
@pytest.mark.parametrize(
    ("layout", "share"),
    [
        (Layout(), Share()),
        (Layout(2, vision_data=True), Share(text=Split(1, 2))),
        (Layout(2), Share(text=Split(1, 2), vision=Split(0, 2))),
        (Layout(4, vision_data=True), Share(text=Split(3, 4))),
        (
            Layout(2, spread=True, vision_data=True),
            Share(text=Split(0, 2), experts=Split(0, 2)),
        ),
        (
            Layout(2, 4, spread=True, vision_data=True, gpus_per_node=4),
            Share(text=Split(0, 2), experts=Split(0, 4)),
        ),
    ],
)
def test_a_gpus_share_is_what_the_loader_reads(
    kind: str, layout: Layout, share: Share, fp8: bool
) -> None:
    config = TINY[kind]
    quantised = fp8_modules(config) if fp8 else frozenset()
    num_bytes = 0
    for parameter in parameters(config, share):
        elements = math.prod(parameter.shape)
        if parameter.module in quantised:
            assert scale_name(parameter.name)
            num_bytes += elements + 4 * math.prod(parameter.shape[:-1])
        else:
            num_bytes += elements * (4 if parameter.name.endswith("router.bias") else 2)
    assert gpu_share(config, layout, fp8=fp8).weight_bytes == num_bytes


@pytest.mark.parametrize(("batch", "fullest"), [(1, 3.45), (8, 15.7), (32, 29.8)])
def test_the_fullest_of_four_gpus_has_as_many_experts_as_in_a_simulation(
    batch: int, fullest: float
) -> None:
    touched = distinct_experts(batch, 128, 8)
    assert fullest_gpu(touched, 128, 4) == pytest.approx(fullest, rel=0.02)


def test_the_fullest_gpu_is_exact_for_cards_dealt_at_random() -> None:
    dealt, draws = random.Random(0), 20_000
    most = 0
    for _ in range(draws):
        hands = [0, 0, 0, 0]
        for card in dealt.sample(range(16), 5):
            hands[card // 4] += 1
        most += max(hands)
    assert fullest_gpu(5, 16, 4) == pytest.approx(most / draws, rel=0.01)


def shared(copies: int, *, floor: bool) -> Speed:
    return speed(1, floor=floor, layout=Layout(1, copies, spread=True, gpus_per_node=copies))


def test_a_row_to_experts_of_other_copies_has_the_bytes_of_the_message() -> None:
    for dtype in (torch.float8_e4m3fn, torch.bfloat16):
        form = RowForm(4096, dtype, 8)
        assert row_bytes(4096, 8, fp8=form.has_scale) == form.num_bytes


def test_copies_that_share_experts_read_fewer_and_exchange_rows() -> None:
    """Two copies of one GPU, a request each: 15.5 experts touched, of which the fuller GPU of two
    has 8.9; in each of 45 layers a row of 4,176 bytes there and one of 8,192 back."""
    one, two = speed(1, floor=False), shared(2, floor=False)
    fuller = fullest_gpu(distinct_experts(2, 128, 8), 128, 2)
    assert fuller == pytest.approx(9.2, abs=0.4)
    alone = one.step_bytes(1, 1600)
    more = 45 * (fuller - 8) * one.share.expert.num_bytes(True)
    assert two.step_bytes(1, 1600, 1) == pytest.approx(alone + more, rel=1e-6)
    exchanges_s = two.step_s(1, 1600, 1) - one.step_s(1, 1600) - more / one.gpu.bandwidth / 0.85
    assert exchanges_s == pytest.approx(45 * 2 * BY_HAND.collectives.exchange[0][1], rel=0.02)
    # Of a full prompt step the link's rate: 8,192 rows from each of three others, there and back.
    four = shared(4, floor=True)
    link_s = 45 * 3 * 8192 * (4176 + 8192) / four.gpu.link
    alike = four.prompt_s(8192, 8192, 1, 3) - link_s
    assert alike == pytest.approx(speed(1, floor=True).prompt_s(8192, 8192), rel=0.1)


def test_a_machines_copies_share_experts_and_others_have_their_own() -> None:
    every = {layout.name: layout for layout in layouts(FP8, Cluster(8, 4))}
    for name, sharing, ep in (
        ("DP32 + EP8", 8, 8),
        ("TP2 x DP16 + EP8", 4, 8),
        ("TP8 x DP4 + EP8", 1, 8),
        ("TP16 x DP2 + EP16", 1, 16),
        ("TP32 + EP", 1, 32),
        ("DP32 + EP", 32, 32),
        ("TP8 x DP4 + EP", 4, 32),
    ):
        assert (every[name].sharing, every[name].ep) == (sharing, ep)
        assert every[name].num_groups * sharing == every[name].dp
    assert "TP16 x DP2 + EP" not in every  # copies of several machines share with no other
    assert "DP6 + EP" not in {layout.name for layout in layouts(FP8, Cluster(6))}  # 128 / 6


def test_rows_to_other_machines_go_through_the_adapter() -> None:
    """Sixteen copies, of which eight are on another machine: 1,459 rows from each of those."""
    gpu, there, back = CONSTANTS.gpu("h200"), 4176, 8192
    near_s = exchange_s(1459, 8, (there, back), gpu, CONSTANTS.collectives)
    far_s = exchange_s(1459, 16, (there, back), gpu, CONSTANTS.collectives, num_far=8)
    through_s = 8 * 1459 * (there + back) / CONSTANTS.collectives.node_link
    assert far_s == pytest.approx(through_s + 2 * CONSTANTS.collectives.node_latency_s)
    assert far_s > 3 * near_s
    wide, narrow = (
        speed(1, floor=True, layout=Layout(1, 16, spread=True, wide=each)) for each in (True, False)
    )
    assert wide.share.weight_bytes < narrow.share.weight_bytes
    assert wide.step_s(1, 1600) > narrow.step_s(1, 1600)


def test_sums_over_more_gpus_take_no_less() -> None:
    for size in (8192, 2**17, 2**20, 2**24):
        times = [all_reduce_s(size, gpus, CONSTANTS.collectives) for gpus in (1, 2, 4, 8, 16, 32)]
        assert times == sorted(times)


def test_every_constant_says_where_it_comes_from() -> None:
    assert len(CONSTANTS.origins) > 30
    for source, note in CONSTANTS.origins.values():
        assert source in SOURCES
        assert len(note) > 10
