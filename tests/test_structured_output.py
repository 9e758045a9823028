"""Structured output without a server: what a random model says is what the wish allows."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glimt import LLM, SamplingParams
from glimt.errors import BadGrammar, InvalidRequest
from glimt.tiny.checkpoint import make_tiny_checkpoint
from tests.support.schemas import SCHEMAS, is_instance

USER = [{"role": "user", "content": "Say something"}]
# Far from greedy, as the checkpoint's own defaults are.
ANY: dict[str, Any] = {"temperature": 3.0, "top_k": 0, "top_p": 1.0, "max_tokens": 120}


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    folder = make_tiny_checkpoint(tmp_path_factory.mktemp("tiny"))
    with LLM(folder, dtype="float32", device="cpu", max_num_seqs=16) as llm:
        yield llm


def answers(llm: LLM, wishes: list[dict[str, Any]], **sampling: Any) -> list[tuple[str, str]]:
    """(text, finish_reason) for each wish, all in one batch."""
    params = [
        SamplingParams(**{**ANY, "seed": place, **sampling}, structured_outputs=wish)
        for place, wish in enumerate(wishes)
    ]
    outputs = llm.chat([USER] * len(wishes), params, use_tqdm=False)
    return [(each.outputs[0].text, each.outputs[0].finish_reason) for each in outputs]


@settings(max_examples=12)
@given(schemas=st.lists(SCHEMAS, min_size=4, max_size=12))
def test_answers_under_random_schemas_are_instances_of_them(
    llm: LLM, schemas: list[dict[str, Any]]
) -> None:
    wishes = [
        {"json": schema, "whitespace_pattern": " ?", "disable_additional_properties": True}
        for schema in schemas
    ]
    for (text, reason), schema in zip(answers(llm, wishes), schemas, strict=True):
        if reason == "stop":
            assert is_instance(json.loads(text), schema), (schema, text)
        else:
            assert reason == "length"


@pytest.mark.slow
@pytest.mark.timeout(900)
@settings(max_examples=150)
@given(schemas=st.lists(SCHEMAS, min_size=4, max_size=16))
def test_answers_under_many_random_schemas_are_instances_of_them(
    llm: LLM, schemas: list[dict[str, Any]]
) -> None:
    wishes = [{"json": schema, "disable_any_whitespace": True} for schema in schemas]
    for (text, reason), schema in zip(answers(llm, wishes), schemas, strict=True):
        if reason == "stop":
            assert is_instance(json.loads(text), schema), (schema, text)


def test_most_answers_are_whole(llm: LLM) -> None:
    """So that the tests above test something."""
    schema = {"type": "array", "items": {"enum": ["x", 1]}, "minItems": 2, "maxItems": 4}
    wishes = [{"json": schema, "whitespace_pattern": " ?"}] * 12
    ends = [reason for _, reason in answers(llm, wishes)]
    assert ends.count("stop") >= 10


def test_expressions_choices_and_grammars_are_kept_side_by_side(llm: LLM) -> None:
    wishes: list[dict[str, Any]] = [
        {"regex": r"\d{3}-[a-f]{1,4}"},
        {"choice": ["yes", "no", "vielleicht"]},
        {"grammar": 'start: "(" (start | /[xyz]/) ")"'},
        {"json_object": True},
    ] * 3
    for (text, reason), wish in zip(answers(llm, wishes), wishes, strict=True):
        if reason == "length":
            continue
        if "regex" in wish:
            assert re.fullmatch(wish["regex"], text, re.ASCII)
        elif "choice" in wish:
            assert text in wish["choice"]
        elif "grammar" in wish:
            assert re.fullmatch(r"(\(+)[xyz](\)+)", text)
            assert text.count("(") == text.count(")")
        else:
            assert isinstance(json.loads(text), dict)


def test_a_seed_gives_the_same_answer_alone_and_in_company(llm: LLM) -> None:
    wish = {"json": {"type": "array", "items": {"type": "integer"}, "minItems": 5}}
    [alone] = answers(llm, [wish], max_tokens=40)
    company = answers(llm, [wish, {"choice": ["a", "b"]}, {"regex": "[a-z]*"}], max_tokens=40)
    assert company[0] == alone


def test_a_cut_answer_is_the_beginning_of_a_whole_one(llm: LLM) -> None:
    wish = {"json": {"type": "array", "items": {"const": "word"}, "minItems": 50}}
    [(text, reason)] = answers(llm, [wish | {"disable_any_whitespace": True}], max_tokens=12)
    assert reason == "length"
    assert ('["word"' + ',"word"' * 50).startswith(text)


def test_stop_strings_cut_as_always(llm: LLM) -> None:
    [(text, reason)] = answers(llm, [{"regex": "[ab]{50}c"}], stop=["b"])
    assert reason == "stop"
    assert re.fullmatch("a*", text)


@pytest.mark.parametrize(
    ("wish", "param"),
    [
        ({"json": {"not": {}}}, "structured_outputs.json.not"),
        ({"regex": "("}, "structured_outputs.regex"),
        ({"regex": "a", "choice": ["b"]}, "structured_outputs.choice"),
        ({}, "structured_outputs"),
    ],
)
def test_what_cannot_be_enforced_raises_and_names_it(llm: LLM, wish: Any, param: str) -> None:
    with pytest.raises((BadGrammar, InvalidRequest)) as caught:
        answers(llm, [wish])
    assert caught.value.param == param
