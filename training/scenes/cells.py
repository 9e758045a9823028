"""What each token of a picture shows: colour, kind, characters and box of what lies in its cell.

The trainer lets the tower tell this of its own rows (training/sight.py), beside the answers.
"""

import numpy as np
from numpy.typing import NDArray

from training.sample import NUM_CHARACTERS, NUM_LABELS
from training.scenes import fonts
from training.scenes.palette import COLOURS, SHAPES
from training.scenes.scene import Item, Scene, Shape

COLOUR_NUMBERS = {colour: 1 + i for i, colour in enumerate(COLOURS)}
KIND_NUMBERS = {shape: 1 + i for i, shape in enumerate(SHAPES)}
TEXT_KIND = 1 + len(SHAPES)
# Where in a cell characters are looked for: every fifth pixel, so that small ones are all found.
_LOOKS = tuple((i + 0.5) / NUM_CHARACTERS for i in range(NUM_CHARACTERS))
_FIRST_SIDE = 2 + NUM_CHARACTERS  # of the box among the labels
_LEAST = 0.04  # share of a cell that something must cover to be seen in it


def cell_labels(scene: Scene, rows: int, columns: int) -> NDArray[np.int16]:
    """int16 [rows · columns, NUM_LABELS] of a picture with so many tokens, row by row.

    colour, kind, six characters (their codes less 31), then left, top, right and bottom of the
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
        characters = _characters(item, scene, columns)
        labels[seen, 2:_FIRST_SIDE] = np.broadcast_to(characters, (rows, *characters.shape))[seen]
        box = (left / scene.width, top / scene.height, right / scene.width, bottom / scene.height)
        labels[seen, _FIRST_SIDE:] = [round(1000 * side) for side in box]
    return labels.reshape(-1, NUM_LABELS)


def _covered(cells: int, low: float, high: float) -> NDArray[np.float64]:
    """Share of each of the cells that lies between `low` and `high` (0 to 1 over all cells)."""
    edges = np.arange(cells + 1) / cells
    shares: NDArray[np.float64] = np.clip(
        np.minimum(edges[1:], high) - np.maximum(edges[:-1], low), 0, None
    )
    return shares * cells


def _characters(item: Item, scene: Scene, columns: int) -> NDArray[np.int16]:
    """[columns, NUM_CHARACTERS]: the characters at so many places across each column of cells."""
    found = np.zeros((columns, len(_LOOKS)), np.int16)
    if isinstance(item, Shape):
        return found
    font = fonts.load(item.face, item.em)
    stretch = item.look.stretch
    leans = abs(item.look.slant) * (item.box[3] - item.box[1]) / 2
    begin = item.box[0] + leans - stretch * font.getbbox(item.text)[0]
    ends = [begin + stretch * font.getlength(item.text[: i + 1]) for i in range(len(item.text))]
    codes = np.array([ord(char) - 31 for char in item.text] + [0])
    places = (np.arange(columns)[:, None] + np.array(_LOOKS)) / columns * scene.width
    inside = (places >= item.box[0]) & (places <= item.box[2])
    found[:] = np.where(inside, codes[np.searchsorted(ends, places)], 0)
    return found
