"""Scenes: what is where, without a pixel. `compose` makes one from a seed."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from training.scenes import fonts, words
from training.scenes.outlines import Points, outline, turned
from training.scenes.palette import (
    COLOURS,
    MIN_PIXELS,
    SHAPES,
    SIZES,
    Rgb,
    is_held_out,
    shade,
    stands_out,
)

Box = tuple[float, float, float, float]  # left, top, right, bottom, in pixels

LAYOUTS = ("free", "free", "free", "row", "column", "grid")
HELD_OUT_LAYOUTS = ("wheel", "diagonal", "free")
_ASPECTS = {"rectangle": (1.6, 2.4), "oval": (1.6, 2.2), "diamond": (0.68, 0.8)}
_TILTS = {"square": 8, "rectangle": 0, "triangle": 12, "star": 18, "cross": 12, "heart": 10}
LEAST_EM = 18  # pixels per em of the smallest text
_MARGIN = 0.025  # free space about everything, over the picture's shorter side


@dataclass(frozen=True, slots=True)
class Shape:
    """A filled shape. `points` lie in the unit box that `box` scales."""

    colour: str
    shape: str
    size: str
    rgb: Rgb
    box: Box
    points: Points


@dataclass(frozen=True, slots=True)
class Look:
    """How characters differ from what their face has: a few faces stand for many."""

    stretch: float = 1.0  # of widths
    slant: float = 0.0  # pixels to the right for each pixel up
    weight: float = 0.0  # added to each side of a stroke, in ems

    def size(self, width: float, height: float, em: int) -> tuple[float, float]:
        """Pixels of ink that the face alone would print in `width` times `height`."""
        bold = 2 * self.weight * em
        height += bold
        return (width + bold) * self.stretch + abs(self.slant) * height, height


PLAIN = Look()


@dataclass(frozen=True, slots=True)
class Text:
    """Printed characters; `box` is their ink."""

    colour: str
    text: str
    face: str
    em: int  # pixels per em
    rgb: Rgb
    box: Box
    look: Look = PLAIN


Item = Shape | Text


@dataclass(frozen=True, slots=True)
class Ground:
    """The background: plain, or running from one shade to another. A tint has no name."""

    name: str  # a colour, or "" for a tint that nobody should be asked about
    rgb: Rgb
    far: Rgb
    noise: float  # standard deviation of the grain, in grey levels


@dataclass(frozen=True, slots=True)
class Scene:
    """A picture to be drawn."""

    width: int
    height: int
    ground: Ground
    items: tuple[Item, ...]

    @property
    def shapes(self) -> list[Shape]:
        """The shapes, from left to right."""
        return sorted((i for i in self.items if isinstance(i, Shape)), key=lambda i: centre(i)[0])

    @property
    def texts(self) -> list[Text]:
        """The texts, from top to bottom."""
        return sorted((i for i in self.items if isinstance(i, Text)), key=lambda i: centre(i)[1])


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a scene shall hold."""

    width: int
    height: int
    num_shapes: int = 1
    num_texts: int = 0
    colours: Sequence[str] = tuple(COLOURS)
    shapes: Sequence[str] = SHAPES
    sizes: Sequence[str] = tuple(SIZES)
    text: str | None = None  # the string of the first text
    held_out: bool = False


def centre(item: Item) -> tuple[float, float]:
    """Middle of the item's box."""
    left, top, right, bottom = item.box
    return (left + right) / 2, (top + bottom) / 2


def compose(recipe: Recipe, rng: random.Random) -> Scene:
    """A scene by the recipe. What finds no room is left out, so count what is there."""
    ground = _ground(rng)
    items: list[Item] = []
    for index in range(recipe.num_texts):
        text = _place_text(recipe, rng, ground, items, recipe.text if index == 0 else None)
        if text is not None:
            items.append(text)
    layout = rng.choice(HELD_OUT_LAYOUTS if recipe.held_out else LAYOUTS)
    if recipe.num_texts or recipe.num_shapes < 2:
        layout = "free"
    for place in _places(layout, recipe, rng):
        shape = _place_shape(recipe, rng, ground, items, place)
        if shape is not None:
            items.append(shape)
    return Scene(recipe.width, recipe.height, ground, tuple(items))


