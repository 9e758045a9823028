"""Grammars of tool calls: what they let a model write, which the parser then reads back."""

import functools
import itertools
import json
import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llguidance import LLMatcher, LLTokenizer

from glimt.frontend.argument_types import ArgumentTypes
from glimt.frontend.call_grammar import (
    CallableFunction,
    free_calls,
    named_calls,
    required_calls,
)
from glimt.frontend.reply import ReplyReader, fold
from glimt.frontend.tool_calls import CallRules, CallTokens
from tests.support.prompts import tokenizer, whole_tokenizer

WEATHER = CallableFunction(
    "get_weather",
    {
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "days": {"type": "integer"},
            "unit": {"enum": ["C", "F"]},
        },
        "required": ["city"],
    },
)
CLOCK = CallableFunction("clock")


@functools.cache
def vocabulary() -> LLTokenizer:
    file = json.loads(whole_tokenizer().to_str())
    for token in file["added_tokens"]:
        token["special"] = True
    return LLTokenizer(json.dumps(file), n_vocab=640, eos_token=end())


def end() -> int:
    return tokenizer().control_tokens["<|endoftext|>"]


def matcher(grammar: str) -> LLMatcher:
    return LLMatcher(vocabulary(), LLMatcher.grammar_from_lark(grammar), log_level=0)


def allows(grammar: str, text: str) -> bool:
    """Whether the grammar derives exactly this answer."""
    found = matcher(grammar)
    assert not found.is_error(), found.get_error()
    token_ids = tokenizer().encode_template(text)
    return found.try_consume_tokens(token_ids) == len(token_ids) and found.is_accepting()


def call(name: str, *values: tuple[str, str], newline: str = "\n") -> str:
    pairs = "".join(
        f"<arg_key>{key}</arg_key>{newline}<arg_value>{value}</arg_value>{newline}"
        for key, value in values
    )
    return f"<tool_call>{name}{newline}{pairs}</tool_call>"


@pytest.mark.parametrize(
    ("answer", "is_allowed"),
    [
        (call("clock"), True),
        (call("clock") + "\n" + call("clock") + call("get_weather", ("city", "Oslo")), True),
        ("\n" + call("get_weather", ("city", "a\n<b> </tool_call"), ("days", "3")), True),
        (call("get_weather", ("city", ""), ("unit", "C")), True),
        ("", False),
        ("Hm." + call("clock"), False),
        (call("clock") + "Hm.", False),
        (call("clocks"), False),
        (call("clock", ("city", "Oslo")), False),
        (call("get_weather"), False),
        (call("get_weather", ("days", "3"), ("city", "Oslo")), False),
        (call("get_weather", ("city", "Oslo"), ("days", "3.5")), False),
        (call("get_weather", ("city", "Oslo"), ("days", "many")), False),
        (call("get_weather", ("city", "Oslo"), ("unit", "K")), False),
        (call("get_weather", ("city", "Oslo"), ("town", "Oslo")), False),
        (call("get_weather", ("city", "<think>")), False),
        (call("clock", newline=""), False),
        ("<tool_call>clock\n", False),
    ],
)
def test_required_calls_are_calls_of_what_is_declared_and_nothing_else(
    answer: str, is_allowed: bool
) -> None:
    grammar = required_calls([WEATHER, CLOCK], "glm45", only_one=False)
    assert allows(grammar, answer) == is_allowed


def test_one_call_may_be_all() -> None:
    grammar = required_calls([WEATHER, CLOCK], "glm45", only_one=True)
    assert allows(grammar, call("clock"))
    assert not allows(grammar, call("clock") + call("clock"))
    found = matcher(grammar)
    found.try_consume_tokens(tokenizer().encode_template(call("clock")))
    assert found.is_stopped(), "there is nothing to decide any more"


def test_the_newer_form_has_no_line_ends() -> None:
    grammar = required_calls([WEATHER], "glm47", only_one=False)
    assert allows(grammar, call("get_weather", ("city", "x"), ("days", "1"), newline=""))
    assert not allows(grammar, call("get_weather", ("city", "x")))


OPEN = CallableFunction("open", {"type": "object"})
LABELLED = CallableFunction(
    "labelled", {"properties": {"a": {"type": "integer"}}, "additionalProperties": True}
)


@pytest.mark.parametrize(
    ("answer", "is_allowed"),
    [
        ("", True),
        ("I look.\n" + call("clock") + "\nSo." + call("get_weather"), True),
        (call("get_weather", ("days", "many"), ("city", "Oslo"), ("unit", "K")), True),
        (call("get_weather", ("city", "Oslo"), newline=""), True),
        (call("open", ("any thing", "{")), True),
        (call("labelled", ("a", "x"), ("b", "")), True),
        (call("clocks"), False),
        (call("get_weather", ("town", "Oslo")), False),
        (call("clock", ("city", "Oslo")), False),
        ("<tool_call>get_weather\n", False),
        ("<tool_call>clock\n<tool_call>clock\n</tool_call>", False),
        ("Hm.</tool_call>", False),
    ],
)
def test_calls_held_to_names_have_any_values_in_any_order(answer: str, is_allowed: bool) -> None:
    grammar = named_calls([WEATHER, CLOCK, OPEN, LABELLED], "glm45")
    assert allows(grammar, answer) == is_allowed


