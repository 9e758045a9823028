"""Bounding boxes in answers: reading them, and how much two of them overlap.

GLM writes `<|begin_of_box|>[[x1,y1,x2,y2]]<|end_of_box|>`, whole numbers from 0 to 1000, relative
to the picture's width and height. The same marks surround other short answers.
"""

import re
from typing import Any

Box = tuple[float, float, float, float]

BEGIN, END = "<|begin_of_box|>", "<|end_of_box|>"
SCALE = 1000  # coordinates of a picture's right and lower edge

_NUMBER = r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)"
_FOUR = re.compile(rf"\[\s*{_NUMBER}\s*,\s*{_NUMBER}\s*,\s*{_NUMBER}\s*,\s*{_NUMBER}\s*,?\s*\]")
_NUMBERS = re.compile(_NUMBER)
_MARKED = re.compile(re.escape(BEGIN) + r"(.*?)" + re.escape(END), re.DOTALL)
_WELL_FORMED = re.compile(r"\s*(?:\[\s*)?\[\s*(\d+)\s*(?:,\s*(\d+)\s*){3}\](?:\s*\])?\s*")


def boxed(text: str) -> str:
    """What stands between the marks, if there is one such place; else the text without marks."""
    marked = _MARKED.findall(text)
    if len(marked) == 1:
        return str(marked[0]).strip()
    return text.replace(BEGIN, "").replace(END, "").strip()


def parse_box(answer: Any) -> Box | None:
    """The first box of a text, or of a list of four numbers; None if there is none.

    Four numbers in brackets, or a text (a marked place of it) that holds just four numbers.
    """
    if isinstance(answer, list | tuple):
        return _box([float(x) for x in answer])
    text = boxed(str(answer))
    match = _FOUR.search(text)
    return _box([float(x) for x in _NUMBERS.findall(match.group() if match else text)])


def _box(numbers: list[float]) -> Box | None:
    if len(numbers) != 4:
        return None
    x1, y1, x2, y2 = numbers
    return x1, y1, x2, y2


def is_one_well_formed_box(text: str) -> bool:
    """Exactly one marked place, in it one box of whole numbers 0 … 1000 with an area."""
    marked = _MARKED.findall(text)
    if len(marked) != 1 or text.count(BEGIN) != 1 or text.count(END) != 1:
        return False
    if not _WELL_FORMED.fullmatch(marked[0]) or marked[0].count("[") != marked[0].count("]"):
        return False
    box = parse_box(marked[0])
    if box is None:
        return False
    x1, y1, x2, y2 = box
    return x1 < x2 <= SCALE and y1 < y2 <= SCALE


def overlap(a: Box, b: Box) -> float:
    """Intersection over union, 0 … 1; 0 for boxes without an area."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    common = width * height
    return common / (_area(a) + _area(b) - common)


def _area(box: Box) -> float:
    return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])
