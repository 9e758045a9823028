"""Clips become pairs of frames with times; what is not allowed is refused before it is decoded."""

import io
import struct
import time
from fractions import Fraction
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from glimt.errors import BadMedia
from glimt.media.prepare import Prepared, prepare
from glimt.media.sampling import sample, timestamps
from glimt.media.video import Video, frame_rate
from glimt.wire import ImageSettings, MediaJob, MediaLimits
from tests.support.media import Pixels, clip, encoded, grey_clip, pattern

LIMITS = MediaLimits()


def opened(data: bytes, limits: MediaLimits = LIMITS) -> Video:
    return Video(memoryview(data), limits, time.monotonic() + 60)


def prepared(data: bytes, sampler: str = "glm4v", **limits: Any) -> Prepared:
    settings = ImageSettings(sampler=sampler, max_pixels=47_040_000)
    return prepare(
        MediaJob(job_id=1, kind="video", settings=settings, limits=MediaLimits(**limits)), data
    )


def all_frames(data: bytes) -> list[Pixels]:
    """Every frame, decoded one after the other."""
    with av.open(io.BytesIO(data)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


CONTAINERS = [
    ("mp4", "libx264", "yuv420p", {}),
    ("mov", "libx264", "yuv420p", {"g": "10", "bf": "3"}),
    ("matroska", "libx264", "yuv420p", {"g": "6", "bf": "0"}),
    ("matroska", "libx265", "yuv420p", {"x265-params": "log-level=none:keyint=10"}),
    ("webm", "libvpx-vp9", "yuv420p", {"g": "8"}),
    ("webm", "libvpx", "yuv420p", {"g": "8"}),
    ("mp4", "mpeg4", "yuv420p", {"g": "5", "bf": "2"}),
    ("mp4", "libx264", "yuv420p", {"g": "8", "x264-params": "open-gop=1:bframes=3"}),
]


@pytest.mark.parametrize(("container", "codec", "pix_fmt", "options"), CONTAINERS)
def test_the_sparse_decoder_gives_the_frames_of_a_full_one(
    container: str, codec: str, pix_fmt: str, options: dict[str, str]
) -> None:
    data = clip(
        [pattern(48, 64, i) for i in range(45)], container, codec, pix_fmt=pix_fmt, **options
    )
    expected = all_frames(data)
    with opened(data) as video:
        assert video.num_frames == len(expected)
        for indices in (range(45), [0], [44], [7, 8, 31], [1, 12, 13, 29, 40, 44]):
            for index, pixels in zip(indices, video.frames(indices), strict=True):
                np.testing.assert_array_equal(pixels, expected[index])


def test_sparse_sampling_does_not_feed_the_decoder_everything() -> None:
    data = grey_clip(100, g="10", bf="0")
    with opened(data) as video:
        assert len(list(video.frames([0, 95]))) == 2
        assert video.num_fed_packets < 20


def test_an_animated_gif_is_a_video() -> None:
    images = [Image.new("RGB", (56, 42), (40 * i, 10, 200)) for i in range(5)]
    data = encoded(images[0], "GIF", save_all=True, append_images=images[1:], duration=200)
    with opened(data) as video:
        assert video.num_frames == 5
        assert video.fps == pytest.approx(5)
        for index, pixels in zip([0, 2, 4], video.frames([0, 2, 4]), strict=True):
            assert abs(int(pixels[3, 3, 0]) - 40 * index) <= 2


def test_transparent_parts_of_a_gif_show_white() -> None:
    image = Image.new("RGBA", (28, 28), (0, 0, 0, 0))
    image.paste((255, 0, 0, 255), (0, 0, 14, 28))
    data = encoded(image, "GIF", save_all=True, append_images=[image.rotate(180)])
    with opened(data) as video:
        first = next(video.frames([0]))
    assert first[5, 5].tolist() == [255, 0, 0]
    assert first[5, 20].tolist() == [255, 255, 255]


@pytest.mark.parametrize("sampler", ["glm4v", "glm46v"])
def test_a_clip_becomes_steps_of_two_frames_with_times(sampler: str) -> None:
    data = grey_clip(20, rate=10)
    result = prepared(data, sampler)
    indices = sample(20, 10.0, ImageSettings(sampler=sampler), 640)
    shown = tuple(frame.timestamp for frame in result.frames)
    assert shown == timestamps(indices, 10.0, sampler)
    assert len(result.frames) == len(indices) // 2
    expected = all_frames(data)
    step_bytes = result.frames[0].nbytes
    for step, frame in enumerate(result.frames):
        assert (frame.num_frames, frame.offset) == (2, step * step_bytes)
        pixels = result.buffer[frame.offset : frame.offset + frame.nbytes]
        patches = pixels.reshape(-1, 3, 2, 14, 14)
        assert patches.shape[0] == frame.grid_h * frame.grid_w
        for slot in range(2):
            grey = expected[indices[2 * step + slot]][0, 0]
            assert np.unique(patches[:, :, slot]).tolist() == sorted(set(grey.tolist()))


def test_a_one_frame_clip_shows_its_frame_twice() -> None:
    for sampler in ("glm4v", "glm46v"):
        result = prepared(clip([pattern(56, 84)]), sampler)
        (frame,) = result.frames
        patches = result.buffer.reshape(-1, 3, 2, 14, 14)
        np.testing.assert_array_equal(patches[:, :, 0], patches[:, :, 1])
        assert frame.timestamp in ("0", "0.0 seconds")


def test_the_number_of_frames_counts_in_the_size() -> None:
    """60 frames of 196 x 196 are 2.3 M pixels: over a limit of 1 M they must shrink."""
    settings = ImageSettings(sampler="glm46v", max_pixels=1_000_000)
    data = grey_clip(60, 196, 196, rate=6)
    result = prepare(MediaJob(job_id=1, kind="video", settings=settings, limits=LIMITS), data)
    frame = result.frames[0]
    assert len(result.frames) == 30
    assert 60 * frame.grid_h * frame.grid_w * 196 <= 1_000_000


@pytest.mark.parametrize("quarter_turns", [0, 1, 2, 3])
def test_a_clip_held_sideways_is_turned_upright(quarter_turns: int) -> None:
    data = clip([pattern(48, 80)] * 2)
    turned = with_rotation(data, quarter_turns)
    with opened(turned) as video:
        shown = next(video.frames([0]))
    # The matrix turns clockwise.
    np.testing.assert_array_equal(shown, np.rot90(all_frames(data)[0], -quarter_turns))


def test_an_unknown_rate_counts_as_24() -> None:
    assert frame_rate(None) == frame_rate(Fraction(0)) == 24.0
    assert frame_rate(Fraction(30_000, 1001)) == pytest.approx(29.97, abs=0.001)
    for senseless in (Fraction(-1), Fraction(10**9)):
        with pytest.raises(BadMedia, match="rate"):
            frame_rate(senseless)


@pytest.mark.parametrize("faststart", [False, True])
def test_a_truncated_clip_is_refused(faststart: bool) -> None:
    flags = {"movflags": "faststart"} if faststart else {}
    data = grey_clip(40, container_options=flags, g="5")
    noisy = clip([pattern(48, 64, i) for i in range(40)], container_options=flags, g="5")
    for whole in (data, noisy):
        for tenth in range(10):
            with pytest.raises(BadMedia):
                prepared(whole[: len(whole) * tenth // 10])


def test_fragmented_mp4_is_read() -> None:
    data = grey_clip(40, container_options={"movflags": "frag_keyframe+empty_moov"}, g="10", bf="0")
    with opened(data) as video:
        assert video.num_frames == 40


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"just text", "not a video"),
        (b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile:///etc/passwd\n", "not a video"),
        (b"ffconcat version 1.0\nfile /etc/passwd\n", "not a video"),
        (b"<?xml version='1.0'?><MPD><BaseURL>http://127.0.0.1/</BaseURL></MPD>", "not a video"),
        (b"\0\0\0\x18ftypisom" + bytes(100), "damaged"),
        (b"\x1aE\xdf\xa3" + bytes(100), "damaged"),
        (b"GIF89a", "damaged"),
    ],
)
def test_what_is_no_video_is_refused(data: bytes, reason: str) -> None:
    with pytest.raises(BadMedia, match=reason):
        prepared(data)


@pytest.mark.parametrize(
    ("container", "codec", "pix_fmt"),
    [("mov", "mjpeg", "yuvj420p"), ("mov", "jpeg2000", "rgb24"), ("matroska", "ffv1", "yuv420p")],
)
def test_other_codecs_are_refused(container: str, codec: str, pix_fmt: str) -> None:
    data = clip([pattern(48, 64)] * 2, container, codec, pix_fmt=pix_fmt)
    with pytest.raises(BadMedia, match="codec"):
        prepared(data)


def test_sound_alone_is_no_video() -> None:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as output:
        stream = output.add_stream("aac", rate=44_100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), "fltp", "mono")
        frame.sample_rate = 44_100
        for packet in [*stream.encode(frame), *stream.encode()]:
            output.mux(packet)
    with pytest.raises(BadMedia, match="no video"):
        prepared(buffer.getvalue())


