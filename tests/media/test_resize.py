"""Sizes by the family's formula, pixels by torch's uint8 bicubic, rows in the processor's order."""

import contextlib
import hashlib
import io

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from glimt.errors import BadMedia
from glimt.media.patches import patchify
from glimt.media.prepare import Prepared, prepare
from glimt.media.resize import resize
from glimt.media.sizes import smart_resize
from glimt.wire import ImageSettings, MediaJob, MediaLimits
from tests.support.media import Pixels, encoded, pattern

MEAN = np.array([0.48145466, 0.4578275, 0.40821073])
STD = np.array([0.26862954, 0.26130258, 0.27577711])
SETTINGS = ImageSettings()


def job(**settings: int) -> MediaJob:
    return MediaJob(
        job_id=1, kind="image", settings=ImageSettings(**settings), limits=MediaLimits()
    )


def rows(prepared: Prepared) -> Pixels:
    return prepared.buffer.reshape(-1, 3, 14, 14)


@pytest.mark.parametrize(
    ("size", "resized"),
    [
        ((20, 60), (56, 140)),
        ((28, 28), (84, 84)),
        ((100, 150), (112, 140)),
        ((112, 112), (112, 112)),
        ((336, 336), (336, 336)),
        ((480, 640), (476, 644)),
        ((720, 1280), (728, 1288)),
        ((1080, 1920), (1092, 1932)),
        ((2160, 3840), (1624, 2912)),
        ((3000, 2500), (2380, 1988)),
        ((4000, 3000), (2520, 1876)),
        ((10, 2000), (28, 5600)),
        ((8000, 60), (8008, 56)),
    ],
)
def test_sizes_are_those_of_the_family(size: tuple[int, int], resized: tuple[int, int]) -> None:
    assert smart_resize(2, *size, SETTINGS) == resized


@given(st.integers(1, 640), st.integers(1, 6000), st.integers(1, 6000))
def test_sizes_are_those_of_transformers(num_steps: int, height: int, width: int) -> None:
    module = pytest.importorskip("transformers.models.glm4v.image_processing_pil_glm4v")
    ours = theirs = None
    with contextlib.suppress(ValueError):
        theirs = module.smart_resize(
            num_frames=2 * num_steps,
            height=height,
            width=width,
            temporal_factor=2,
            factor=28,
            min_pixels=12_544,
            max_pixels=47_040_000,
        )
    with contextlib.suppress(BadMedia):
        ours = smart_resize(2 * num_steps, height, width, ImageSettings(max_pixels=47_040_000))
    assert ours == theirs


@pytest.mark.parametrize("size", [(28, 5601), (5601, 28), (1, 5000), (5000, 1)])
def test_extreme_shapes_are_refused(size: tuple[int, int]) -> None:
    with pytest.raises(BadMedia, match="200 times"):
        smart_resize(2, *size, SETTINGS)


# SHA-256 of what transformers' torchvision processor makes of the picture `squares(h, w)`, taken
# once from its `pixel_values` (transformers 5.17.0, torchvision 0.28.0, torch 2.13.0).
TORCHVISION = {
    (100, 150): "e30fafb5d329089b1643eba75a032a1e",
    (20, 60): "e32e8b4d00a120060f12a9061ee8e422",
    (333, 500): "75d578ad9c863ea44b52bbdc09198f7a",
    (480, 640): "2eece9381c4bc9967a978473a6a35232",
    (1300, 900): "59cdef0e6e680bcb1760d67aced225b6",
}


@pytest.mark.parametrize("size", list(TORCHVISION))
def test_resized_patches_are_bit_equal_to_torchvisions(size: tuple[int, int]) -> None:
    prepared = prepare(job(), encoded(squares(*size)))
    assert hashlib.sha256(prepared.buffer.data).hexdigest()[:32] == TORCHVISION[size]