def make_shape(kind: tuple[str, str, str], rgb: Rgb, box: Box, rng: random.Random) -> Shape:
    """(colour, shape, size) in the given box, tilted a little where the shape allows."""
    colour, shape, size = kind
    points = outline(shape)
    if tilt := _TILTS.get(shape, 0):
        points = turned(points, rng.uniform(-tilt, tilt))
    return Shape(colour, shape, size, rgb, box, points)


def pick_kind(recipe: Recipe, rng: random.Random) -> tuple[str, str]:
    """(colour, shape). Training never gets the pairs kept for the evaluation; the evaluation gets
    them half of the time."""
    wanted = recipe.held_out and rng.random() < 0.5
    for _ in range(40):
        colour, shape = rng.choice(recipe.colours), rng.choice(recipe.shapes)
        if recipe.held_out:
            if not wanted or is_held_out(colour, shape):
                return colour, shape
        elif not is_held_out(colour, shape):
            return colour, shape
    pairs = [
        (colour, shape)
        for colour in recipe.colours
        for shape in recipe.shapes
        if recipe.held_out or not is_held_out(colour, shape)
    ]
    return rng.choice(pairs) if pairs else ("red", "circle")


def _ground(rng: random.Random) -> Ground:
    name = rng.choices(("white", "black", "grey", "tint", "any"), weights=(40, 10, 8, 24, 18), k=1)[
        0
    ]
    if name == "any":
        name = rng.choice(tuple(COLOURS))
    if name == "tint":
        rgb: Rgb = (rng.randint(205, 250), rng.randint(205, 250), rng.randint(205, 250))
        name = ""
    else:
        rgb = shade(name, rng)
    far = rgb
    if rng.random() < 0.15:
        drift = rng.uniform(-14, 14)
        far = tuple(max(0, min(255, round(v + drift))) for v in rgb)  # type: ignore[assignment]
    noise = rng.uniform(1, 7) if rng.random() < 0.2 else 0.0
    return Ground(name, rgb, far, noise)