def test_large_frames_are_refused_before_they_are_decoded() -> None:
    data = grey_clip(2, 96, 128)
    with pytest.raises(BadMedia, match="128 x 96"):
        prepared(data, max_frame_pixels=96 * 128 - 1)
    assert prepared(data, max_frame_pixels=96 * 128).frames


def test_a_header_that_lies_about_the_size_does_not_help() -> None:
    data = bytearray(grey_clip(2, 96, 128))
    place = data.index(b"avc1", data.index(b"stsd"))
    data[place + 28 : place + 32] = struct.pack(">HH", 16, 16)
    with pytest.raises(BadMedia):
        prepared(bytes(data), max_frame_pixels=1000)


def test_long_clips_are_refused() -> None:
    data = grey_clip(20, rate=1)
    with pytest.raises(BadMedia, match="lasts 20 seconds"):
        prepared(data, max_video_seconds=19.0)
    assert prepared(data, max_video_seconds=20.0).frames


def test_two_frames_ten_hours_apart_are_a_long_clip() -> None:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="matroska") as output:
        stream: Any = output.add_stream("libx264", rate=1)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for second in (0, 36_000):
            frame = av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24")
            frame.pts = second
            for packet in stream.encode(frame):
                output.mux(packet)
        for packet in stream.encode():
            output.mux(packet)
    with pytest.raises(BadMedia, match="seconds"):
        prepared(buffer.getvalue())