def squares(height: int, width: int) -> Pixels:
    """Edges, ramps and noise of plain arithmetic."""
    y, x, c = np.meshgrid(np.arange(height), np.arange(width), np.arange(3), indexing="ij")
    return ((x * 7 + y * 13 + c * 31 + x * y // 5 * (c + 1) + x // 9 % 2 * 90) % 256).astype(
        np.uint8
    )


def test_memory_layout_does_not_change_the_resized_pixels() -> None:
    picture = pattern(67, 131)
    contiguous = torch.from_numpy(picture).permute(2, 0, 1).contiguous()[None]
    plain = torch.nn.functional.interpolate(
        contiguous, size=(84, 112), mode="bicubic", antialias=True
    )
    assert torch.equal(resize(picture[None], 84, 112), plain)
    assert torch.equal(resize(np.stack((picture, picture)), 84, 112)[1:], plain)


def test_nothing_is_resized_that_fits() -> None:
    picture = pattern(112, 140)
    np.testing.assert_array_equal(resize(picture[None], 112, 140)[0].permute(1, 2, 0), picture)


@given(
    st.integers(1, 2), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(1, 4)
)
def test_rows_lie_in_blocks(frames: int, high: int, wide: int, merge: int, patch: int) -> None:
    """Against the definition, one patch at a time."""
    height, width = high * merge * patch, wide * merge * patch
    pixels = np.arange(frames * 3 * height * width).astype(np.uint8)
    source = torch.from_numpy(pixels.reshape(frames, 3, height, width))
    out = np.zeros(pixels.size, np.uint8)
    patchify(source, out, patch, merge)
    found = out.reshape(-1, 3, frames, patch, patch)
    row = 0
    for block_y in range(high):
        for block_x in range(wide):
            for in_y in range(merge):
                for in_x in range(merge):
                    y, x = (block_y * merge + in_y) * patch, (block_x * merge + in_x) * patch
                    window = source[:, :, y : y + patch, x : x + patch].transpose(0, 1)
                    np.testing.assert_array_equal(found[row], window.numpy())
                    row += 1


@pytest.mark.parametrize("size", [(112, 112), (336, 364), (28, 5600)])
def test_unresized_patches_equal_those_of_transformers(size: tuple[int, int]) -> None:
    picture = pattern(*size)
    pixel_values, grid = reference(picture)
    prepared = prepare(job(), encoded(picture))
    assert (prepared.frames[0].grid_h, prepared.frames[0].grid_w) == grid
    normalised = normalise(rows(prepared))
    np.testing.assert_allclose(pixel_values[:, :, 0], normalised, atol=1e-6)
    np.testing.assert_allclose(pixel_values[:, :, 1], normalised, atol=1e-6)


@pytest.mark.parametrize("size", [(20, 60), (100, 150), (480, 640), (333, 500), (1, 1)])
def test_resized_patches_are_within_two_grey_levels_of_pillows(size: tuple[int, int]) -> None:
    """Pillow's resampling is not the reference; it only must not be far away."""
    picture = pattern(*size)
    pixel_values, grid = reference(picture)
    prepared = prepare(job(), encoded(picture))
    assert (prepared.frames[0].grid_h, prepared.frames[0].grid_w) == grid
    scale = (STD * 255)[:, None, None]
    grey = pixel_values[:, :, 0] * scale + (MEAN * 255)[:, None, None]
    assert np.abs(grey - rows(prepared)).max() < 2.01


@pytest.mark.parametrize(("mode", "size"), [("L", (27, 1)), ("CMYK", (1, 1)), ("P", (9, 27))])
def test_tiny_pictures_are_scaled_up(mode: str, size: tuple[int, int]) -> None:
    data = encoded(Image.new(mode, size), "TIFF" if mode == "CMYK" else "PNG")
    frame = prepare(job(), data).frames[0]
    assert frame.num_frames == 1
    assert frame.nbytes == frame.grid_h * frame.grid_w * 3 * 196
    assert frame.grid_h * frame.grid_w * 196 * 2 >= SETTINGS.min_pixels


def test_the_checkpoints_numbers_decide() -> None:
    data = encoded(pattern(300, 400))
    frame = prepare(job(patch_size=16, merge_size=1, max_pixels=2 * 64 * 64), data).frames[0]
    assert (frame.grid_h, frame.grid_w) == smaller(300, 400)


def smaller(height: int, width: int) -> tuple[int, int]:
    settings = ImageSettings(patch_size=16, merge_size=1, max_pixels=2 * 64 * 64)
    new_height, new_width = smart_resize(2, height, width, settings)
    assert new_height * new_width <= 64 * 64
    return new_height // 16, new_width // 16


def reference(picture: Pixels) -> tuple[np.ndarray, tuple[int, int]]:
    """transformers' processor: float [P, 3, 2, 14, 14] and the grid (h, w)."""
    module = pytest.importorskip("transformers.models.glm4v.image_processing_pil_glm4v")
    processor = module.Glm4vImageProcessorPil(
        size={"shortest_edge": SETTINGS.min_pixels, "longest_edge": SETTINGS.max_pixels}
    )
    image = Image.open(io.BytesIO(encoded(picture)))
    out = processor(images=[image], return_tensors="np")
    _, grid_h, grid_w = (int(side) for side in out["image_grid_thw"][0])
    return np.asarray(out["pixel_values"]).reshape(-1, 3, 2, 14, 14), (grid_h, grid_w)


def normalise(patches: Pixels) -> np.ndarray:
    mean, std = MEAN[:, None, None], STD[:, None, None]
    return (patches / 255 - mean) / std
