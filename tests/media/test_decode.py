"""Every kind of picture becomes RGB by the one recipe, or a clean refusal."""

import io
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from glimt.errors import BadMedia
from glimt.media.decode import WHITE, Pixels, decode_image, laid_over
from glimt.wire import ImageSettings, MediaLimits
from tests.support.media import encoded, pattern

# Pillow warns of what is odd in a file; only what comes out of it matters here.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")

SETTINGS = ImageSettings()
RED, CLEAR = (255, 0, 0, 255), (0, 0, 255, 0)


def decode(data: bytes, **limits: int) -> Pixels:
    return decode_image(memoryview(data), SETTINGS, MediaLimits(**limits))


@pytest.mark.parametrize("file_format", ["PNG", "BMP", "TIFF", "GIF", "WEBP"])
def test_lossless_formats_give_back_what_was_put_in(file_format: str) -> None:
    picture = np.zeros((40, 56, 3), np.uint8)
    picture[:, 28:] = (250, 128, 3)
    options = {"lossless": True} if file_format == "WEBP" else {}
    np.testing.assert_array_equal(decode(encoded(picture, file_format, **options)), picture)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}])
def test_jpeg_gives_what_libjpeg_gives(options: dict[str, object]) -> None:
    data = encoded(pattern(60, 90), "JPEG", **options)
    np.testing.assert_array_equal(decode(data), np.asarray(Image.open(io.BytesIO(data))))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "I;16", "RGB", "RGBA", "CMYK"])
@pytest.mark.parametrize("size", [(1, 1), (1, 27), (27, 27), (28, 28)])
def test_tiny_pictures_of_every_mode_decode(mode: str, size: tuple[int, int]) -> None:
    file_format = "TIFF" if mode == "CMYK" else "PNG"
    assert decode(encoded(Image.new(mode, size), file_format)).shape == (size[1], size[0], 3)


def test_one_bit_becomes_black_and_white() -> None:
    picture = Image.fromarray(np.array([[True, False]] * 28))
    assert decode(encoded(picture))[0].tolist() == [[255] * 3, [0] * 3]


def test_sixteen_bit_grey_keeps_its_high_byte() -> None:
    deep = np.linspace(0, 65_535, 28 * 28).astype(np.uint16).reshape(28, 28)
    for file_format in ("PNG", "TIFF"):
        grey = decode(encoded(Image.fromarray(deep), file_format))
        np.testing.assert_array_equal(grey, np.repeat((deep >> 8)[..., None], 3, axis=2))


def test_sixteen_bit_grey_with_a_transparent_value_shows_white_there() -> None:
    deep = np.full((28, 28), 0x1234, np.uint16)
    deep[0, 0] = 0x1235
    data = encoded(Image.fromarray(deep))
    data = with_chunk(data, b"tRNS", struct.pack(">H", 0x1235), before=b"IDAT")
    assert decode(data)[0, 0].tolist() == [255] * 3
    assert decode(data)[0, 1].tolist() == [0x12] * 3


@given(st.integers(0, 255), st.integers(0, 255))
def test_alpha_over_white_is_the_rounded_mixture(colour: int, alpha: int) -> None:
    mixed = laid_over(np.array([[[colour, colour, colour, alpha]]], np.uint8), WHITE)
    assert mixed[0, 0, 0] == round((colour * alpha + 255 * (255 - alpha)) / 255)


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
@pytest.mark.parametrize("file_format", ["PNG", "TIFF", "WEBP"])
def test_alpha_is_laid_over_white(mode: str, file_format: str) -> None:
    picture = Image.new("RGBA", (30, 28), (0, 0, 0, 51)).convert(mode)
    options = {"lossless": True, "exact": True} if file_format == "WEBP" else {}
    assert np.unique(decode(encoded(picture, file_format, **options))).tolist() == [204]


