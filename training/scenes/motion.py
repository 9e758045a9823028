"""Short videos: one shape moves in a straight line, or rests, while others stand still."""

import random
from dataclasses import replace

from training.scenes.palette import SIZES
from training.scenes.scene import Recipe, Scene, Shape, compose
from training.scenes.turn import Turn, capital, noun, pick

# The way things move: where to, how it is said, and the step in x and y.
WAYS = {
    "to the right": (1, 0),
    "to the left": (-1, 0),
    "up": (0, -1),
    "down": (0, 1),
    "not": (0, 0),
}


def film(recipe: Recipe, num_frames: int, rng: random.Random) -> tuple[list[Scene], Turn] | None:
    """The frames and a question, or None if the shape found no room to move."""
    first = compose(replace(recipe, sizes=tuple(SIZES)[:2]), rng)
    if not first.shapes:
        return None
    mover = rng.choice(first.shapes)
    if sum(item.shape == mover.shape for item in first.shapes) > 1:
        return None
    way = rng.choice(tuple(WAYS))
    span = _span(first, mover, way, rng)
    if span is None:
        return None
    start, end = span
    frames = []
    for index in range(num_frames):
        share = index / (num_frames - 1)
        shift = tuple(a + (b - a) * share for a, b in zip(start, end, strict=True))
        frames.append(_moved(first, mover, shift[0], shift[1]))
    return frames, _ask(mover, way, len(first.items) == 1, rng)


def _span(
    scene: Scene, mover: Shape, way: str, rng: random.Random
) -> tuple[tuple[float, float], tuple[float, float]] | None:
    """Shifts of the mover at the first and the last frame: a third of the picture or more."""
    step_x, step_y = WAYS[way]
    if not step_x and not step_y:
        return (0.0, 0.0), (0.0, 0.0)
    axis = 0 if step_x else 1
    extent = (scene.width, scene.height)[axis]
    low, high = mover.box[axis], mover.box[axis + 2]
    least, most = -low, extent - high  # how far it may go either way
    distance = extent * rng.uniform(0.33, 0.7)
    if most - least < distance:
        return None
    begin = rng.uniform(least, most - distance)
    end = begin + distance
    if (step_x or step_y) < 0:
        begin, end = end, begin
    return ((begin, 0.0), (end, 0.0)) if axis == 0 else ((0.0, begin), (0.0, end))


def _moved(scene: Scene, mover: Shape, right: float, down: float) -> Scene:
    left, top, far, bottom = mover.box
    box = (left + right, top + down, far + right, bottom + down)
    others = tuple(item for item in scene.items if item is not mover)
    return replace(scene, items=(*others, replace(mover, box=box)))


def _ask(mover: Shape, way: str, alone: bool, rng: random.Random) -> Turn:
    name = f"the {noun(mover)}"
    if alone and rng.random() < 0.3:
        name = "it"
    question = pick(
        rng,
        "In which direction does {name} move?",
        "Which way does {name} move?",
        "Where is {name} moving?",
        "How does {name} move in the video?",
        "In what direction is {name} moving?",
        name=name,
    )
    if way == "not":
        return Turn("motion", question, "It does not move.", f"{capital(name)} stays in its place.")
    return Turn("motion", question, f"{capital(way)}.", f"{capital(name)} goes {way}.")
