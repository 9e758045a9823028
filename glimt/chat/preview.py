"""A picture in character cells: each half block shows two pixels, one above the other."""

import io
import warnings
from collections.abc import Sequence

from PIL import Image, ImageOps

from glimt.chat.boxes import Box, draw_boxes
from glimt.chat.screen import RESET, Colours

_UPPER_HALF = "▀"
_CUBE_LEVELS = (0, 95, 135, 175, 215, 255)  # of xterm's 256 colours, entries 16 to 231

Pixel = tuple[int, int, int]


def preview(
    content: bytes,
    colours: Colours,
    max_columns: int,
    max_rows: int,
    boxes: Sequence[Box] = (),
) -> list[str]:
    """The lines that show the encoded image and frames on it, each with its escape sequences.

    Upright as EXIF says, transparent parts on white as the model sees them, never enlarged.
    No lines if it cannot be decoded or the terminal has too few colours.
    """
    if colours not in ("256", "true"):
        return []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = _small(content, max_columns, 2 * max_rows)
            draw_boxes(image, boxes)
    except Exception:  # decoders raise whatever they like on damaged files; the server will say it
        return []
    return [_line(image, row, colours) for row in range(0, image.height, 2)]


def _small(content: bytes, max_width: int, max_height: int) -> Image.Image:
    with Image.open(io.BytesIO(content)) as opened:
        opened.draft("RGB", (2 * max_width, 2 * max_height))  # JPEG: decodes only what is needed
        image = ImageOps.exif_transpose(opened).convert("RGBA")
    # A cell is about twice as high as it is wide, so a half block is about square.
    scale = min(1.0, max_width / image.width, max_height / image.height)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    ground = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(ground, image).convert("RGB").resize(size, Image.Resampling.BOX)


def _line(image: Image.Image, row: int, colours: Colours) -> str:
    cells, before = [], ""
    for column in range(image.width):
        style = _colour(_pixel(image, column, row), colours, "38")
        if row + 1 < image.height:
            style += ";" + _colour(_pixel(image, column, row + 1), colours, "48")
        else:
            style += ";49"  # the terminal's own ground
        cells.append(_UPPER_HALF if style == before else f"\x1b[{style}m{_UPPER_HALF}")
        before = style
    return "".join(cells) + RESET


def _pixel(image: Image.Image, column: int, row: int) -> Pixel:
    red, green, blue = image.getpixel((column, row))  # type: ignore[misc]
    return int(red), int(green), int(blue)


def _colour(pixel: Pixel, colours: Colours, place: str) -> str:
    if colours == "true":
        return f"{place};2;{pixel[0]};{pixel[1]};{pixel[2]}"
    return f"{place};5;{nearest_of_256(pixel)}"


def nearest_of_256(pixel: Pixel) -> int:
    """The entry of xterm's palette that is nearest, of its colour cube or its 24 greys."""
    red, green, blue = (_nearest_level(value) for value in pixel)
    in_cube = 16 + 36 * red + 6 * green + blue
    cube = (_CUBE_LEVELS[red], _CUBE_LEVELS[green], _CUBE_LEVELS[blue])
    step = min(23, max(0, round((sum(pixel) / 3 - 8) / 10)))
    level = 8 + 10 * step
    if _distance(pixel, (level, level, level)) < _distance(pixel, cube):
        return 232 + step
    return in_cube


def _nearest_level(value: int) -> int:
    return min(range(len(_CUBE_LEVELS)), key=lambda index: abs(_CUBE_LEVELS[index] - value))


def _distance(one: Pixel, other: Pixel) -> int:
    return sum((a - b) ** 2 for a, b in zip(one, other, strict=True))