def test_what_is_transparent_shows_the_background_that_was_asked_for() -> None:
    settings = ImageSettings(background=(10, 20, 30))
    clear = Image.new("RGBA", (28, 28), CLEAR)
    shown = decode_image(memoryview(encoded(clear)), settings, MediaLimits())
    assert shown[3, 3].tolist() == [10, 20, 30]
    deep = Image.fromarray(np.full((28, 28), 7, np.uint16))
    data = with_chunk(encoded(deep), b"tRNS", struct.pack(">H", 7), before=b"IDAT")
    assert decode_image(memoryview(data), settings, MediaLimits())[3, 3].tolist() == [10, 20, 30]


@pytest.mark.parametrize("file_format", ["PNG", "GIF"])
def test_transparent_palette_entries_show_white(file_format: str) -> None:
    picture = Image.new("RGBA", (28, 28), RED)
    picture.paste(CLEAR, (0, 0, 14, 28))
    palette = picture.convert("P") if file_format == "GIF" else picture.quantize()
    data = encoded(palette, file_format)
    if file_format == "GIF":
        data = encoded(picture, file_format)
    shown = decode(data)
    assert shown[5, 20].tolist() == [255, 0, 0]
    assert shown[5, 5].tolist() == [255, 255, 255]


def test_a_transparent_colour_of_an_rgb_png_shows_white() -> None:
    picture = np.zeros((28, 28, 3), np.uint8)
    picture[:, 14:] = (1, 2, 3)
    data = encoded(Image.fromarray(picture), "PNG", transparency=(1, 2, 3))
    assert decode(data)[0, 20].tolist() == [255, 255, 255]
    assert decode(data)[0, 2].tolist() == [0, 0, 0]


def test_cmyk_jpegs_come_out_as_they_look() -> None:
    cyan = Image.new("CMYK", (32, 32), (255, 0, 0, 0))
    shown = decode(encoded(cyan, "JPEG", quality=95))
    assert shown[0, 0, 0] < 8
    assert shown[0, 0, 1:].min() > 247


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation_is_undone_once(orientation: int, file_format: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if file_format == "WEBP" else {}
    data = encoded(pattern(40, 60), file_format, exif=exif, **options)
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        upright = ImageOps.exif_transpose(image).convert("RGB")
    np.testing.assert_array_equal(decode(data), np.asarray(upright))


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0"]
)
def test_malformed_exif_counts_as_absent(exif: bytes) -> None:
    assert decode(encoded(pattern(30, 50), "JPEG", exif=exif)).shape == (30, 50, 3)


