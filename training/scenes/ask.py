"""Questions about one picture, by skill. Each asker gives a Turn, or None if the scene has
nothing to ask about in this way."""

import random
from collections.abc import Callable
from itertools import pairwise

from training.scenes.palette import COLOURS, SHAPES
from training.scenes.scene import Item, Scene, Shape, centre
from training.scenes.turn import (
    Turn,
    a,
    box_text,
    capital,
    kind,
    listed,
    noun,
    percent,
    pick,
    plural,
    reference,
    said,
)

Asker = Callable[[Scene, random.Random], Turn | None]


def attribute(scene: Scene, rng: random.Random) -> Turn | None:
    """Colour, shape or size of one thing; the ground's colour; what the one thing is."""
    way = rng.random()
    if way < 0.15 and scene.ground.name:
        question = pick(
            rng,
            "What colour is the background?",
            "Which colour does the background have?",
            "Background colour?",
        )
        answer = f"{capital(scene.ground.name)}."
        thought = f"Behind everything it is {scene.ground.name}."
        return Turn("attributes", question, answer, thought)
    if way < 0.26 and len(scene.items) == 1 and isinstance(scene.items[0], Shape):
        return _what(scene.items[0], rng)
    shapes = [item for item in scene.shapes if reference(item, scene, rng)]
    if way > 0.9 and scene.texts:
        shapes = []
    item: Item | None = None
    if shapes:
        item = rng.choice(shapes)
    elif len(scene.texts) == 1:
        item = scene.texts[0]
    if item is None:
        return None
    return about(item, scene, rng, reference(item, scene, rng) or f"the {kind(item)}")


def about(item: Item, scene: Scene, rng: random.Random, name: str) -> Turn:
    """Colour, shape or size of `item`, called `name` ("the circle", "it")."""
    asked = rng.choice(("colour", "colour", "size", "shape"))
    if asked == "shape" and isinstance(item, Shape):
        alone = sum(i.colour == item.colour for i in scene.items) == 1
        if alone:
            question = pick(
                rng,
                "What shape is {colour}?",
                "Which shape is {colour}?",
                "What is the {colour} thing?",
                "What shape is the {colour} one?",
                "What is the shape of the {colour} object?",
                colour=item.colour,
            )
            thought = f"The {item.colour} thing is {a(item.shape)}."
            return Turn("attributes", question, f"{capital(a(item.shape))}.", thought, topic=item)
    if asked == "size" and isinstance(item, Shape):
        question = pick(
            rng,
            "What size is {name}?",
            "How big is {name}?",
            "Is {name} small, medium or large?",
            "Which size does {name} have?",
            name=name,
        )
        thought = f"{capital(name)} is {item.size}."
        return Turn("attributes", question, f"{capital(item.size)}.", thought, topic=item)
    name = name.replace(f"{item.colour} ", "") if name.endswith("text") else name
    if name.startswith(f"the {item.colour} "):
        name = f"the {noun(item)}"
        if sum(noun(i) == noun(item) for i in scene.items) > 1:
            return _size_or_colour(item, scene, rng)
    question = pick(
        rng,
        "What colour is {name}?",
        "Which colour is {name}?",
        "What is the colour of {name}?",
        "Tell me the colour of {name}.",
        "Which colour does {name} have?",
        name=name,
    )
    thought = f"{capital(name)} is {item.colour}."
    return Turn("attributes", question, f"{capital(item.colour)}.", thought, topic=item)


def _size_or_colour(item: Item, scene: Scene, rng: random.Random) -> Turn:
    """Of several with the same noun, its colour would be in the question: ask for its place."""
    x, _ = percent(item, scene)
    question = pick(
        rng,
        "In which half of the picture is the {kind}, left or right?",
        "Is the {kind} in the left or the right half?",
        kind=kind(item),
    )
    side = "left" if x < 50 else "right"
    thought = f"The {kind(item)} is at {x} of 100 across, so {side}."
    return Turn("relations", question, f"{capital(side)}.", thought, topic=item)


def _what(item: Shape, rng: random.Random) -> Turn:
    question = pick(
        rng,
        "What is in the picture?",
        "What do you see?",
        "What is this?",
        "What does the picture show?",
        "What's in this picture?",
    )
    what = f"{item.size} {kind(item)}"
    return Turn(
        "attributes",
        question,
        f"{capital(a(what))}.",
        f"There is one thing, {a(what)}.",
        topic=item,
    )


