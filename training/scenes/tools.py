"""Tools that nobody has seen before, requests to use them, and what they answer."""

import json
import random
import string
from dataclasses import dataclass

from training.scenes import words
from training.scenes.palette import COLOURS, SHAPES
from training.scenes.scene import Scene, Shape
from training.scenes.turn import Json, Turn, pick, reference

# Names are put together from these; every third stem is kept for the evaluation.
_VERBS = (
    "set log save send put add mark note store print push report record file post write keep count "
    "paint order tag list book sort pack check load make show enter"
).split()
_NOUNS = (
    "item part shape thing label sign stock row entry piece object card ticket sample record token "
    "figure plate sticker stamp badge box list sheet table panel tile unit result scan note form"
).split()
_ARGUMENT_WORDS = {
    "colour": "colour color tint hue paint shade ink tone".split(),
    "shape": "shape kind form type figure outline model style".split(),
    "size": "size scale extent bigness class dimension".split(),
    "count": "count number amount total quantity how_many n num".split(),
    "text": "text label words code content string caption value".split(),
}
_ARGUMENT_MEANINGS = {
    "colour": ("colour of the shape", "the colour", "which colour it has", "its colour"),
    "shape": ("what shape it is", "the shape", "name of the shape", "its shape"),
    "size": ("small, medium or large", "the size", "how big it is", "its size"),
    "count": (
        "how many shapes there are",
        "number of shapes",
        "the number of shapes in the picture",
    ),
    "text": ("what is written", "the text in the picture", "the printed characters"),
}
_PURPOSES = (
    "Stores what a picture shows.",
    "Writes one line to the list.",
    "Sends a note to the desk.",
    "Prints a label.",
    "Adds an entry to the table.",
    "Reports what was seen.",
    "Orders the same thing again.",
    "Keeps a record.",
    "Marks a thing as seen.",
)


# Shares of the training's names that are made up, and of arguments whose name means another thing
# (their description counts): from a few dozen stems alone a model learns the stems by heart, and
# not to copy, nor to look up, what the request says.
_INVENTED = 0.45
_INVENTED_ARGUMENTS = 0.6
_MISLEADING = 0.1
_KEPT = frozenset(
    stem for stems in (_VERBS, _NOUNS, *_ARGUMENT_WORDS.values()) for stem in stems[2::3]
)
_QUESTION_WORDS = (
    "picture image call use run look see which what how many left right above below first "
    "second both same different move box tool answer small medium large line function document "
    "each there shapes colours says only across more shows from character printed centre "
    "direction thing moving again object half beyond brief short correct video side background "
    "relative true ask anything rightmost leftmost top talk difference between under every "
    "letter digit nothing change person stay place none that read value thanks capital name "
    "better here with about can not"
).split()
# Whole words are single tokens with a meaning of their own: to copy one as a name ("count_scan",
# where "sount_scan" came out) is learnt from names that are words of the questions.
_PLAIN_WORDS = tuple(
    word
    for word in (
        *COLOURS,
        *SHAPES,
        *(stem for stems in (_VERBS, _NOUNS, *_ARGUMENT_WORDS.values()) for stem in stems),
        *words.COMMON,
        *_QUESTION_WORDS,
    )
    if word not in _KEPT
)


@dataclass(frozen=True, slots=True)
class Tool:
    """A function as a request describes it; `slots` says which argument means what."""

    name: str
    definition: Json
    slots: dict[str, str]


def make_tool(rng: random.Random, slots: list[str], held_out: bool) -> Tool:
    """A tool with one argument for each of `slots` (colour, shape, size, count, text)."""
    names = {_argument_name(slot, rng, held_out): slot for slot in slots}
    properties: Json = {}
    for name, slot in names.items():
        kind = "integer" if slot == "count" else "string"
        form: Json = {"type": kind}
        # Nobody can know what a word means that was in no sample: it is always explained.
        if held_out or rng.random() < 0.85 or name not in _ARGUMENT_WORDS[slot]:
            form["description"] = rng.choice(_ARGUMENT_MEANINGS[slot])
        if slot == "size" and rng.random() < 0.4:
            form["enum"] = ["small", "medium", "large"]
        properties[name] = form
    function: Json = {"name": _function_name(rng, held_out)}
    if rng.random() < 0.9:
        function["description"] = rng.choice(_PURPOSES)
    function["parameters"] = {"type": "object", "properties": properties}
    if rng.random() < 0.8:
        function["parameters"]["required"] = list(names)
    return Tool(function["name"], {"type": "function", "function": function}, names)


