"""Whole conversations from a seed: pictures, turns, thinking, tools, and what shall be learnt.

`converse(seed, progress, held_out)` is the one door. Roughly six in ten samples are several
questions about one picture without thinking, so that each picture drawn teaches several times.
"""

import math
import random

from training.conversation import Clip, Conversation, Json, assistant_message, say
from training.scenes import beyond, motion, pairs, tools
from training.scenes.ask import ASKERS, follow_up
from training.scenes.palette import COLOURS, SHAPES
from training.scenes.scene import Recipe, Scene, compose
from training.scenes.turn import Turn

_SYSTEMS = (
    "You are a helpful assistant.",
    "Be brief.",
    "Answer in English.",
    "You look at pictures and answer questions.",
    "You are a vision model.",
    "Answer shortly and correctly.",
)
# Share of samples by what they are about.
_KINDS = {
    "picture": 0.50,
    "two images": 0.09,
    "motion": 0.04,
    "tools": 0.22,
    "told tools": 0.07,
    "beyond": 0.05,
    "talk": 0.03,
}
# How often each skill is asked about a single picture: the more, the longer it takes to learn.
_SKILLS = {
    "attributes": 0.13,
    "yes/no": 0.09,
    "counting": 0.14,
    "relations": 0.09,
    "reading": 0.34,
    "boxes": 0.14,
    "description": 0.04,
    "absent": 0.03,
}
_THINKING_SHARE = 0.33
_ALONE_UNTIL = 0.06  # share of the training in which pictures hold two shapes at most
_CELL = 28  # pixels of one token's side


def converse(seed: int, progress: float, held_out: bool, kind: str | None = None) -> Conversation:
    """One conversation. `progress` (0 to 1) lets pictures grow; `kind` is one of the kinds, or one
    of the skills, where chance shall not choose."""
    rng = random.Random(f"{seed} {held_out}")
    for _ in range(100):
        made = _converse(rng, progress, held_out, kind)
        if made is not None:
            return made
    raise RuntimeError(f"seed {seed} gave no conversation of kind {kind}")


def _converse(
    rng: random.Random, progress: float, held_out: bool, wanted: str | None
) -> Conversation | None:
    kind = wanted or rng.choices(tuple(_KINDS), weights=tuple(_KINDS.values()), k=1)[0]
    skill = kind if kind in _SKILLS else None
    conversation = Conversation(thinking=rng.random() < _THINKING_SHARE)
    if rng.random() < 0.12:
        conversation.messages.append({"role": "system", "content": rng.choice(_SYSTEMS)})
    if kind == "two images":
        return _two_images(conversation, rng, progress, held_out)
    if kind == "motion":
        return _motion(conversation, rng, progress, held_out)
    if kind in ("tools", "tool results"):
        return _tools(conversation, rng, progress, held_out, kind == "tool results")
    if kind == "told tools":
        return _told_tools(conversation, rng, held_out)
    if kind == "beyond":
        return _beyond(conversation, rng, progress, held_out)
    if kind == "talk":
        return _talk(conversation, rng)
    return _picture(conversation, rng, progress, held_out, skill, chat=kind == "chat")


def _picture(
    conversation: Conversation,
    rng: random.Random,
    progress: float,
    held_out: bool,
    skill: str | None,
    chat: bool,
) -> Conversation | None:
    skill = skill or rng.choices(tuple(_SKILLS), weights=tuple(_SKILLS.values()), k=1)[0]
    scene = compose(recipe_for(skill, rng, progress, held_out), rng)
    turns: list[Turn] = []
    wanted = rng.choice((1, 2, 2) if conversation.thinking else (1, 3, 4, 5, 6, 7, 8))
    if chat:
        wanted = max(2, wanted)
    for index in range(4 * wanted):
        if len(turns) == wanted:
            break
        turn = _next_turn(scene, skill if index < 3 else None, turns, rng)
        if turn is not None and not _is_asked(turn, turns):
            turns.append(turn)
    if not turns or (chat and turns[-1].skill != "chat"):
        return None
    if conversation.thinking and all(turn.skill != "chat" for turn in turns):
        turns.reverse()  # the wanted skill comes last, where the thinking is
    say(conversation, turns, [Clip((scene,))], rng)
    return conversation


def _is_asked(turn: Turn, turns: list[Turn]) -> bool:
    """Whether it would only repeat: the same words, or the same long answer."""
    return any(
        turn.question == other.question or (turn.answer == other.answer and len(turn.answer) > 20)
        for other in turns
    )