def describe(scene: Scene, rng: random.Random) -> Turn | None:
    """All that there is, from left to right."""
    things = sorted(scene.items, key=lambda item: centre(item)[0])
    if not 1 <= len(things) <= 4:
        return None
    places = [centre(item)[0] / scene.width for item in things]
    if any(later - earlier < 0.06 for earlier, later in pairwise(places)):
        return None
    question = pick(
        rng,
        "Describe the picture.",
        "What is in the picture, from left to right?",
        "What do you see, from left to right?",
        "List everything in the picture.",
        "Describe what you see.",
    )
    names = [a(kind(item)) for item in things]
    thought = f"I count {len(things)}, and go from left to right."
    return Turn("description", question, f"{capital(listed(names))}.", thought)


def counting(scene: Scene, rng: random.Random) -> Turn | None:
    """How many: of all shapes, of one shape, of one colour, or of both."""
    shapes = scene.shapes
    way = rng.random()
    if way < 0.48 or not shapes:
        what, chosen = "shapes", shapes
        names = [item.shape for item in chosen]
    elif way < 0.76:
        shape = rng.choice(shapes).shape if rng.random() < 0.92 else rng.choice(SHAPES)
        what, chosen = plural(shape), [item for item in shapes if item.shape == shape]
        names = [item.colour for item in chosen]
    elif way < 0.9:
        colour = rng.choice(shapes).colour if rng.random() < 0.9 else rng.choice(tuple(COLOURS))
        what, chosen = f"{colour} shapes", [item for item in shapes if item.colour == colour]
        names = [item.shape for item in chosen]
    else:
        one = rng.choice(shapes)
        what = f"{one.colour} {plural(one.shape)}"
        chosen = [item for item in shapes if kind(item) == kind(one)]
        names = [item.size for item in chosen]
    if len(chosen) > 9:
        return None
    if not scene.texts and rng.random() < 0.25:
        what = what.replace("shapes", rng.choice(("objects", "things")))
    question = pick(
        rng,
        "How many {what} are there?",
        "How many {what} do you see?",
        "Count the {what}.",
        "How many {what} are in the picture?",
        "What is the number of {what}?",
        what=what,
    )
    number = str(len(chosen))
    found = f"From left to right: {', '.join(names)}." if names else "I see none."
    return Turn("counting", question, number, f"{found} That is {number}.")


def yes_no(scene: Scene, rng: random.Random) -> Turn | None:
    """Is there; is it; are there more; does it hold text."""
    way = rng.random()
    if way < 0.4 or not scene.shapes:
        return _is_there(scene, rng)
    if way < 0.7:
        return _is_it(scene, rng)
    if way < 0.85:
        return _more_than(scene, rng)
    question = pick(
        rng,
        "Is there text in the picture?",
        "Does the picture contain text?",
        "Is anything written in the picture?",
        "Do you see any letters or digits?",
    )
    found = bool(scene.texts)
    return _yes_or_no(question, found, "There is text." if found else "There is no text.")


def _is_there(scene: Scene, rng: random.Random) -> Turn:
    truth = bool(scene.shapes) and rng.random() < 0.5
    if truth:
        item = rng.choice(scene.shapes)
        wanted = rng.choice((kind(item), item.shape))
    else:
        wanted = f"{rng.choice(tuple(COLOURS))} {rng.choice(SHAPES)}"
        if scene.shapes and rng.random() < 0.6:  # nearly right is the hard case
            item = rng.choice(scene.shapes)
            wanted = rng.choice(
                (
                    f"{item.colour} {rng.choice(SHAPES)}",
                    f"{rng.choice(tuple(COLOURS))} {item.shape}",
                )
            )
        elif rng.random() < 0.4:
            wanted = rng.choice(SHAPES)
    found = any(wanted in (kind(item), item.shape) for item in scene.shapes)
    question = pick(
        rng,
        "Is there {wanted}?",
        "Is there {wanted} in the picture?",
        "Do you see {wanted}?",
        "Does the picture show {wanted}?",
        "Can you see {wanted}?",
        wanted=a(wanted),
    )
    return _yes_or_no(question, found, f"There is {a(wanted) if found else f'no {wanted}'}.")


