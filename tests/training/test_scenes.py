"""The world of the built-in model: what is said about a picture is true of its pixels."""

import random
from itertools import pairwise

import numpy as np
import pytest

from training.conversation import Conversation
from training.conversations import converse, recipe_for
from training.scenes import tools, words
from training.scenes.ask import ASKERS
from training.scenes.draw import draw
from training.scenes.palette import is_held_out
from training.scenes.scene import Scene, Shape, compose
from training.scenes.turn import Turn

SEEDS = range(150)
KINDS = ["counting", "reading", "boxes", "two images", "motion", "tools", "beyond", "chat"]


def scenes(skill: str, held_out: bool = False) -> list[Scene]:
    rng = random.Random(f"{skill}{held_out}")
    return [compose(recipe_for(skill, rng, 1.0, held_out), rng) for _ in SEEDS]


def asked(skill: str) -> list[tuple[Scene, Turn]]:
    rng = random.Random(skill)
    pairs = [(scene, ASKERS[skill](scene, rng)) for scene in scenes(skill)]
    found = [(scene, turn) for scene, turn in pairs if turn is not None]
    assert len(found) > len(SEEDS) / 3
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_always_gives_the_same_conversation(kind: str) -> None:
    first, second = (converse(7, 1.0, False, kind) for _ in range(2))
    assert first.messages == second.messages
    assert first.clips == second.clips


@pytest.mark.parametrize("seed", range(40))
def test_every_kind_of_conversation_can_be_made_from_every_seed(seed: int) -> None:
    for kind in (*KINDS, "told tools", "attributes", "yes/no", "relations", "tool results", "talk"):
        conversation = converse(seed, seed / 40, seed % 2 == 0, kind)
        assert conversation.turns
        roles = [message["role"] for message in conversation.messages]
        assert roles[-1] == "assistant"
        assert len(conversation.skills) == roles.count("assistant")
        assert any(conversation.skills)


def test_a_box_holds_the_ink_and_nothing_more() -> None:
    for scene in scenes("boxes"):
        if len(scene.items) != 1 or scene.ground.noise or scene.ground.far != scene.ground.rgb:
            continue
        pixels = np.asarray(draw(scene)).astype(int)
        ink = np.abs(pixels - np.array(scene.ground.rgb)).sum(2) > 60
        rows, columns = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
        seen = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
        np.testing.assert_allclose(seen, scene.items[0].box, atol=2.5)


def test_a_shape_has_the_colour_that_it_is_said_to_have() -> None:
    for scene in scenes("attributes"):
        pixels = np.asarray(draw(scene)).astype(int)
        for item in scene.shapes:
            left, top, right, bottom = (round(side) for side in item.box)
            inside = pixels[top:bottom, left:right].reshape(-1, 3)
            near = np.abs(inside - np.array(item.rgb)).sum(1) < 60
            assert near.mean() > 0.15


def test_counts_are_those_of_the_scene() -> None:
    seen = set()
    for scene, turn in asked("counting"):
        number = int(turn.answer)
        seen.add(number)
        assert number <= len(scene.shapes)
        if turn.question in ("How many shapes are there?", "Count the shapes."):
            assert number == len(scene.shapes)
        assert turn.thought.endswith(f"That is {number}.")
    assert seen >= set(range(8))


def test_what_is_read_is_printed() -> None:
    for scene, turn in asked("reading"):
        assert turn.answer in [text.text for text in scene.texts]
        assert 1 <= len(turn.answer) <= 8


def test_nothing_overlaps_and_everything_is_inside() -> None:
    for skill in ASKERS:
        for scene in scenes(skill, held_out=True):
            for item in scene.items:
                left, top, right, bottom = item.box
                assert 0 <= left < right <= scene.width
                assert 0 <= top < bottom <= scene.height
                for other in scene.items:
                    apart = right <= other.box[0] or other.box[2] <= left
                    apart |= bottom <= other.box[1] or other.box[3] <= top
                    assert apart or other is item


def test_training_never_shows_what_the_evaluation_asks_for() -> None:
    def shown(held_out: bool) -> tuple[set[tuple[str, str]], set[str], set[str]]:
        pairs: set[tuple[str, str]] = set()
        texts: set[str] = set()
        names: set[str] = set()
        for seed in range(400):
            conversation = converse(seed, 1.0, held_out)
            for clip in conversation.clips:
                for scene in clip.scenes:
                    pairs |= {(i.colour, i.shape) for i in scene.items if isinstance(i, Shape)}
                    texts |= {text.text for text in scene.texts}
            names |= {tool["function"]["name"] for tool in conversation.tools}
        return pairs, texts, names

    pairs, texts, names = shown(held_out=False)
    assert not [pair for pair in pairs if is_held_out(*pair)]
    assert not [text for text in texts if words.is_held_out(text)]
    held_pairs, held_texts, held_names = shown(held_out=True)
    assert [pair for pair in held_pairs if is_held_out(*pair)]
    assert not texts & held_texts
    assert not names & held_names