def _next_turn(
    scene: Scene, skill: str | None, before: list[Turn], rng: random.Random
) -> Turn | None:
    topic = before[-1].topic if before else None
    if topic is not None and rng.random() < 0.2:
        return follow_up(topic, scene, rng)
    if skill is None:
        skill = rng.choices(tuple(_SKILLS), weights=tuple(_SKILLS.values()), k=1)[0]
    return ASKERS[skill](scene, rng)


def recipe_for(skill: str, rng: random.Random, progress: float, held_out: bool) -> Recipe:
    """A scene about which there is something to ask in this skill."""
    width, height = picture_size(rng, progress)
    recipe: Json = {"num_shapes": rng.choice((1, 2, 2, 3, 3, 4, 5)), "num_texts": 0}
    if rng.random() < 0.2:
        recipe["num_texts"] = 1
    if skill == "reading":
        # Every text teaches the tower, so training prints more of them than it asks about.
        recipe["num_texts"] = rng.choice((1, 1, 1, 2, 3) if held_out else (1, 1, 2, 3, 4, 5))
        recipe["num_shapes"] = rng.choice((0, 0, 1, 2))
    elif skill == "counting":
        recipe["num_shapes"] = rng.choice((0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 6, 7, 8, 9))
        recipe["num_texts"] = 0
        kinds = rng.choice((1, 1, 2, 3, 4))
        recipe["shapes"] = rng.sample(SHAPES, kinds)
        recipe["colours"] = rng.sample(tuple(COLOURS), rng.randint(3, 6))
        big = recipe["num_shapes"] < 4
        recipe["sizes"] = ("small", "medium", "large") if big else ("small", "small", "medium")
    elif skill == "relations":
        recipe["num_shapes"] = rng.choice((2, 2, 3, 4))
    elif skill == "attributes":
        recipe["num_shapes"] = rng.choice((1, 1, 2, 3, 4))
    elif skill == "yes/no" and rng.random() < 0.5:
        recipe["shapes"] = rng.sample(SHAPES, 3)
        recipe["num_shapes"] = rng.randint(2, 7)
    elif skill == "description":
        recipe["num_shapes"] = rng.choice((1, 2, 3, 4))
    if progress < _ALONE_UNTIL:  # where something is, is learnt sooner when it is alone
        recipe["num_shapes"] = min(recipe["num_shapes"], 2)
    if "sizes" not in recipe and recipe["num_shapes"] > 4:
        recipe["sizes"] = ("small", "small", "medium")
    return Recipe(width, height, held_out=held_out, **recipe)


def picture_size(rng: random.Random, progress: float) -> tuple[int, int]:
    """Width and height in pixels: 56 to 448, small ones first, most in whole tokens."""
    most = 448 if progress > 0.3 else 112 + (448 - 112) * progress / 0.3
    side = math.exp(rng.uniform(math.log(76), math.log(most)))
    if rng.random() < 0.08:
        side = rng.uniform(56, 76)
    aspect = math.exp(rng.gauss(0, 0.32))
    if rng.random() < 0.06:
        aspect = rng.choice((3.0, 1 / 3.0, 4.0))
    width, height = (
        max(56, min(448, round(value))) for value in (side * aspect**0.5, side / aspect**0.5)
    )
    if rng.random() < 0.75:
        width, height = (max(2, round(value / _CELL)) * _CELL for value in (width, height))
    return width, height


def _two_images(
    conversation: Conversation, rng: random.Random, progress: float, held_out: bool
) -> Conversation | None:
    width, height = picture_size(rng, min(progress, 0.15))
    recipe = Recipe(width, height, num_shapes=rng.choice((1, 1, 2, 3, 4)), held_out=held_out)
    scenes = pairs.compose_pair(recipe, rng)
    turns: list[Turn] = []
    wanted = 1 if conversation.thinking else rng.choice((2, 3, 4))
    for _ in range(12):
        turn = pairs.compare(*scenes, rng)
        if turn is not None and not _is_asked(turn, turns):
            turns.append(turn)
        if len(turns) == wanted:
            break
    if not turns:
        return None
    say(conversation, turns, [Clip((scene,)) for scene in scenes], rng)
    return conversation


def _motion(
    conversation: Conversation, rng: random.Random, progress: float, held_out: bool
) -> Conversation | None:
    side = rng.choice((84, 112, 112, 140, 168))
    recipe = Recipe(
        side, rng.choice((side, 84, 112)), num_shapes=rng.choice((1, 1, 2, 3)), held_out=held_out
    )
    made = motion.film(recipe, rng.choice((4, 4, 6, 8)), rng)
    if made is None:
        return None
    frames, turn = made
    turns = [turn]
    if not conversation.thinking and rng.random() < 0.6:
        more = ASKERS[rng.choice(("attributes", "counting", "yes/no"))](frames[0], rng)
        if more is not None and more.topic is not None:
            turns.append(more)
    say(conversation, turns, [Clip(tuple(frames), is_video=True)], rng)
    return conversation


