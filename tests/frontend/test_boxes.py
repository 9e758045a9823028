"""Boxes of a reply: kept, stripped, or told apart."""

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from glimt.frontend.boxes import BoxTokens, coordinates
from glimt.frontend.reasoning import ReasoningTokens
from glimt.frontend.reply import ReplyDelta, ReplyReader, fold
from tests.support.prompts import STYLES, tokenizer, tokenizer_without

PROMPT = "<|user|>\nq<|assistant|>\n"
BOX = "<|begin_of_box|>[[1,2,30,400]]<|end_of_box|>"


def read(reply: str, cuts: Any = None, style: str = "4.5") -> ReplyDelta:
    tokens = tokenizer(style)
    token_ids = tokens.encode_template(reply)
    reader = ReplyReader(
        tokens,
        ReasoningTokens.of(tokens),
        np.array(tokens.encode_template(PROMPT), np.int32),
        boxes=BoxTokens.of(tokens),
        skip_ids=tokens.skip_ids,
    )
    cuts = range(len(token_ids)) if cuts is None else cuts
    edges = [0, *sorted(min(cut, len(token_ids)) for cut in cuts), len(token_ids)]
    pushes = [reader.push(token_ids[begin:end]) for begin, end in itertools.pairwise(edges)]
    return fold([*pushes, reader.finish()])


@pytest.mark.parametrize("style", STYLES)
def test_boxes_of_the_content_are_told_apart_and_their_marks_gone(style: str) -> None:
    reply = read(
        f"<think>at {BOX}?</think>The cat: {BOX}, <|begin_of_box|>5<|end_of_box|>.", None, style
    )
    assert reply.reasoning == "at [[1,2,30,400]]?"
    assert reply.content == "The cat: [[1,2,30,400]], 5."
    assert reply.boxes == ("[[1,2,30,400]]", "5")


@pytest.mark.parametrize(
    ("reply", "boxes"),
    [
        ("a<|end_of_box|>b", ()),
        ("<|begin_of_box|>a", ("a",)),
        ("<|begin_of_box|>a<|begin_of_box|>b<|end_of_box|>", ("a", "b")),
        ("<|begin_of_box|><|end_of_box|>", ("",)),
        ("<|begin_of_box|>😀<|end_of_box|>", ("😀",)),
    ],
)
def test_odd_boxes_are_read_as_far_as_they_go(reply: str, boxes: tuple[str, ...]) -> None:
    assert read(reply).boxes == boxes


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[[1,2,30,400]]", [[1, 2, 30, 400]]),
        ("[[1, 2, 3, 4], [5, 6, 7, 8]]", [[1, 2, 3, 4], [5, 6, 7, 8]]),
        ("(10, 20)", [[10, 20]]),
        ("<12,5>", [[12, 5]]),
        ("{1.5,2}", [[1.5, 2]]),
        ("[-1,+2]", [[-1, 2]]),
        ("5", []),
        ("[5]", []),
        ("[1,2", []),
        ("", []),
    ],
)
def test_coordinates_are_lists_of_numbers_in_brackets(text: str, expected: list[Any]) -> None:
    assert coordinates(text) == expected


PARTS = st.sampled_from(
    ["<|begin_of_box|>", "<|end_of_box|>", "a", "😀", " ", "<think>", "</think>"]
)


@given(st.lists(PARTS, max_size=8).map("".join), st.lists(st.integers(0, 20), max_size=6))
def test_boxes_do_not_depend_on_how_tokens_come(reply: str, cuts: list[int]) -> None:
    assert read(reply, cuts) == read(reply, []) == read(reply)


def test_a_tokenizer_without_the_marks_has_no_boxes() -> None:
    assert BoxTokens.of(tokenizer_without("<|end_of_box|>")) is None