def test_a_tool_call_fits_its_tools_schema() -> None:
    for seed in SEEDS:
        conversation = converse(seed, 1.0, seed % 2 == 0, "tools")
        for turn in conversation.turns:
            if turn.call is None:
                continue
            functions = [tool["function"] for tool in conversation.tools]
            (function,) = [f for f in functions if f["name"] == turn.call["name"]]
            properties = function["parameters"]["properties"]
            assert set(turn.call["arguments"]) == set(properties)
            for name, value in turn.call["arguments"].items():
                kinds = {"string": str, "integer": int}
                assert isinstance(value, kinds[properties[name]["type"]])
                assert value in properties[name].get("enum", [value])


def test_a_video_moves_the_way_that_is_said() -> None:
    moves = {"To the right.": (1, 0), "To the left.": (-1, 0), "Up.": (0, -1), "Down.": (0, 1)}
    for seed in range(60):
        conversation = converse(seed, 1.0, False, "motion")
        (clip,) = conversation.clips
        first, last = clip.scenes[0].items[-1].box, clip.scenes[-1].items[-1].box
        step = (np.sign(round(last[0] - first[0])), np.sign(round(last[1] - first[1])))
        assert step == moves.get(conversation.turns[0].answer, (0, 0))


def test_thinking_is_taught_by_the_last_answer_alone() -> None:
    def taught(conversation: Conversation) -> list[bool]:
        return [skill is not None for skill in conversation.skills]

    for seed in SEEDS:
        conversation = converse(seed, 1.0, False, "attributes")
        if conversation.thinking:
            assert taught(conversation) == [False] * (len(conversation.skills) - 1) + [True]
        else:
            assert all(taught(conversation))


def test_a_follow_up_is_taught_with_thinking_as_well() -> None:
    """Else a second question got what no answer is, as soon as the model was to think."""
    made = (converse(seed, 1.0, held_out=False, kind="attributes") for seed in range(400))
    last = [talk.skills[-1] for talk in made if talk.thinking]
    assert last.count("chat") > 0.03 * len(last)


def test_what_is_told_is_in_the_request_and_each_tool_is_called_once() -> None:
    for seed in range(60):
        conversation = converse(seed, 1.0, seed % 2 == 0, "told tools")
        calls = [turn for turn in conversation.turns if turn.call is not None]
        names = [turn.call["name"] for turn in calls if turn.call is not None]
        assert not conversation.clips
        assert len(set(names)) == len(names) >= 1
        for turn in calls:
            assert turn.call is not None
            said = turn.question.split()
            for value in turn.call["arguments"].values():
                assert any(word.rstrip(".") == str(value) for word in said), turn


def test_a_tool_has_every_argument_once() -> None:
    rng = random.Random(1)
    for _ in range(200):
        tool = tools.make_tool(rng, ["colour", "count", "text"], held_out=False)
        properties = tool.definition["function"]["parameters"]["properties"]
        assert set(properties) == set(tool.slots)


def test_training_names_of_tools_are_too_many_to_learn_by_heart() -> None:
    rng = random.Random(5)
    verbs = {
        held_out: {tools.make_tool(rng, ["count"], held_out).name.split("_")[0] for _ in range(400)}
        for held_out in (False, True)
    }
    assert len(verbs[False]) > 150
    assert len(verbs[True]) < 150  # the evaluation's are as people write them


def test_words_that_training_never_shows_are_explained_in_the_evaluation() -> None:
    rng = random.Random(6)
    for _ in range(200):
        tool = tools.make_tool(rng, ["colour", "size", "text"], held_out=True)
        properties = tool.definition["function"]["parameters"]["properties"]
        assert all("description" in form for form in properties.values())


def test_in_training_an_arguments_name_alone_does_not_tell_what_it_means() -> None:
    rng = random.Random(7)
    meanings: dict[str, set[str]] = {}
    for _ in range(3000):
        tool = tools.make_tool(rng, ["colour", "shape", "text"], held_out=False)
        for name, slot in tool.slots.items():
            meanings.setdefault(name, set()).add(slot)
    assert len(meanings) > 1000
    assert {"colour", "shape", "text"} <= meanings["label"]


def test_training_prints_doubled_letters_clusters_and_every_small_letter() -> None:
    rng = random.Random(8)
    texts = [words.printed(rng, held_out=False) for _ in range(4000)]
    small = [text for text in texts if text.islower()]
    assert {letter for text in small for letter in text} >= set("abcdefghijklmnopqrstuvwxyz")
    assert sum(any(a == b for a, b in pairwise(text)) for text in small) > 40
    assert all(1 <= len(text) <= 8 for text in texts)


def test_a_whole_word_can_be_a_tools_name_in_training_but_never_one_of_the_evaluation() -> None:
    rng = random.Random(9)
    verbs = {tools.make_tool(rng, ["size"], False).name.split("_")[0] for _ in range(6000)}
    assert {"circle", "red", "stop"} <= verbs
    assert not {"save", "count", "tag"} & verbs