def _places(
    layout: str, recipe: Recipe, rng: random.Random
) -> list[tuple[float, float, float] | None]:
    """(x, y, room) of each shape in an ordered layout; None where it may lie anywhere."""
    n, width, height = recipe.num_shapes, recipe.width, recipe.height
    if layout == "row":
        step = width / n
        y = height * rng.uniform(0.35, 0.65)
        return [(step * (i + 0.5), y, min(step, height * 0.6)) for i in range(n)]
    if layout == "column":
        step = height / n
        x = width * rng.uniform(0.35, 0.65)
        return [(x, step * (i + 0.5), min(step, width * 0.6)) for i in range(n)]
    if layout == "diagonal":
        room = min(width, height) / n
        cells = [(i + 0.5) / n for i in range(n)]
        rising = rng.random() < 0.5
        return [(width * c, height * (1 - c if rising else c), room) for c in cells]
    if layout == "grid":
        columns = math.ceil(math.sqrt(n * width / height))
        rows = math.ceil(n / columns)
        cells_xy = [
            (width * (i % columns + 0.5) / columns, height * (i // columns + 0.5) / rows)
            for i in range(n)
        ]
        return [(x, y, min(width / columns, height / rows)) for x, y in cells_xy]
    if layout == "wheel":
        turn = rng.uniform(0, 2 * math.pi)
        angles = [turn + 2 * math.pi * i / n for i in range(n)]
        room = min(width, height) * min(0.36, 0.68 * math.sin(math.pi / max(n, 3)))
        return [
            (width * (0.5 + 0.32 * math.cos(a)), height * (0.5 + 0.32 * math.sin(a)), room)
            for a in angles
        ]
    return [None] * n


def _place_shape(
    recipe: Recipe,
    rng: random.Random,
    ground: Ground,
    items: Sequence[Item],
    place: tuple[float, float, float] | None,
) -> Shape | None:
    base = min(recipe.width, recipe.height)
    if place is not None and place[2] < 1.1 * base * SIZES["small"][0]:
        place = None  # too many for this layout
    for _ in range(30):
        colour, shape = pick_kind(recipe, rng)
        rgb = shade(colour, rng)
        if colour == ground.name or not stands_out(rgb, ground.rgb):
            continue
        size = rng.choice(recipe.sizes)
        extent = base * rng.uniform(*SIZES[size])
        width, height = _extents(shape, extent, rng)
        if min(width, height) < MIN_PIXELS * 0.8 or extent < MIN_PIXELS:
            continue
        if place is not None:
            x, y, room = place
            if max(width, height) > room * 0.96:
                continue
        else:
            margin = base * _MARGIN
            if width + 2 * margin > recipe.width or height + 2 * margin > recipe.height:
                continue
            x = rng.uniform(width / 2 + margin, recipe.width - width / 2 - margin)
            y = rng.uniform(height / 2 + margin, recipe.height - height / 2 - margin)
        box = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
        if is_free(box, recipe, items):
            return make_shape((colour, shape, size), rgb, box, rng)
    return None


def _extents(shape: str, extent: float, rng: random.Random) -> tuple[float, float]:
    """Width and height of a shape whose longer side is `extent`."""
    if shape not in _ASPECTS:
        return extent, extent
    aspect = rng.uniform(*_ASPECTS[shape])
    if aspect < 1:  # a diamond stands upright
        return extent * aspect, extent
    return (extent, extent / aspect) if rng.random() < 0.7 else (extent / aspect, extent)


def is_free(box: Box, recipe: Recipe, items: Sequence[Item]) -> bool:
    """Whether the box lies inside the picture and touches nothing."""
    margin = max(1.5, min(recipe.width, recipe.height) * _MARGIN)
    left, top, right, bottom = box
    if left < 0 or top < 0 or right > recipe.width or bottom > recipe.height:
        return False
    return all(
        right + margin < other[0]
        or other[2] + margin < left
        or bottom + margin < other[1]
        or other[3] + margin < top
        for other in (item.box for item in items)
    )


def _place_text(
    recipe: Recipe, rng: random.Random, ground: Ground, items: Sequence[Item], wanted: str | None
) -> Text | None:
    faces = fonts.held_out_faces() if recipe.held_out else fonts.training_faces()
    base = min(recipe.width, recipe.height)
    for _ in range(30):
        colour = rng.choice(recipe.colours)
        rgb = shade(colour, rng)
        if colour == ground.name or not stands_out(rgb, ground.rgb):
            continue
        text = wanted or words.printed(rng, recipe.held_out)
        biggest = min(96.0, base * 0.6)
        em = round(math.exp(rng.uniform(math.log(LEAST_EM), math.log(max(LEAST_EM, biggest)))))
        face = rng.choice(faces)
        look = PLAIN if recipe.held_out else _look(rng)
        left, top, right, bottom = fonts.load(face, em).getbbox(text)
        width, height = look.size(right - left, bottom - top, em)
        if width + 6 > recipe.width or height + 6 > recipe.height or height < 7:
            continue
        x = rng.uniform(3, recipe.width - width - 3)
        y = rng.uniform(3, recipe.height - height - 3)
        box = (x, y, x + width, y + height)
        if is_free(box, recipe, items):
            return Text(colour, text, face, em, rgb, box, look)
    return None


def _look(rng: random.Random) -> Look:
    if rng.random() < 0.4:
        return PLAIN
    return Look(
        stretch=math.exp(rng.uniform(-0.22, 0.22)),
        slant=rng.gauss(0.0, 0.12) if rng.random() < 0.35 else 0.0,
        weight=rng.uniform(0.0, 0.03) if rng.random() < 0.3 else 0.0,
    )