def _tools(
    conversation: Conversation, rng: random.Random, progress: float, held_out: bool, to_end: bool
) -> Conversation | None:
    scene = compose(
        recipe_for(
            rng.choice(("attributes", "counting", "reading")), rng, min(progress, 0.2), held_out
        ),
        rng,
    )
    # Which of several tools an argument belongs to is what is hard: training has more of them.
    numbers = (1, 1, 1, 2, 2, 3) if held_out else (1, 2, 2, 3, 3, 4)
    offered = [
        tools.make_tool(rng, tools.slots_for(scene, rng), held_out)
        for _ in range(rng.choice(numbers))
    ]
    if len({tool.name for tool in offered}) < len(offered):
        return None
    conversation.tools = [tool.definition for tool in offered]
    turns: list[Turn] = []
    if not to_end and rng.random() < 0.3:  # tools are there, and a plain question is asked
        turn = _next_turn(scene, None, [], rng)
        if turn is None:
            return None
        turns.append(turn)
    if not turns or (not conversation.thinking and rng.random() < 0.5):
        call = tools.use(offered, scene, rng)
        if call is None:
            return None
        turns.append(call)
    say(conversation, turns, [Clip((scene,))], rng)
    if turns[-1].call is not None and (to_end or rng.random() < 0.5):
        _answer_after_tool(conversation, scene, offered, rng)
    if not held_out and not conversation.thinking:
        for tool in _not_called(conversation, offered):
            if (more := tools.use([tool], scene, rng)) is not None:
                _call_and_answer(conversation, more, rng)
    return conversation


def _told_tools(
    conversation: Conversation, rng: random.Random, held_out: bool
) -> Conversation | None:
    offered = [
        tools.make_tool(rng, tools.any_slots(rng), held_out)
        for _ in range(rng.choice((1, 2, 2, 3, 3, 4)))
    ]
    if len({tool.name for tool in offered}) < len(offered):
        return None
    conversation.tools = [tool.definition for tool in offered]
    if conversation.thinking:
        offered = offered[:1]
    for tool in rng.sample(offered, len(offered)):
        _call_and_answer(conversation, tools.use_told(tool, rng, held_out), rng)
    return conversation


def _not_called(conversation: Conversation, offered: list[tools.Tool]) -> list[tools.Tool]:
    """A tool's second call would be copied from its first."""
    called = {turn.call["name"] for turn in conversation.turns if turn.call is not None}
    return [tool for tool in offered if tool.name not in called]


def _call_and_answer(conversation: Conversation, call: Turn, rng: random.Random) -> None:
    """A call and, mostly, what comes of it."""
    say(conversation, [call], [], rng)
    if not conversation.thinking and rng.random() < 0.7:
        _hear_tool(conversation, rng)


def _answer_after_tool(
    conversation: Conversation, scene: Scene, offered: list[tools.Tool], rng: random.Random
) -> None:
    _hear_tool(conversation, rng)
    if not conversation.thinking and rng.random() < 0.7:
        again = rng.random() < 0.6
        more = tools.use(offered, scene, rng) if again else _next_turn(scene, None, [], rng)
        if more is not None and more.question != conversation.turns[0].question:
            say(conversation, [more], [], rng)


def _hear_tool(conversation: Conversation, rng: random.Random) -> None:
    """What the tool answers, and what the assistant makes of it."""
    result = tools.reply(rng)
    turn = tools.after(result)
    conversation.messages.append({"role": "tool", "content": result})
    conversation.messages.append(assistant_message(turn, conversation.thinking))
    conversation.skills.append(turn.skill)
    conversation.turns.append(turn)


def _beyond(
    conversation: Conversation, rng: random.Random, progress: float, held_out: bool
) -> Conversation:
    turns = [beyond.beyond(rng, held_out)]
    clips = []
    if rng.random() < 0.5:
        scene = compose(recipe_for("attributes", rng, min(progress, 0.1), held_out), rng)
        clips.append(Clip((scene,)))
        if not conversation.thinking and (turn := _next_turn(scene, None, [], rng)) is not None:
            turns.insert(rng.randrange(2), turn)
    say(conversation, turns, clips, rng)
    return conversation


def _talk(conversation: Conversation, rng: random.Random) -> Conversation:
    turns = [beyond.small_talk(rng) if rng.random() < 0.6 else beyond.without_picture(rng)]
    if not conversation.thinking and rng.random() < 0.4:
        turns.append(beyond.small_talk(rng))
    say(conversation, turns, [], rng)
    return conversation