def use(tools: list[Tool], scene: Scene, rng: random.Random) -> Turn | None:
    """A request that one of the tools be called with what the picture shows."""
    tool = rng.choice(tools)
    wanted = set(tool.slots.values())
    item: Shape | None = None
    name = "it"
    if wanted & {"colour", "shape", "size"}:
        named = [(i, n) for i in scene.shapes if (n := reference(i, scene, rng))]
        if not named:
            return None
        item, name = rng.choice(named)
    if "text" in wanted and len(scene.texts) != 1:
        return None
    values: Json = {}
    for argument, slot in tool.slots.items():
        if slot == "count":
            values[argument] = len(scene.shapes)
        elif slot == "text":
            values[argument] = scene.texts[0].text
        elif item is not None:
            values[argument] = {"colour": item.colour, "shape": item.shape, "size": item.size}[slot]
    question = _request(tool, name, item, scene, rng)
    thought = "I read the values off the picture and call the tool."
    if item is not None:
        thought = f"It is a {item.size} {item.colour} {item.shape}. I call the tool."
    elif "count" in wanted:
        found = ", ".join(shape.shape for shape in scene.shapes) or "nothing"
        thought = f"I see {found}: {len(scene.shapes)}. I call the tool."
    call = {"name": tool.name, "arguments": values}
    return Turn("tools", question, "", thought, "tool_call", call)


def use_told(tool: Tool, rng: random.Random, held_out: bool) -> Turn:
    """A request, without a picture, that the tool be called with what it says itself.

    Which argument belongs to which tool is learnt here a dozen times for the price of one picture.
    """
    known: Json = {
        "colour": rng.choice(tuple(COLOURS)),
        "shape": rng.choice(SHAPES),
        "size": rng.choice(("small", "medium", "large")),
        "count": rng.randint(0, 9),
        "text": words.printed(rng, held_out),
    }
    wanted = set(tool.slots.values())
    said = []
    if wanted & {"colour", "shape", "size"} or rng.random() < 0.3:
        said.append("a {size} {colour} {shape}".format(**known))
    if "count" in wanted or rng.random() < 0.2:
        said.append(rng.choice(("{count} shapes", "the number {count}")).format(**known))
    if "text" in wanted or rng.random() < 0.2:
        said.append(rng.choice(("the text {text}", "the word {text}")).format(**known))
    rng.shuffle(said)
    form = rng.choice(("Call {} for {}.", "Use {} with {}.", "Please run {} on {}.", "{}: {}."))
    values = {argument: known[slot] for argument, slot in tool.slots.items()}
    call = {"name": tool.name, "arguments": values}
    question = form.format(tool.name, " and ".join(said))
    return Turn(
        "told tools", question, "", "I call the tool with what I was told.", "tool_call", call
    )


def any_slots(rng: random.Random) -> list[str]:
    """One to three arguments of a tool that no picture is needed for."""
    return rng.sample(tuple(_ARGUMENT_WORDS), rng.choice((1, 1, 2, 2, 3)))


def _request(tool: Tool, name: str, item: Shape | None, scene: Scene, rng: random.Random) -> str:
    if item is not None and (len(scene.shapes) > 1 or rng.random() < 0.4):
        return pick(
            rng,
            "Call {tool} for {name}.",
            "Use {tool} with {name}.",
            "Please use {tool} for {name}.",
            "Call the tool {tool} for {name}.",
            "Run {tool} on {name}.",
            tool=tool.name,
            name=name,
        )
    return pick(
        rng,
        "Call {tool} for this picture.",
        "Use {tool} with what you see.",
        "Please call {tool}.",
        "Look at the picture and call {tool}.",
        "Use the tool {tool}.",
        "Run {tool} for the picture.",
        tool=tool.name,
    )