def test_as_many_names_as_a_request_may_have_are_a_grammar() -> None:
    many = {f"argument_{i}": {"type": "string"} for i in range(80)}
    functions = [CallableFunction(f"function_{i}", {"properties": many}) for i in range(128)]
    grammar = named_calls(functions, "glm45")
    assert allows(grammar, call("function_127", ("argument_79", "x")))
    assert not allows(grammar, call("function_127", ("argument_80", "x")))


def test_free_calls_may_stand_in_text() -> None:
    grammar = free_calls([WEATHER, CLOCK], "glm45", ["<|begin_of_box|>", "<|end_of_box|>"])
    for answer in ("", "Hm.", f"Hm.\n{call('clock')}\nSo:<|begin_of_box|>5<|end_of_box|>"):
        assert allows(grammar, answer)
    assert not allows(grammar, "Hm." + call("clocks"))
    assert not allows(grammar, "Hm.<think>")


# (schema, may stand, may not stand)
VALUES: list[tuple[Any, list[str], list[str]]] = [
    ({}, ["", "1", "x"], []),
    ({"type": "string"}, ["", "1", "x\ny"], []),
    ({"type": "boolean"}, ["true"], ["True", "", "1"]),
    ({"type": ["string", "null"]}, ["null", "x"], []),
    ({"type": ["integer", "null"]}, ["null", "-5"], ["x", "5.5"]),
    ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, ["null", "5"], ["x"]),
    ({"anyOf": [{"type": "integer"}, {"enum": ["all"]}]}, ["all", "5"], ["x", "al"]),
    ({"const": "x y"}, ["x y"], ["x"]),
    ({"enum": ["a", 1, None, True, "<think>"]}, ["a", "1", "null", "true"], ["b", "<think>"]),
    ({"type": "string", "enum": ["a", 1]}, ["a"], ["1"]),
    ({"type": "array", "items": {"type": "integer"}}, ["[]", "[1, 2]", "[1,2]"], ["1, 2", "[a]"]),
    (
        {"type": "object", "properties": {"w": {"type": "integer"}}, "required": ["w"]},
        ['{"w": 1}'],
        ["{}", '{"w": "1"}'],
    ),
    ({"$ref": "#/$defs/size"}, ["1"], ["x"]),
    ({"$ref": "#/$defs/tree"}, ['{"left": {"left": null}}', "null"], ["x", '{"left": 1}']),
    ({"type": "array", "items": {"$ref": "#/$defs/size"}}, ["[1]"], ["[true]"]),
    ({"$ref": "#/properties/other"}, ["true"], ["x"]),
    ({"type": "number", "title": "x", "x-unknown": 5}, ["1.5"], ["x"]),
]


@pytest.mark.parametrize(("schema", "good", "bad"), VALUES, ids=[str(v[0])[:50] for v in VALUES])
def test_values_are_held_to_their_schema(schema: Any, good: list[str], bad: list[str]) -> None:
    parameters = {
        "type": "object",
        "properties": {"v": schema, "other": {"type": "boolean"}},
        "required": ["v"],
        "$defs": {
            "size": {"type": "integer"},
            "tree": {
                "anyOf": [
                    {"type": "null"},
                    {
                        "type": "object",
                        "properties": {"left": {"$ref": "#/$defs/tree"}},
                        "additionalProperties": False,
                    },
                ]
            },
        },
    }
    grammar = required_calls([CallableFunction("f", parameters)], "glm45", only_one=True)
    for value in good:
        assert allows(grammar, call("f", ("v", value))), value
    for value in bad:
        assert not allows(grammar, call("f", ("v", value))), value


def test_a_strict_function_is_held_to_patterns_and_lengths() -> None:
    schema = {
        "properties": {
            "a": {"type": "string", "pattern": "^[a-z]+/$"},
            "b": {"type": "string", "pattern": "\\d"},
            "c": {"type": "string", "minLength": 2, "maxLength": 3},
            "d": {"type": "string", "maxLength": 2},
        }
    }
    for strict in (True, False):
        function = CallableFunction("f", schema, strict)
        grammar = required_calls([function], "glm45", only_one=True)
        for key, good, bad in (("a", "x/", "X/"), ("b", "a1b", "ab"), ("c", "ab", "a")):
            assert allows(grammar, call("f", (key, good)))
            assert allows(grammar, call("f", (key, bad))) == (not strict)
        assert allows(grammar, call("f", ("d", "")))


def test_what_cannot_be_enforced_is_an_error_for_strict_functions_only() -> None:
    schema = {"properties": {"a": {"type": "integer", "not": {"const": 5}}}}
    loose, strict = (
        matcher(required_calls([CallableFunction("f", schema, s)], "glm45", only_one=True))
        for s in (False, True)
    )
    assert not loose.is_error()
    assert "not" in strict.get_error()


