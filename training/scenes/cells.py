"""What each token of a picture shows: colour, kind, characters and box of what lies in its cell.

The trainer lets the tower tell this of its own rows (training/sight.py), beside the answers.
"""

import numpy as np
from numpy.typing import NDArray

from training.sample import NUM_LABELS
from training.scenes import fonts
from training.scenes.palette import COLOURS, SHAPES
from training.scenes.scene import Item, Scene, Shape

COLOUR_NUMBERS = {colour: 1 + i for i, colour in enumerate(COLOURS)}
KIND_NUMBERS = {shape: 1 + i for i, shape in enumerate(SHAPES)}
TEXT_KIND = 1 + len(SHAPES)
_LOOKS = (1 / 6, 1 / 2, 5 / 6)  # where in a cell characters are looked for
_LEAST = 0.04  # share of a cell that something must cover to be seen in it


def cell_labels(scene: Scene, rows: int, columns: int) -> NDArray[np.int16]:
    """int16 [rows · columns, NUM_LABELS] of a picture with so many tokens, row by row.

    colour, kind, three characters (their codes less 31), then left, top, right and bottom of the
    whole thing in thousandths of the picture. 0 stands for the ground; its box is 0, too.
    """
    labels = np.zeros((rows, columns, NUM_LABELS), np.int16)
    most = np.full((rows, columns), _LEAST)
    for item in scene.items:
        left, top, right, bottom = item.box
        across = _covered(columns, left / scene.width, right / scene.width)
        down = _covered(rows, top / scene.height, bottom / scene.height)
        share = down[:, None] * across[None, :]
        seen = share > most
        most = np.maximum(most, share)
        kind = KIND_NUMBERS[item.shape] if isinstance(item, Shape) else TEXT_KIND
        labels[seen, 0], labels[seen, 1] = COLOUR_NUMBERS[item.colour], kind
        labels[seen, 2:5] = np.broadcast_to(_characters(item, scene, columns), (rows, columns, 3))[
            seen
        ]
        box = (left / scene.width, top / scene.height, right / scene.width, bottom / scene.height)
        labels[seen, 5:] = [round(1000 * side) for side in box]
    return labels.reshape(-1, NUM_LABELS)


def _covered(cells: int, low: float, high: float) -> NDArray[np.float64]:
    """Share of each of the cells that lies between `low` and `high` (0 to 1 over all cells)."""
    edges = np.arange(cells + 1) / cells
    shares: NDArray[np.float64] = np.clip(
        np.minimum(edges[1:], high) - np.maximum(edges[:-1], low), 0, None
    )
    return shares * cells


def _characters(item: Item, scene: Scene, columns: int) -> NDArray[np.int16]:
    """[columns, 3]: the characters at three places across each column of cells."""
    found = np.zeros((columns, len(_LOOKS)), np.int16)
    if isinstance(item, Shape):
        return found
    font = fonts.load(item.face, item.em)
    begin = item.box[0] - font.getbbox(item.text)[0]
    ends = [begin + font.getlength(item.text[: i + 1]) for i in range(len(item.text))]
    codes = np.array([ord(char) - 31 for char in item.text] + [0])
    places = (np.arange(columns)[:, None] + np.array(_LOOKS)) / columns * scene.width
    inside = (places >= item.box[0]) & (places <= item.box[2])
    found[:] = np.where(inside, codes[np.searchsorted(ends, places)], 0)
    return found
