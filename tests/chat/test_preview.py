"""Previews: which colours, where, and how large."""

import io
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from glimt.chat.attachments import Attachment
from glimt.chat.boxes import boxes_in, draw_boxes, picture_of
from glimt.chat.conversation import Conversation, Question, Reply
from glimt.chat.preview import nearest_of_256, preview

MAGENTA = (255, 0, 255)
RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def encoded(image: Image.Image, orientation: int = 1) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stream = io.BytesIO()
    image.save(stream, "PNG", exif=exif)
    return stream.getvalue()


def four_pixels() -> Image.Image:
    """Red and green above blue and white."""
    image = Image.new("RGB", (2, 2))
    for index, colour in enumerate((RED, GREEN, BLUE, WHITE)):
        image.putpixel((index % 2, index // 2), colour)
    return image


def cells(lines: list[str]) -> list[str]:
    return [cell for line in lines for cell in re.findall(r"\x1b\[([\d;]+)m▀", line)]


def test_each_cell_shows_one_pixel_above_another() -> None:
    assert preview(encoded(four_pixels()), "true", 80, 24) == [
        "\x1b[38;2;255;0;0;48;2;0;0;255m▀\x1b[38;2;0;255;0;48;2;255;255;255m▀\x1b[0m"
    ]


def test_a_terminal_of_256_colours_gets_the_nearest() -> None:
    assert preview(encoded(four_pixels()), "256", 80, 24) == [
        "\x1b[38;5;196;48;5;21m▀\x1b[38;5;46;48;5;231m▀\x1b[0m"
    ]


def test_pictures_stand_upright() -> None:
    turned = preview(encoded(four_pixels(), orientation=6), "true", 80, 24)  # clockwise
    assert cells(turned) == ["38;2;0;0;255;48;2;255;255;255", "38;2;255;0;0;48;2;0;255;0"]


def test_transparent_parts_are_white_and_an_odd_last_row_has_the_terminals_ground() -> None:
    lines = preview(encoded(Image.new("RGBA", (1, 3), (9, 9, 9, 0))), "true", 80, 24)
    assert cells(lines) == ["38;2;255;255;255;48;2;255;255;255", "38;2;255;255;255;49"]


def test_equal_neighbours_share_their_escape_sequence() -> None:
    [line] = preview(encoded(Image.new("RGB", (50, 2), RED)), "true", 80, 24)
    assert line == "\x1b[38;2;255;0;0;48;2;255;0;0m" + "▀" * 50 + "\x1b[0m"


@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 80), st.integers(1, 24))
def test_a_preview_fits_and_is_never_enlarged(
    width: int, height: int, max_columns: int, max_rows: int
) -> None:
    lines = preview(encoded(Image.new("L", (width, height))), "true", max_columns, max_rows)
    assert 1 <= len(lines) <= min(max_rows, (height + 1) // 2)
    assert {line.count("▀") for line in lines} == {lines[0].count("▀")}
    assert 1 <= lines[0].count("▀") <= min(max_columns, width)


def test_every_colour_of_the_palette_is_itself() -> None:
    levels = (0, 95, 135, 175, 215, 255)
    cube = [(red, green, blue) for red in levels for green in levels for blue in levels]
    greys = [(8 + 10 * step,) * 3 for step in range(24)]
    assert [nearest_of_256(pixel) for pixel in cube + greys] == list(range(16, 256))


def test_without_colours_or_a_picture_there_is_no_preview() -> None:
    for colours in ("none", "basic"):
        assert preview(encoded(four_pixels()), colours, 80, 24) == []
    assert preview(b"\x89PNG\r\n\x1a\n broken", "true", 80, 24) == []


def test_frames_lie_where_the_boxes_say() -> None:
    image = Image.new("RGB", (21, 11), "white")
    draw_boxes(image, [(0, 0, 500, 1000), (700, 200, 1000, 600)])
    first = {(x, y) for x in range(21) for y in range(11) if image.getpixel((x, y)) == MAGENTA}
    assert first == {(x, y) for x in range(11) for y in range(11)} - {
        (x, y) for x in range(1, 10) for y in range(1, 10)
    }
    second = image.getpixel((14, 2))
    assert second not in (MAGENTA, WHITE)
    assert second == image.getpixel((20, 6)) == image.getpixel((17, 2)) != image.getpixel((17, 4))


def test_a_preview_with_boxes_is_the_picture_but_for_their_frames() -> None:
    content = encoded(Image.new("RGB", (9, 8), "white"))
    plain = cells(preview(content, "true", 80, 24))
    framed = cells(preview(content, "true", 80, 24, [(0, 0, 1000, 1000)]))
    assert plain != framed
    assert any("255;0;255" in cell for cell in framed)
    assert preview(content, "true", 80, 24, []) == preview(content, "true", 80, 24)


@pytest.mark.parametrize(
    ("text", "boxes"),
    [
        ("<|begin_of_box|>[[10,20,300,400]]<|end_of_box|>", [(10, 20, 300, 400)]),
        ("Here: [[1, 2, 3, 4], [5,6,7,8]].", [(1, 2, 3, 4), (5, 6, 7, 8)]),
        ("[0,0,1000,1000]", [(0, 0, 1000, 1000)]),
        ("[300,20,10,400] [0,0,5,2000] [1,2,3] [1,2,3,4,5]", []),
        ("no box", []),
    ],
)
def test_boxes_are_found_in_answers(text: str, boxes: list[tuple[int, ...]]) -> None:
    assert boxes_in(text) == boxes


def test_boxes_belong_to_the_only_picture_that_was_sent_last() -> None:
    one, other = (
        Attachment("image", name, "data:", content=b"x", size=(1, 1)) for name in ("a", "b")
    )
    conversation = Conversation()
    assert picture_of(conversation) is None
    conversation.keep(Question("?", (one,)), Reply("."))
    conversation.keep(Question("?"), Reply("."))
    assert picture_of(conversation) is one
    conversation.keep(Question("?", (one, other)), Reply("."))
    assert picture_of(conversation) is None  # which of them cannot be known
    conversation.keep(Question("?", (Attachment("image", "u", "https://x/u.png"),)), Reply("."))
    assert picture_of(conversation) is None