@pytest.mark.parametrize(
    ("parameters", "arguments", "is_allowed"),
    [
        (None, [("a", "1")], False),
        ({}, [("a", "1")], False),
        ({"type": "object"}, [("a", "1"), ("b c", "x")], True),
        ({"type": "object", "properties": {}}, [("a", "1")], False),
        ({"properties": {"n": {}}, "additionalProperties": True}, [("n", "1"), ("a", "x")], True),
        ({"properties": {"n": {}}, "additionalProperties": True}, [("n", "1"), ("n", "x")], False),
        ({"additionalProperties": {"type": "integer"}}, [("a", "1")], True),
        ({"additionalProperties": {"type": "integer"}}, [("a", "x")], False),
        ({"allOf": [{"properties": {"n": {}}, "required": ["n"]}]}, [("n", "1")], True),
        ({"allOf": [{"properties": {"n": {}}, "required": ["n"]}]}, [], False),
        ({"anyOf": [{"properties": {"n": {}}}, {"properties": {"m": {}}}]}, [("m", "1")], True),
    ],
)  # fmt: skip
def test_arguments_that_the_schema_does_not_name(
    parameters: Any, arguments: list[tuple[str, str]], is_allowed: bool
) -> None:
    grammar = required_calls([CallableFunction("f", parameters)], "glm45", only_one=True)
    assert allows(grammar, call("f", *arguments)) == is_allowed


SCHEMAS = st.recursive(
    st.sampled_from(
        [
            {"type": "string"},
            {"type": "integer"},
            {"type": "boolean"},
            {"type": ["number", "null"]},
            {"enum": ["a", "b c", 3, None]},
            {"const": "x"},
        ]
    ),
    lambda inner: st.one_of(
        st.builds(lambda part: {"type": "array", "items": part, "maxItems": 2}, inner),
        st.builds(lambda *parts: {"anyOf": list(parts)}, inner, inner),
        st.builds(
            lambda part: {
                "type": "object",
                "properties": {"k": part},
                "required": ["k"],
                "additionalProperties": False,
            },
            inner,
        ),
    ),
    max_leaves=3,
)


@given(st.lists(SCHEMAS, min_size=1, max_size=3), st.integers(0, 2**32))
@settings(max_examples=40, deadline=None)
def test_whatever_a_model_draws_within_the_grammar_is_read_as_a_call_of_the_schemas_types(
    schemas: list[Any], seed: int
) -> None:
    """A model that draws any of the tokens that may come, until it may end."""
    properties = {f"p{index}": schema for index, schema in enumerate(schemas)}
    parameters = {"type": "object", "properties": properties, "required": list(properties)}
    found = matcher(required_calls([CallableFunction("f", parameters)], "glm45", only_one=True))
    assert not found.is_error(), found.get_error()
    choose = random.Random(seed)
    token_ids: list[int] = []
    while not found.is_stopped() and len(token_ids) < 100:
        mask = np.frombuffer(found.compute_bitmask(), np.uint8)
        allowed = np.flatnonzero(np.unpackbits(mask, bitorder="little")[:640]).tolist()
        closing = [token_id for token_id in allowed if token_id >= end()]
        token_ids.append(choose.choice(closing if closing and len(token_ids) > 40 else allowed))
        assert found.consume_token(token_ids[-1])
    tokens = CallTokens.of(tokenizer())
    assert tokens is not None
    numbers = itertools.count()
    types = ArgumentTypes(parameters)
    rules = CallRules(tokens=tokens, tools={"f": types}, new_id=lambda: f"call_{next(numbers)}")
    prompt = np.array(tokenizer().encode_template("<|assistant|>\n<think></think>\n"), np.int32)
    reader = ReplyReader(tokenizer(), None, prompt, calls=rules)
    is_cut = not found.is_accepting()
    reply = fold([reader.push(token_ids), reader.finish(is_cut=is_cut)])
    if is_cut:
        return
    assert (reply.content, len(reply.calls)) == ("", 1)
    arguments = json.loads(reply.calls[0].arguments)
    assert list(arguments) == list(properties)
    for key, value in arguments.items():
        assert fits(value, properties[key])


def fits(value: Any, schema: Any) -> bool:
    """An independent, small judge of the schemas above."""
    if "anyOf" in schema:
        return any(fits(value, part) for part in schema["anyOf"])
    if "enum" in schema:
        return value in schema["enum"]
    if "const" in schema:
        return bool(value == schema["const"])
    names = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    kinds: dict[str, Any] = {
        "string": str, "integer": int, "number": (int, float), "boolean": bool, "null": type(None),
        "array": list, "object": dict,
    }  # fmt: skip
    if not any(isinstance(value, kinds[name]) for name in names):
        return False
    if isinstance(value, bool) and "boolean" not in names:
        return False
    if isinstance(value, list):
        return all(fits(each, schema["items"]) for each in value)
    if isinstance(value, dict):
        return list(value) == ["k"] and fits(value["k"], schema["properties"]["k"])
    return True
