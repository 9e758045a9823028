"""Scores of answers, by hand-made cases and by properties."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glimt.evaluation.boxes import boxed, is_one_well_formed_box, overlap, parse_box
from glimt.evaluation.formats import is_in_format
from glimt.evaluation.metrics import (
    anls,
    chosen,
    contains,
    exact,
    json_equal,
    levenshtein,
    normalised,
    relaxed,
    same_calls,
    score,
)
from glimt.evaluation.replies import Call, Reply, split_thoughts
from glimt.evaluation.tasks import Task

TOOL = {"type": "function", "function": {"name": "mark"}}


def task(metric: Any, answer: Any, **fields: Any) -> Task:
    return Task(question="?", metric=metric, answer=answer, **fields)


def value(task: Task, text: str, **fields: Any) -> float:
    return score(task, Reply(text=text, **fields), thinking=False, iou=0.6).value


@pytest.mark.parametrize(
    ("given", "answer"),
    [
        ("Three.", "3"),
        ("  the  RED  circle ", "red circle"),
        ("(Yes!)", "yes"),
        ("“A1b”", "a1B"),
        ("A", "a"),  # a letter that was read, not an article
        ("twenty", "20"),
        ("twenty-one", "twenty-one"),
        ("-5", "-5"),
        (".5", ".5"),
    ],
)
def test_answers_that_differ_only_in_dress_are_equal(given: str, answer: str) -> None:
    assert exact(given, answer)


@pytest.mark.parametrize(
    ("given", "answer"),
    [("3", "4"), ("-5", "5"), ("twenty-one", "20-1"), ("", "0"), ("There are 3", "3")],
)
def test_answers_that_say_something_else_are_not(given: str, answer: str) -> None:
    assert not exact(given, answer)


@given(st.text(max_size=30))
def test_every_answer_equals_itself_in_capitals(text: str) -> None:
    assert exact(text, text)
    assert not text.isascii() or exact(text.upper(), text)


def test_contains_looks_for_whole_words() -> None:
    assert contains("The answer is: three.", "3")
    assert contains("It is a red circle, I think", "Red circle")
    assert not contains("It is 30", "3")
    assert not contains("reddish", "red")


@pytest.mark.parametrize(
    ("given", "answer", "is_right"),
    [
        ("105", "100", True),
        ("95", "100", True),
        ("105.1", "100", False),
        ("$1,049", "1000", True),
        ("41 %", "40%", True),
        ("-9.6", "-10", True),
        ("0.01", "0", False),
        ("zero", "0", True),
        ("Brazil", "brazil", True),
        ("Brazil", "Chile", False),
        ("about 40", "40", False),
    ],
)
def test_numbers_may_be_off_by_five_per_cent(given: str, answer: str, is_right: bool) -> None:
    assert relaxed(given, answer) is is_right


@pytest.mark.parametrize(
    ("given", "answer", "expected"),
    [
        ("hello", "hello", 1.0),
        ("Hello ", "hello", 1.0),
        ("hallo", "hello", 0.8),
        ("he", "hello", 0.0),  # distance 3 of 5
        ("ab", "ac", 0.0),  # exactly half
        ("", "", 1.0),
    ],
)
def test_anls_by_hand(given: str, answer: str, expected: float) -> None:
    assert anls(given, answer) == pytest.approx(expected)


def test_anls_takes_the_best_of_all_answers() -> None:
    assert value(task("anls", ["zzz", "hallo"]), "hello") == pytest.approx(0.8)
    assert score(task("anls", "hello"), Reply(text="hallo"), thinking=False, iou=0.6).is_right


@given(st.text(max_size=12), st.text(max_size=12))
def test_anls_is_symmetric_and_bounded(a: str, b: str) -> None:
    assert anls(a, b) == anls(b, a)
    assert anls(a, b) == 0.0 or 0.5 < anls(a, b) <= 1.0
    assert levenshtein(a, b) <= max(len(a), len(b))
    assert abs(len(a) - len(b)) <= levenshtein(a, b)


@given(st.text(max_size=8), st.text(max_size=8), st.text(max_size=8))
def test_levenshtein_is_a_metric(a: str, b: str, c: str) -> None:
    assert (levenshtein(a, b) == 0) == (a == b)
    assert levenshtein(a, c) <= levenshtein(a, b) + levenshtein(b, c)


# -------------------------------------------------------------------------------------- boxes


@pytest.mark.parametrize(
    "text",
    [
        "<|begin_of_box|>[[10,20,30,40]]<|end_of_box|>",
        "Here: <|begin_of_box|>[10, 20, 30, 40]<|end_of_box|>.",
        "[10, 20, 30, 40]",
        "It is at [10,20,30,40], the second one of 5",
        "10 20 30 40",
        "[[10,20,30,40],[1,2,3,4]]",
    ],
)
def test_boxes_are_read_from_what_models_write(text: str) -> None:
    assert parse_box(text) == (10, 20, 30, 40)


@pytest.mark.parametrize("text", ["", "no box", "1 2 3", "1 2 3 4 5", "[1,2,3]"])
def test_where_there_is_no_box_none_is_invented(text: str) -> None:
    assert parse_box(text) is None
    assert value(task("iou", [0, 0, 10, 10]), text) == 0.0


def test_overlap_by_hand() -> None:
    assert overlap((0, 0, 10, 10), (0, 0, 10, 10)) == 1.0
    assert overlap((0, 0, 10, 10), (5, 0, 15, 10)) == pytest.approx(1 / 3)
    assert overlap((0, 0, 10, 10), (10, 0, 20, 10)) == 0.0
    assert overlap((0, 0, 10, 10), (20, 20, 10, 10)) == 0.0


coordinates = st.tuples(*[st.integers(0, 1000)] * 4)


@given(coordinates, coordinates)
def test_overlap_is_symmetric_and_bounded(a: Any, b: Any) -> None:
    assert overlap(a, b) == overlap(b, a)
    assert 0.0 <= overlap(a, b) <= 1.0
    if a[0] < a[2] and a[1] < a[3]:
        assert overlap(a, a) == 1.0


def test_a_box_is_right_from_the_wanted_overlap_on() -> None:
    boxes = task("iou", "[[0,0,100,100]]")
    reply = Reply(text="[0,0,100,55]")
    assert score(boxes, reply, thinking=False, iou=0.6) == (pytest.approx(0.55), False)
    assert score(boxes, reply, thinking=False, iou=0.5) == (pytest.approx(0.55), True)


def test_the_best_of_several_right_boxes_counts() -> None:
    assert value(task("iou", [[0, 0, 1, 1], [0, 0, 10, 10]]), "[0,0,10,10]") == 1.0


@pytest.mark.parametrize(
    ("text", "is_good"),
    [
        ("<|begin_of_box|>[[10,20,30,40]]<|end_of_box|>", True),
        ("It is <|begin_of_box|>[[10, 20, 30, 1000]]<|end_of_box|>", True),
        ("[[10,20,30,40]]", False),
        ("<|begin_of_box|>[[10,20,30]]<|end_of_box|>", False),
        ("<|begin_of_box|>[[10,20,30,1001]]<|end_of_box|>", False),
        ("<|begin_of_box|>[[30,20,10,40]]<|end_of_box|>", False),
        ("<|begin_of_box|>[[10,20,30,40]<|end_of_box|>", False),
        (
            "<|begin_of_box|>[[1,2,3,4]]<|end_of_box|><|begin_of_box|>[[1,2,3,4]]<|end_of_box|>",
            False,
        ),
        ("<|begin_of_box|>[[10,20,30,40]]", False),
    ],
)
def test_a_well_formed_answer_has_one_box_between_marks(text: str, is_good: bool) -> None:
    assert is_one_well_formed_box(text) is is_good
    assert is_in_format(task("iou", [0, 0, 1, 1]), Reply(text=text), thinking=False) is is_good


def test_short_answers_between_marks_are_the_answer() -> None:
    assert boxed("I count <|begin_of_box|>3<|end_of_box|> of them") == "3"
    assert value(task("exact", "3"), "I count <|begin_of_box|>three<|end_of_box|> of them") == 1.0


# ---------------------------------------------------------------------------- choices and calls


@pytest.mark.parametrize(
    "text", ["B", "(b)", "B.", "B. blue", "b) Blue", "blue", "The blue.", "Blue"]
)
def test_a_choice_is_named_by_letter_or_words(text: str) -> None:
    assert chosen(text, ["red", "blue"]) == "blue"
    assert value(task("exact", "blue", choices=["red", "blue"]), text) == 1.0
    assert value(task("exact", "B", choices=["red", "blue"]), text) == 1.0
    assert value(task("exact", "red", choices=["red", "blue"]), text) == 0.0


def test_calls_are_compared_as_json_values_in_any_order() -> None:
    red = {"name": "mark", "arguments": {"colour": "red", "n": 2}}
    blue = {"name": "mark", "arguments": {"colour": "blue", "n": [1, True]}}
    calls = [Call("mark", {"n": [1.0, True], "colour": "blue"}), Call("mark", red["arguments"])]
    assert same_calls([red, blue], calls)
    assert not same_calls([red], calls)
    assert not same_calls([red, red], calls)
    assert not same_calls([red], [Call("mark", {"colour": "red", "n": "2"})])
    assert not same_calls([red], [Call("Mark", red["arguments"])])
    assert not same_calls([red], [])


def test_json_values_know_numbers_from_truth() -> None:
    assert json_equal(1, 1.0)
    assert not json_equal(1, True)
    assert not json_equal(0, False)
    assert not json_equal(None, False)
    assert json_equal({"a": [1, {"b": None}]}, {"a": [1, {"b": None}]})
    assert not json_equal([1, 2], [2, 1])


def test_a_failed_request_is_wrong_whatever_it_holds() -> None:
    for metric, answer in (("exact", "3"), ("iou", [0, 0, 9, 9]), ("format", None)):
        reply = Reply(text="3", error="timeout")
        assert score(task(metric, answer), reply, thinking=False, iou=0.6) == (0.0, False)


# --------------------------------------------------------------------------------------- form


def test_thoughts_have_to_be_there_closed_and_followed_by_an_answer() -> None:
    plain = task("exact", "3")
    good = Reply(text="3", reasoning="one, two, three")
    assert is_in_format(plain, good, thinking=True) is True
    assert is_in_format(plain, Reply(text="3"), thinking=True) is False
    assert is_in_format(plain, Reply(reasoning="one, two"), thinking=True) is False
    assert is_in_format(plain, Reply(text="3"), thinking=False) is None


def test_calls_have_to_be_whole() -> None:
    tools = task("tool_call", {"name": "mark", "arguments": {}}, tools=[TOOL])
    assert is_in_format(tools, Reply(calls=(Call("mark", {}),)), thinking=False) is True
    assert is_in_format(tools, Reply(text="mark it"), thinking=False) is False
    assert is_in_format(tools, Reply(calls=(Call("mark", "{"),)), thinking=False) is False
    broken = Reply(text="<tool_call>mark\n<arg_key>n", calls=(Call("mark", {}),))
    assert is_in_format(tools, broken, thinking=False) is False
    after_result = task("exact", "3", tools=[TOOL])
    assert is_in_format(after_result, Reply(text="3"), thinking=False) is True


def test_the_metric_format_scores_the_form_alone() -> None:
    assert value(task("format", None), "anything") == 1.0
    assert value(task("format", None), "") == 0.0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<think>so</think>\n3", ("3", "so")),
        ("so</think>3", ("3", "so")),
        ("<think>never closed", ("", "never closed")),
        ("3", ("3", "")),
    ],
)
def test_thoughts_are_split_off_where_a_server_did_not(text: str, expected: Any) -> None:
    assert split_thoughts(text, "") == expected
    assert split_thoughts("3", "so") == ("3", "so")


def test_normalising_keeps_inner_words() -> None:
    assert normalised("The Cat, and the dog!") == "cat, and dog"
