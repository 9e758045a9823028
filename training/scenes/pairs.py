"""Questions about two pictures, and the two scenes that go with them."""

import random
from dataclasses import replace

from training.scenes.palette import COLOURS, SHAPES, is_held_out, shade, stands_out
from training.scenes.scene import Recipe, Scene, Shape, compose, make_shape
from training.scenes.turn import Turn, capital, pick, plural

ORDINALS = ("first", "second")


def compose_pair(recipe: Recipe, rng: random.Random) -> tuple[Scene, Scene]:
    """Two scenes: unlike each other, or the second one the first with one thing changed."""
    first = compose(recipe, rng)
    if rng.random() < 0.45:
        return first, _changed(first, recipe, rng)
    return first, compose(replace(recipe, num_shapes=rng.randint(1, 4)), rng)


def _changed(scene: Scene, recipe: Recipe, rng: random.Random) -> Scene:
    """The same scene, or one whose shape has another colour or another form."""
    if not scene.shapes or rng.random() < 0.3:
        return scene
    old = rng.choice(scene.shapes)
    for _ in range(20):
        colour, shape = old.colour, old.shape
        if rng.random() < 0.6:
            colour = rng.choice(tuple(COLOURS))
        else:
            shape = rng.choice(SHAPES)
        if (colour, shape) == (old.colour, old.shape) or _barred(colour, shape, recipe):
            continue
        rgb = old.rgb if colour == old.colour else shade(colour, rng)
        if colour == scene.ground.name or not stands_out(rgb, scene.ground.rgb):
            continue
        new = make_shape((colour, shape, old.size), rgb, old.box, rng)
        return replace(scene, items=tuple(new if item is old else item for item in scene.items))
    return scene


def _barred(colour: str, shape: str, recipe: Recipe) -> bool:
    """Forms with proportions of their own do not fit another's box."""
    return shape in ("rectangle", "oval", "diamond") or (
        not recipe.held_out and is_held_out(colour, shape)
    )


def compare(first: Scene, second: Scene, rng: random.Random) -> Turn | None:
    """One question about both."""
    asker = rng.choice((_same, _same, _which_has, _which_has, _more, _in_the, _in_the, _difference))
    return asker(first, second, rng)


def _same(first: Scene, second: Scene, rng: random.Random) -> Turn | None:
    """The same colour, or the same shape: of pictures with one shape each."""
    if len(first.shapes) != 1 or len(second.shapes) != 1:
        return None
    one, other = first.shapes[0], second.shapes[0]
    if rng.random() < 0.5:
        question = pick(
            rng,
            "Do both pictures show the same shape?",
            "Is the shape the same in both pictures?",
            "Are the two shapes the same?",
        )
        thought = f"The first shows a {one.shape}, the second a {other.shape}."
        return _turn(question, "Yes." if one.shape == other.shape else "No.", thought)
    question = pick(
        rng,
        "Is the colour the same in both pictures?",
        "Do both shapes have the same colour?",
        "Are the shapes of the same colour in both pictures?",
    )
    thought = f"The first is {one.colour}, the second {other.colour}."
    return _turn(question, "Yes." if one.colour == other.colour else "No.", thought)


def _which_has(first: Scene, second: Scene, rng: random.Random) -> Turn | None:
    shapes = first.shapes + second.shapes
    if not shapes:
        return None
    item = rng.choice(shapes)
    wanted = rng.choice((item.shape, f"{item.colour} {item.shape}"))
    found = [_holds(scene, wanted) for scene in (first, second)]
    if all(found):
        return None
    question = pick(
        rng,
        "Which picture has the {wanted}?",
        "Which picture shows a {wanted}?",
        "In which picture is the {wanted}?",
        wanted=wanted,
    )
    where = ORDINALS[found.index(True)]
    return _turn(question, f"The {where}.", f"The {wanted} is in the {where} picture.")


def _more(first: Scene, second: Scene, rng: random.Random) -> Turn | None:
    shape = rng.choice(SHAPES + ("",) * 10)
    counts = [sum(shape in ("", i.shape) for i in scene.shapes) for scene in (first, second)]
    if counts[0] == counts[1]:
        return None
    what = plural(shape) if shape else "shapes"
    question = pick(
        rng, "Which picture has more {what}?", "In which picture are there more {what}?", what=what
    )
    where = ORDINALS[counts[1] > counts[0]]
    thought = f"{capital(what)} in the first: {counts[0]}, in the second: {counts[1]}."
    return _turn(question, f"The {where}.", thought)


def _in_the(first: Scene, second: Scene, rng: random.Random) -> Turn | None:
    place = rng.randrange(2)
    scene = (first, second)[place]
    alone = [i for i in scene.shapes if sum(o.shape == i.shape for o in scene.shapes) == 1]
    if not alone:
        return None
    item = rng.choice(alone)
    parts = {"shape": item.shape, "where": ORDINALS[place]}
    if rng.random() < 0.65:
        question = pick(
            rng,
            "What colour is the {shape} in the {where} picture?",
            "Which colour does the {shape} in the {where} picture have?",
            **parts,
        )
        thought = f"In the {parts['where']} picture the {item.shape} is {item.colour}."
        return _turn(question, f"{capital(item.colour)}.", thought)
    number = str(len(scene.shapes))
    question = pick(
        rng,
        "How many shapes are in the {where} picture?",
        "How many shapes does the {where} picture show?",
        **parts,
    )
    names = ", ".join(shape.shape for shape in scene.shapes)
    return _turn(question, number, f"In the {parts['where']}: {names}. That is {number}.")


def _difference(first: Scene, second: Scene, rng: random.Random) -> Turn | None:
    """What changed, if just one thing did."""
    if len(first.shapes) != len(second.shapes) or first.ground != second.ground:
        return None
    pairs = [
        (one, other)
        for one, other in zip(first.items, second.items, strict=True)
        if isinstance(one, Shape) and isinstance(other, Shape)
    ]
    changed = [(one, other) for one, other in pairs if one != other]
    question = pick(
        rng,
        "What is different in the second picture?",
        "What has changed in the second picture?",
        "Find the difference between the pictures.",
    )
    if not changed:
        return _turn(question, "Nothing.", "Every shape is the same in both.")
    if len(changed) != 1:
        return None
    one, other = changed[0]
    old, new = f"{one.colour} {one.shape}", f"{other.colour} {other.shape}"
    if sum(f"{i.colour} {i.shape}" == old for i in first.shapes) > 1:
        return None
    return _turn(
        question, f"The {old} is now a {new}.", f"The first has a {old}, the second a {new}."
    )


def _holds(scene: Scene, wanted: str) -> bool:
    return any(wanted in (i.shape, f"{i.colour} {i.shape}") for i in scene.shapes)


def _turn(question: str, answer: str, thought: str) -> Turn:
    return Turn("two images", question, answer, thought)