@pytest.mark.parametrize("orientation", [0, 9, 65_535])
def test_unknown_orientations_mean_upright(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert decode(encoded(pattern(30, 50), "JPEG", exif=exif)).shape == (30, 50, 3)


@pytest.mark.parametrize("file_format", ["GIF", "PNG", "WEBP", "TIFF"])
def test_only_the_first_of_many_frames_is_seen(file_format: str) -> None:
    frames = [Image.new("RGB", (32, 32), (i, 0, 0)) for i in (200, 100, 50)]
    options = {"lossless": True} if file_format == "WEBP" else {}
    data = encoded(frames[0], file_format, save_all=True, append_images=frames[1:], **options)
    assert np.unique(decode(data)[..., 0]).tolist() == [200]


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_a_truncated_file_is_an_error(file_format: str) -> None:
    data = encoded(pattern(64, 96), file_format)
    for tenth in range(10):
        with pytest.raises(BadMedia):
            decode(data[: len(data) * tenth // 10])


@pytest.mark.parametrize("data", [b"", b"\0", b"BM", b"\xff\xd8\xff", b"GIF89a", b"RIFF1234WEBP"])
def test_a_header_alone_is_an_error(data: bytes) -> None:
    with pytest.raises(BadMedia):
        decode(data)


@given(st.binary(max_size=200), st.sampled_from([b"", b"BM", b"\xff\xd8\xff", b"MM\0*", b"GIF87a"]))
def test_arbitrary_bytes_are_refused_and_nothing_else(data: bytes, head: bytes) -> None:
    with pytest.raises(BadMedia):
        decode(head + data)


@given(st.data())
def test_a_damaged_file_decodes_or_is_refused(draw: st.DataObject) -> None:
    file_format = draw.draw(st.sampled_from(["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"]))
    data = bytearray(encoded(pattern(30, 30), file_format))
    for _ in range(draw.draw(st.integers(1, 4))):
        data[draw.draw(st.integers(0, len(data) - 1))] = draw.draw(st.integers(0, 255))
    try:
        pixels = decode(bytes(data), max_image_pixels=10_000)
    except BadMedia:
        return
    assert pixels.dtype == np.uint8
    assert pixels.shape[2] == 3


@pytest.mark.parametrize(
    "data",
    [
        b"SIMPLE  =                    T",  # FITS
        b"%!PS-Adobe-3.0 EPSF-3.0",
        b"8BPS\0\1" + bytes(20),
        b"\0\0\1\0\1\0\x10\x10",  # ICO
        b"\0\0\0\x0cjP  \r\n\x87\n",  # JPEG 2000
        b"\0\0\0\x18ftypheic" + bytes(16),
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"%PDF-1.7",
        b"P6 1 1 255 abc",
    ],
)
def test_other_formats_are_not_even_tried(data: bytes) -> None:
    with pytest.raises(BadMedia, match="not an image that is understood"):
        decode(data)


def test_a_bomb_is_refused_by_its_header() -> None:
    with pytest.raises(BadMedia, match="more pixels than"):
        decode(png_header(60_000, 60_000))
    with pytest.raises(BadMedia, match="8000 x 7000"):
        decode(png_header(8_000, 7_000))


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_pillows_own_limit_cannot_be_raised() -> None:
    with pytest.raises(BadMedia, match="at most 89,478,485"):
        decode(png_header(9_500, 9_500), max_image_pixels=10**9)


def test_a_webp_bomb_is_refused_by_its_header() -> None:
    head = b"RIFF\x20\0\0\0WEBPVP8X\x0a\0\0\0\x10\0\0\0" + b"\xff\x3f\0" + b"\xff\x3f\0"
    with pytest.raises(BadMedia, match="16384 x 16384"):
        decode(head + bytes(40))


@pytest.mark.parametrize("lossless", [False, True])
def test_plain_webp_sizes_are_read_from_the_header(lossless: bool) -> None:
    data = encoded(pattern(41, 67), "WEBP", lossless=lossless)
    with pytest.raises(BadMedia, match="67 x 41"):
        decode(data, max_image_pixels=1_000)


def test_the_pixel_limit_is_exact() -> None:
    data = encoded(pattern(50, 60))
    assert decode(data, max_image_pixels=3_000).shape == (50, 60, 3)
    with pytest.raises(BadMedia, match=r"at most 2,999"):
        decode(data, max_image_pixels=2_999)


def test_an_extreme_shape_is_refused_before_it_is_decoded() -> None:
    header_only = png_header(28, 5601)
    with pytest.raises(BadMedia, match="one side"):
        decode(header_only)


def test_pngs_with_a_wrong_checksum_or_without_an_end_are_refused() -> None:
    data = encoded(pattern(30, 30))
    place = data.index(b"IDAT") + 40
    for damaged in (data[:-12], data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]):
        with pytest.raises(BadMedia):
            decode(damaged)


def test_a_text_chunk_that_expands_to_much_is_not_expanded() -> None:
    bomb = b"Comment\0\0" + zlib.compress(bytes(80_000_000))
    data = with_chunk(encoded(pattern(30, 30)), b"zTXt", bomb, before=b"IDAT")
    tracemalloc.start()
    try:
        with pytest.raises(BadMedia):
            decode(data)
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()


def png_header(width: int, height: int) -> bytes:
    """A sound PNG but for its pixels, of which there are none."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def chunk(kind: bytes, data: bytes) -> bytes:
    checksum = struct.pack(">I", zlib.crc32(kind + data))
    return struct.pack(">I", len(data)) + kind + data + checksum


def with_chunk(png: bytes, kind: bytes, data: bytes, before: bytes) -> bytes:
    place = png.index(before) - 4
    return png[:place] + chunk(kind, data) + png[place:]