def _is_it(scene: Scene, rng: random.Random) -> Turn | None:
    item = rng.choice(scene.shapes)
    if sum(other.shape == item.shape for other in scene.shapes) > 1:
        return None
    asks_size = rng.random() < 0.3
    truth = item.size if asks_size else item.colour
    values = ("small", "medium", "large") if asks_size else tuple(COLOURS)
    value = truth if rng.random() < 0.5 else rng.choice(values)
    question = pick(
        rng,
        "Is the {shape} {value}?",
        "Is the {shape} {value} or not?",
        shape=item.shape,
        value=value,
    )
    return _yes_or_no(question, value == truth, f"The {item.shape} is {truth}.", item)


def _more_than(scene: Scene, rng: random.Random) -> Turn | None:
    kinds = sorted({item.shape for item in scene.shapes})
    if len(kinds) < 2:
        return None
    one, other = rng.sample(kinds, 2)
    counts = [sum(item.shape == shape for item in scene.shapes) for shape in (one, other)]
    question = pick(
        rng,
        "Are there more {one} than {other}?",
        "Do you see more {one} than {other}?",
        one=plural(one),
        other=plural(other),
    )
    thought = f"{capital(plural(one))}: {counts[0]}. {capital(plural(other))}: {counts[1]}."
    return _yes_or_no(question, counts[0] > counts[1], thought)


def _yes_or_no(question: str, truth: bool, thought: str, topic: Item | None = None) -> Turn:
    return Turn("yes/no", question, "Yes." if truth else "No.", thought, topic=topic)


def relation(scene: Scene, rng: random.Random) -> Turn | None:
    """Left, right, above, below: of two things, or the outermost one."""
    named = [(item, name) for item in scene.items if (name := reference(item, scene, rng))]
    if len(named) < 2:
        return None
    if rng.random() < 0.2 and len(named) == len(scene.items):
        return _outermost(scene, rng)
    (one, one_name), (other, other_name) = rng.sample(named, 2)
    return _two(scene, rng, (one, one_name), (other, other_name))


def _two(
    scene: Scene, rng: random.Random, one: tuple[Item, str], other: tuple[Item, str]
) -> Turn | None:
    (x1, y1), (x2, y2) = (centre(item) for item in (one[0], other[0]))
    base = min(scene.width, scene.height)
    across, down = (x1 - x2) / base, (y1 - y2) / base
    horizontal = abs(across) > abs(down)
    if max(abs(across), abs(down)) < 0.15:
        return None
    side = ("left" if across < 0 else "right") if horizontal else ("above" if down < 0 else "below")
    first, second = one[1], other[1]
    (p1x, p1y), (p2x, p2y) = percent(one[0], scene), percent(other[0], scene)
    axis = (p1x, p2x) if horizontal else (p1y, p2y)
    direction = "across" if horizontal else "down"
    thought = f"{capital(first)} is at {axis[0]} {direction}, {second} at {axis[1]}, so {side}."
    words = {"left": "left of", "right": "right of"}
    way = rng.random()
    if way < 0.45:
        choice = "left or right of" if horizontal else "above or below"
        question = pick(rng, "Is {one} {choice} {other}?", one=first, choice=choice, other=second)
        return Turn("relations", question, f"{capital(side)}.", thought, topic=one[0])
    if way < 0.65 and abs(abs(across) - abs(down)) > 0.12:
        question = pick(
            rng,
            "Where is {one} relative to {other}?",
            "Where is {one}, seen from {other}?",
            "On which side of {other} is {one}?",
            one=first,
            other=second,
        )
        return Turn("relations", question, f"{capital(side)}.", thought, topic=one[0])
    asked = side
    if rng.random() < 0.5:
        asked = {"left": "right", "right": "left", "above": "below", "below": "above"}[side]
    question = pick(
        rng,
        "Is {one} {where} {other}?",
        one=first,
        where=words.get(asked, asked),
        other=second,
    )
    answer = "Yes." if asked == side else "No."
    return Turn("relations", question, answer, thought, topic=one[0])


def _outermost(scene: Scene, rng: random.Random) -> Turn | None:
    side, axis, sign = rng.choice(
        (("leftmost", 0, 1), ("rightmost", 0, -1), ("topmost", 1, 1), ("lowest", 1, -1))
    )
    extent = (scene.width, scene.height)[axis]
    order = sorted(scene.items, key=lambda item: sign * centre(item)[axis])
    if abs(centre(order[0])[axis] - centre(order[1])[axis]) < 0.08 * extent:
        return None
    question = pick(
        rng,
        "What is the {side} thing?",
        "Which thing is {side}?",
        "What is {side} in the picture?",
        side=side,
    )
    direction = "across" if axis == 0 else "down"
    thought = f"The {kind(order[0])} is at {percent(order[0], scene)[axis]} {direction}."
    return Turn("relations", question, f"The {kind(order[0])}.", thought, topic=order[0])


