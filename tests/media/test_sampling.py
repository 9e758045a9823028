"""Which frames, and what their times are called, by both generations' rules."""

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glimt.media.sampling import sample, timestamps
from glimt.wire import ImageSettings

OLD = ImageSettings(sampler="glm4v")
NEW = ImageSettings(sampler="glm46v")


@pytest.mark.parametrize(
    ("seconds", "old", "new"),
    [
        (10, 20, 60),
        (30, 60, 180),
        (31, 62, 62),
        (300, 600, 600),
        (600, 600, 600),
        (3600, 600, 640),
    ],
)
def test_numbers_of_frames_are_the_published_ones(seconds: int, old: int, new: int) -> None:
    assert len(sample(30 * seconds, 30.0, OLD, 640)) == old
    assert len(sample(30 * seconds, 30.0, NEW, 640)) == new


rates = st.sampled_from([1.0, 5.0, 12.5, 23.976023976023978, 24.0, 25.0, 29.97002997, 30.0, 60.0])
counts = st.one_of(st.integers(1, 200), st.integers(1, 20_000))


@given(counts, rates)
def test_glm4v_samples_as_transformers_does(num_frames: int, fps: float) -> None:
    module = pytest.importorskip("transformers.models.glm4v.video_processing_glm4v")
    processor = SimpleNamespace(fps=2, max_duration=300)
    metadata = SimpleNamespace(fps=fps, total_num_frames=num_frames, duration=num_frames / fps)
    theirs = module.Glm4vVideoProcessor.sample_frames(processor, metadata)
    assert sample(num_frames, fps, OLD, 640) == tuple(theirs.tolist())


# Worked out once with the class's own code (transformers 5.17.0, video_processing_glm46v), which
# cannot be imported without torchvision.
GLM46V = {
    (5, 30.0): (2, (0, 0), (0, 0), 0),
    (6, 30.0): (2, (0, 0), (0, 0), 0),
    (10, 10.0): (6, (0, 2, 4, 5, 7, 9), (4, 5, 7, 9), 27),
    (48, 24.0): (12, (0, 4, 8, 12, 16, 20, 24, 28), (32, 36, 41, 45), 266),
    (90, 30.0): (18, (0, 5, 10, 15, 20, 25, 30, 35), (70, 75, 80, 85), 766),
    (100, 29.97): (20, (0, 4, 9, 14, 18, 23, 28, 33), (75, 80, 85, 90), 891),
    (301, 30.0): (60, (0, 5, 10, 15, 20, 25, 30, 35), (284, 289, 294, 300), 8971),
    (900, 30.0): (180, (0, 5, 10, 15, 20, 25, 30, 35), (881, 886, 891, 896), 80636),
    (930, 30.0): (62, (0, 15, 30, 45, 60, 75, 90, 105), (870, 885, 900, 915), 28365),
    (700, 23.976): (176, (0, 3, 7, 11, 15, 19, 23, 27), (684, 688, 692, 692), 61156),
    (60, 1.0): (60, (0, 1, 2, 3, 4, 5, 6, 7), (56, 57, 58, 59), 1770),
    (100, 2.0): (100, (0, 1, 2, 3, 4, 5, 6, 7), (96, 97, 98, 99), 4950),
    (9000, 30.0): (600, (0, 15, 30, 45, 60, 75, 90, 105), (8940, 8955, 8970, 8985), 2695500),
    (7500, 25.0): (600, (0, 13, 25, 38, 50, 63, 75, 88), (7450, 7463, 7475, 7488), 2246400),
    (18000, 30.0): (
        600,
        (0, 30, 60, 90, 120, 150, 180, 210),
        (17880, 17910, 17940, 17970),
        5391000,
    ),
    (72000, 30.0): (
        640,
        (0, 112, 225, 338, 450, 563, 676, 788),
        (71660, 71773, 71886, 71999),
        23039361,
    ),
    (108000, 30.0): (
        640,
        (0, 169, 338, 507, 676, 845, 1014, 1183),
        (107491, 107660, 107829, 107999),
        34559361,
    ),
    (500, 0.5): (500, (0, 1, 2, 3, 4, 5, 6, 7), (496, 497, 498, 499), 124750),
    (3000, 1000.0): (18, (0, 167, 334, 500, 667, 834, 1000, 1167), (2334, 2500, 2667, 2834), 25506),
}


@pytest.mark.parametrize(("num_frames", "fps"), list(GLM46V))
def test_glm46v_samples_as_transformers_does(num_frames: int, fps: float) -> None:
    indices = sample(num_frames, fps, NEW, 640)
    count, first, last, total = GLM46V[num_frames, fps]
    assert (len(indices), indices[:8], indices[-4:], sum(indices)) == (count, first, last, total)


@given(counts, rates, st.sampled_from([OLD, NEW]), st.integers(1, 640))
def test_samples_are_even_ascending_and_bounded(
    num_frames: int, fps: float, settings: ImageSettings, max_frames: int
) -> None:
    indices = sample(num_frames, fps, settings, max_frames)
    assert len(indices) % 2 == 0
    assert 2 <= len(indices) <= max(2, max_frames)
    assert indices[0] >= 0
    assert indices[-1] < num_frames
    different = sorted(set(indices))
    assert list(indices) in (different, [*different, different[-1]])


@pytest.mark.parametrize("settings", [OLD, NEW])
@pytest.mark.parametrize("fps", [1.0, 30.0, 1000.0])
def test_a_single_frame_is_shown_twice(settings: ImageSettings, fps: float) -> None:
    assert sample(1, fps, settings, 640) == (0, 0)


def test_a_few_frames_are_seen_where_the_rule_wants_none() -> None:
    assert sample(4, 30.0, NEW, 640) == (0, 3)


def test_the_operators_rate_and_limit_count() -> None:
    assert len(sample(300, 30.0, ImageSettings(fps=0.5), 640)) == 6  # 5, made even
    assert len(sample(300, 30.0, OLD, 8)) == 8
    assert len(sample(300, 30.0, ImageSettings(sampler="glm46v", max_frames=9), 640)) == 8


@pytest.mark.parametrize("sampler", ["glm4v", "glm46v"])
def test_a_number_of_frames_is_spread_evenly_over_the_video(sampler: str) -> None:
    settings = ImageSettings(sampler=sampler, num_frames=4)
    assert sample(301, 30.0, settings, 640) == (0, 100, 200, 300)
    assert sample(3, 30.0, settings, 640) == (0, 1, 2, 2)
    assert len(sample(301, 30.0, ImageSettings(sampler=sampler, num_frames=32), 640)) == 32
    assert len(sample(301, 30.0, ImageSettings(sampler=sampler, num_frames=32), 8)) == 8


def test_times_are_written_as_each_generation_does() -> None:
    assert timestamps((0, 15, 30, 45, 60, 75), 30.0, "glm4v") == ("0", "1", "2")
    assert timestamps((0, 5, 11, 20), 30.0, "glm46v") == ("0.0 seconds", "0.4 seconds")
    assert timestamps((47, 50), 24.0, "glm4v") == ("1",)
