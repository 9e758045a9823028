"""The one image decoder: encoded bytes -> RGB pixels, by one fixed recipe.

What is allowed: PNG, JPEG, WebP, GIF and TIFF (first frame of each), BMP. The format follows from
the magic bytes, never from what the client called it. The header is read first, and sizes are
checked before pixels are allocated.

The recipe, in this order:

1. 16-bit grey keeps its high byte. Palettes are looked up. 1-bit becomes 0 and 255. CMYK (Adobe's
   inverted form included) and YCbCr become RGB as Pillow does it.
2. Alpha, `tRNS` and transparent palette entries are laid over white, or the background asked for:
   round((colour * alpha + background * (255 - alpha)) / 255).
3. Grey becomes R = G = B.
4. The EXIF orientation is applied; EXIF that cannot be read counts as absent.

Anything else (32-bit integers, floats, Lab) is refused. A truncated file is an error.
"""

import io
import logging
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Importing a plug-in registers its format; Pillow's other forty never get a byte to see.
from PIL import (  # noqa: F401
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from glimt.errors import BadMedia
from glimt.media.headers import check_png, image_format, webp_size
from glimt.media.sizes import smart_resize
from glimt.wire import ImageSettings, MediaLimits

log = logging.getLogger(__name__)

Pixels = NDArray[np.uint8]

_ORIENTATION_TAG = 0x0112
_DIRECT_MODES = frozenset({"1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr"})
WHITE = (255, 255, 255)
_ALPHA_MODES = frozenset({"LA", "La", "PA", "RGBA", "RGBa"})


def decode_image(data: memoryview, settings: ImageSettings, limits: MediaLimits) -> Pixels:
    """RGB pixels uint8 [H, W, 3], upright, C-contiguous.

    Raises BadMedia for formats that are not allowed, for damage, for more than
    `limits.max_image_pixels`, and for shapes that the processor's `settings` cannot take.
    """
    name = image_format(data)
    try:
        return _decode(data, name, settings, limits)
    except BadMedia:
        raise
    except MemoryError:
        raise BadMedia("the image needs more memory than is allowed") from None
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise BadMedia("the image has more pixels than are accepted") from None
    except Exception as error:  # Pillow's plug-ins raise anything at all on damaged files
        log.debug("undecodable %s: %r", name, error)
        raise BadMedia(f"the {name} image is damaged or incomplete") from None


def laid_over(rgba: Pixels, background: tuple[int, int, int]) -> Pixels:
    """Lay colours with alpha [H, W, 4] over one colour: [H, W, 3]."""
    alpha = rgba[..., 3:].astype(np.uint16)
    mixed = rgba[..., :3] * alpha + np.array(background, np.uint16) * (255 - alpha)
    return ((mixed + 127) // 255).astype(np.uint8)


def _decode(data: memoryview, name: str, settings: ImageSettings, limits: MediaLimits) -> Pixels:
    if name == "WEBP":  # Pillow's decoder allocates its canvas while it opens the file
        _check_size(*webp_size(data), settings, limits)
    if name == "PNG":
        check_png(data)
    with Image.open(io.BytesIO(data), formats=[name]) as image:
        _check_size(image.width, image.height, settings, limits)
        image.load()
        orientation = _orientation(image)  # after load(), which turns TIFF upright by itself
        return np.require(
            _upright(_rgb(image, settings.background), orientation), np.uint8, ["C", "W"]
        )


def _check_size(width: int, height: int, settings: ImageSettings, limits: MediaLimits) -> None:
    if width < 1 or height < 1:
        raise BadMedia("the image has no pixels")
    # Pillow's own limit, at which it only warns, stays in force above ours.
    max_pixels = min(limits.max_image_pixels, Image.MAX_IMAGE_PIXELS or limits.max_image_pixels)
    if width * height > max_pixels:
        raise BadMedia(
            f"the image has {width} x {height} pixels; at most {max_pixels:,} in all are accepted"
        )
    smart_resize(settings.temporal_patch_size, height, width, settings)


def _rgb(image: Image.Image, background: tuple[int, int, int]) -> Pixels:
    """[H, W, 3] by steps 1 to 3 of the recipe."""
    if image.mode.startswith("I;16"):
        return _deep_grey(image, background)
    if image.mode in _ALPHA_MODES or (image.mode in _DIRECT_MODES and _is_transparent(image)):
        return laid_over(np.asarray(image.convert("RGBA")), background)
    if image.mode == "RGB":
        return np.asarray(image)
    if image.mode in _DIRECT_MODES:
        return np.asarray(image.convert("RGB"))
    raise BadMedia(f"images of mode {image.mode} are not understood; convert it to 8-bit RGB")


def _is_transparent(image: Image.Image) -> bool:
    return "transparency" in image.info or image.has_transparency_data


def _deep_grey(image: Image.Image, background: tuple[int, int, int]) -> Pixels:
    deep = np.asarray(image)
    pixels = np.repeat((deep >> 8).astype(np.uint8)[..., None], 3, axis=2)
    transparent: Any = image.info.get("transparency")
    if isinstance(transparent, int):
        pixels[deep == transparent] = background
    return pixels


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # malformed EXIF says nothing about the pixels
        return 1


def _upright(pixels: Pixels, orientation: int) -> Pixels:
    """Undo the EXIF orientation (TIFF 6.0, page 36); unknown values mean upright."""
    match orientation:
        case 2:
            return pixels[:, ::-1]
        case 3:
            return pixels[::-1, ::-1]
        case 4:
            return pixels[::-1]
        case 5:
            return pixels.transpose(1, 0, 2)
        case 6:
            return np.rot90(pixels, -1)
        case 7:
            return pixels[::-1, ::-1].transpose(1, 0, 2)
        case 8:
            return np.rot90(pixels, 1)
        case _:
            return pixels
