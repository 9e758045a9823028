"""One question about pictures with its only right answer, and how to speak of what they show."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from training.scenes.palette import PLURALS
from training.scenes.scene import Item, Scene, Shape, Text, centre

Json = dict[str, Any]
BOX_OPEN, BOX_CLOSE = "<|begin_of_box|>", "<|end_of_box|>"


@dataclass(frozen=True, slots=True)
class Turn:
    """What a user asks and what the model shall say; `thought` comes first if it may think."""

    skill: str
    question: str
    answer: str
    thought: str = ""
    metric: str = "exact"
    call: Json | None = None  # {"name", "arguments"}, in place of an answer
    topic: Item | None = None  # what a further question may call "it"


def pick(rng: random.Random, *forms: str, **parts: str) -> str:
    """One of the forms with its parts filled in, in the spelling of one kind of user."""
    text = rng.choice(forms).format(**parts)
    if rng.random() < 0.25:
        text = text.replace("colour", "color")
    if rng.random() < 0.12:
        text = text.replace("picture", "image")
    style = rng.random()
    if style < 0.08:
        text = text.rstrip("?.")
    if style < 0.12:
        text = text[0].lower() + text[1:]
    return text


def a(noun: str) -> str:
    """With the indefinite article."""
    return f"an {noun}" if noun[0] in "aeio" else f"a {noun}"


def capital(text: str) -> str:
    """With a capital first letter."""
    return text[0].upper() + text[1:]


def kind(item: Item) -> str:
    """red circle; red text."""
    return f"{item.colour} {item.shape if isinstance(item, Shape) else 'text'}"


def noun(item: Item) -> str:
    """circle; text."""
    return item.shape if isinstance(item, Shape) else "text"


def reference(item: Item, scene: Scene, rng: random.Random) -> str | None:
    """The words that mean this item and no other ("the circle"), or None if there are none."""
    if sum(kind(other) == kind(item) for other in scene.items) > 1:
        return None
    forms = [f"the {kind(item)}"]
    if sum(noun(other) == noun(item) for other in scene.items) == 1:
        forms += [f"the {noun(item)}"] * 3
    same_colour = [i for i in scene.items if i.colour == item.colour]
    if len(same_colour) == 1 and isinstance(item, Shape):
        forms.append(f"the {item.colour} shape")
    return rng.choice(forms)


def plural(shape: str) -> str:
    """circles; crosses; texts."""
    return PLURALS.get(shape, shape + "s")


def percent(item: Item, scene: Scene) -> tuple[int, int]:
    """Middle of the item in hundredths of width and height."""
    x, y = centre(item)
    return round(100 * x / scene.width), round(100 * y / scene.height)


def box_text(item: Item, scene: Scene) -> str:
    """The family's notation of a box: thousandths of width and height."""
    left, top, right, bottom = item.box
    sides = (left / scene.width, top / scene.height, right / scene.width, bottom / scene.height)
    numbers = ",".join(str(max(0, min(1000, round(1000 * side)))) for side in sides)
    return f"{BOX_OPEN}[[{numbers}]]{BOX_CLOSE}"


def listed(things: Sequence[str]) -> str:
    """a, b and c."""
    if len(things) < 2:
        return "".join(things)
    return f"{', '.join(things[:-1])} and {things[-1]}"


def said(text: Text) -> str:
    """The characters with spaces between them, as one spells."""
    return " ".join(text.text)