def reading(scene: Scene, rng: random.Random) -> Turn | None:
    """What is printed."""
    texts = scene.texts
    if not texts:
        return None
    item = rng.choice(texts)
    if len(texts) == 1:
        question = pick(
            rng,
            "What does it say?",
            "Read the text.",
            "What is written in the picture?",
            "What text do you see?",
            "What does the text say?",
            "Which characters are printed?",
        )
    else:
        name = reference(item, scene, rng)
        if name is None:
            return None
        question = pick(
            rng, "What does {name} say?", "Read {name}.", "What is written in {name}?", name=name
        )
    return Turn(
        "reading", question, item.text, f"It has {len(item.text)}: {said(item)}.", topic=item
    )


def box(scene: Scene, rng: random.Random) -> Turn | None:
    """Where exactly something is."""
    item = rng.choice(scene.items) if scene.items else None
    name = reference(item, scene, rng) if item is not None else None
    if item is None or name is None:
        return None
    question = pick(
        rng,
        "Give the bounding box of {name}.",
        "Where is {name}? Answer with a box.",
        "Mark {name} with a bounding box.",
        "What is the bounding box of {name}?",
        "Locate {name}.",
        "Box of {name}?",
        name=name,
    )
    x, y = percent(item, scene)
    thought = f"{capital(name)} is centred at {x} across and {y} down."
    return Turn("boxes", question, box_text(item, scene), thought, "iou", topic=item)


def absent(scene: Scene, rng: random.Random) -> Turn | None:
    """A question about something that is not there."""
    missing = [shape for shape in SHAPES if all(item.shape != shape for item in scene.shapes)]
    if not missing or (scene.texts and rng.random() < 0.5):
        return None
    if not scene.texts and rng.random() < 0.3:
        question = pick(rng, "What does the text say?", "Read the text.", "What is written here?")
        return Turn("absent", question, "There is no text.", "I see no text.")
    shape = rng.choice(missing)
    question = pick(
        rng,
        "What colour is the {shape}?",
        "How big is the {shape}?",
        "Where is the {shape}?",
        "What size is the {shape}?",
        "Which colour does the {shape} have?",
        shape=shape,
    )
    return Turn("absent", question, f"There is no {shape}.", f"I see no {shape}.")


def follow_up(topic: Item, scene: Scene, rng: random.Random) -> Turn | None:
    """A question that only makes sense after one about `topic`."""
    if not isinstance(topic, Shape):
        return None
    way = rng.random()
    if way < 0.3:
        question = pick(rng, "And its size?", "How big is it?", "What size is it?")
        return Turn(
            "chat", question, f"{capital(topic.size)}.", f"It is {topic.size}.", topic=topic
        )
    if way < 0.6:
        question = pick(rng, "And its colour?", "What colour is it?", "Which colour does it have?")
        answer = f"{capital(topic.colour)}."
        return Turn("chat", question, answer, f"It is {topic.colour}.", topic=topic)
    if way < 0.8:
        question = pick(
            rng, "Give its bounding box.", "Where is it? Answer with a box.", "And its box?"
        )
        x, y = percent(topic, scene)
        thought = f"It is centred at {x} across and {y} down."
        return Turn("chat", question, box_text(topic, scene), thought, "iou", topic=topic)
    others = [i for i in scene.shapes if sum(o.shape == i.shape for o in scene.shapes) == 1]
    others = [item for item in others if item is not topic]
    if not others:
        return None
    item = rng.choice(others)
    question = pick(
        rng, "And the colour of the {shape}?", "What colour is the {shape}?", shape=item.shape
    )
    return Turn(
        "chat",
        question,
        f"{capital(item.colour)}.",
        f"The {item.shape} is {item.colour}.",
        topic=item,
    )


ASKERS: dict[str, Asker] = {
    "attributes": attribute,
    "yes/no": yes_no,
    "counting": counting,
    "relations": relation,
    "reading": reading,
    "boxes": box,
    "description": describe,
    "absent": absent,
}