def reply(rng: random.Random) -> str:
    """What a tool answers: a word, a sentence, or JSON."""
    number = rng.randint(1, 9999)
    word = words.pseudo_word(rng, 7)
    return rng.choice(
        (
            "ok",
            "done",
            f"{number}",
            word,
            f"Saved as {number}.",
            f"Stored under {word}.",
            f"Error: no {word}",
            json.dumps({"status": "ok", "id": number}),
            json.dumps({"result": word}),
            json.dumps({"ok": True, word: number}),
            f"{word} {number}",
        )
    )


def after(result: str) -> Turn:
    """The answer to a tool's reply."""
    return Turn("tool results", "", f"The tool says:\n{result}", "The tool has answered.")


def _function_name(rng: random.Random, held_out: bool) -> str:
    is_invented = _is_invented(rng, held_out, _INVENTED)
    verb = _invented(rng, 6) if is_invented else _stem(_VERBS, rng, held_out)
    noun_ = _stem(_NOUNS, rng, held_out) if rng.random() < 0.75 else words.pseudo_word(rng, 8)
    if is_invented and rng.random() < 0.5:
        noun_ = _invented(rng, 8)
    if held_out == words.is_held_out(noun_) and rng.random() < 0.1:
        return noun_
    style = rng.random()
    if style < 0.75:
        return f"{verb}_{noun_}"
    if style < 0.9:
        return f"{verb}{noun_.capitalize()}"
    return f"{verb}_{noun_}_{rng.randint(1, 9)}"


def _argument_name(slot: str, rng: random.Random, held_out: bool) -> str:
    if _is_invented(rng, held_out, _INVENTED_ARGUMENTS):
        return rng.choice(("", "", "", f"{slot}_")) + _invented(rng, 8)
    if not held_out and rng.random() < _MISLEADING:
        return _stem(rng.choice(tuple(_ARGUMENT_WORDS.values())), rng, held_out)
    way = rng.random()
    if way < 0.65:
        return _stem(_ARGUMENT_WORDS[slot], rng, held_out)
    if way < 0.8:
        return f"{_stem(_NOUNS, rng, held_out)}_{_stem(_ARGUMENT_WORDS[slot], rng, held_out)}"
    return f"{words.pseudo_word(rng, 6)}_{slot}" if way < 0.9 else words.pseudo_word(rng, 7)


def _is_invented(rng: random.Random, held_out: bool, share: float) -> bool:
    """Only in training: the evaluation asks for names as people write them."""
    return not held_out and rng.random() < share


def _invented(rng: random.Random, longest: int) -> str:
    """A name that is not one of the evaluation's stems by chance, and no spelling is too odd."""
    while True:
        way = rng.random()
        if way < 0.45:
            name = rng.choice(_PLAIN_WORDS)
        elif way < 0.7:
            name = words.pseudo_word(rng, longest)
        else:
            name = "".join(
                rng.choice(string.ascii_lowercase) for _ in range(rng.randint(2, longest))
            )
        if name not in _KEPT:
            return name


def _stem(stems: list[str], rng: random.Random, held_out: bool) -> str:
    """Every third stem is for the evaluation alone."""
    chosen = stems[2::3] if held_out else [s for i, s in enumerate(stems) if i % 3 != 2]
    return rng.choice(chosen)


def slots_for(scene: Scene, rng: random.Random) -> list[str]:
    """Which arguments can be read off this scene: one to three of them."""
    possible = ["count"] if len(scene.shapes) <= 9 else []
    if scene.shapes:
        possible += ["colour", "shape", "size", "colour", "shape"]
    if len(scene.texts) == 1:
        possible += ["text", "text"]
    number = rng.choice((1, 1, 2, 2, 3))
    chosen: list[str] = []
    for _ in range(number):
        slot = rng.choice(possible) if possible else "count"
        if slot not in chosen:
            chosen.append(slot)
    return chosen