def test_the_number_of_frames_is_bounded() -> None:
    assert len(prepared(grey_clip(60, rate=6), "glm46v", max_video_frames=10).frames) == 5


def test_decoding_has_a_deadline() -> None:
    with pytest.raises(BadMedia, match="too long"):
        prepared(grey_clip(10), decode_timeout_s=-1.0)


def test_encoded_bytes_are_bounded() -> None:
    data = grey_clip(10)
    with pytest.raises(BadMedia, match="larger than"):
        prepared(data, max_video_bytes=len(data) - 1)


def test_damaged_clips_decode_or_are_refused() -> None:
    rng = np.random.default_rng(1)
    data = clip([pattern(48, 64, i) for i in range(6)])
    outcomes = set()
    for _ in range(60):
        damaged = bytearray(data)
        for place in rng.integers(0, len(data), 4):
            damaged[place] = rng.integers(0, 256)
        try:
            outcomes.add(prepared(bytes(damaged), decode_timeout_s=5.0).frames[0].num_frames)
        except BadMedia:
            outcomes.add(0)
    assert outcomes <= {0, 2}


def with_rotation(mp4: bytes, quarter_turns: int) -> bytes:
    """Write a rotation into the display matrix of the track header (ISO 14496-12, 8.3.2)."""
    matrices = {
        0: (1, 0, 0, 1),
        1: (0, 1, -1, 0),
        2: (-1, 0, 0, -1),
        3: (0, -1, 1, 0),
    }
    a, b, c, d = (value << 16 for value in matrices[quarter_turns])
    place = mp4.index(b"tkhd") + 4 + 40
    matrix = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    return mp4[:place] + matrix + mp4[place + 36 :]
