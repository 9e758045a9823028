"""Boxes in answers: found in the text, drawn on the picture that was asked about."""

import re
from collections.abc import Sequence

from PIL import Image, ImageDraw

from glimt.chat.attachments import Attachment
from glimt.chat.conversation import Conversation

Box = tuple[int, int, int, int]

_SCALE = 1000  # coordinates of a picture's right and lower edge
_BOX = re.compile(r"\[\s*(\d{1,4})\s*,\s*(\d{1,4})\s*,\s*(\d{1,4})\s*,\s*(\d{1,4})\s*\]")
_COLOURS = ("#ff00ff", "#00d5ff", "#ffb000", "#7cff00")  # in turn; none is a print's or a skin's


def boxes_in(text: str) -> list[Box]:
    """All boxes of an answer, (left, top, right, bottom) in thousandths of width and height.

    GLM writes `[[x1,y1,x2,y2]]`, between marks that some servers remove; what is no rectangle of
    the picture is left out.
    """
    found = [tuple(map(int, match.groups())) for match in _BOX.finditer(text)]
    return [
        (left, top, right, bottom)
        for left, top, right, bottom in found
        if left < right <= _SCALE and top < bottom <= _SCALE
    ]


def picture_of(conversation: Conversation) -> Attachment | None:
    """The picture that an answer's boxes lie on: the only local one since pictures came last."""
    for turn in reversed(conversation.turns):
        pictures = [each for each in turn.question.attachments if each.kind == "image"]
        if pictures:
            return pictures[0] if len(pictures) == 1 and pictures[0].content else None
    return None


def draw_boxes(image: Image.Image, boxes: Sequence[Box]) -> None:
    """Frames on an image of any size, one pixel wide."""
    pen = ImageDraw.Draw(image)
    for index, (left, top, right, bottom) in enumerate(boxes):
        x1, x2 = (round(x * (image.width - 1) / _SCALE) for x in (left, right))
        y1, y2 = (round(y * (image.height - 1) / _SCALE) for y in (top, bottom))
        pen.rectangle((x1, y1, x2, y2), outline=_COLOURS[index % len(_COLOURS)])
