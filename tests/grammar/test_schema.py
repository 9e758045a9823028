"""Schemas: bounds before they are compiled, and errors that name the place."""

from __future__ import annotations

import json
from typing import Any

import pytest

from glimt.errors import BadGrammar
from glimt.grammar.schema import (
    MAX_DEPTH,
    MAX_NODES,
    MAX_PATTERN_CHARS,
    MAX_PROPERTIES,
    check_schema,
    closed,
    locate,
    schemas_in,
    without_invented,
)
from glimt.grammar.source import json_schema_grammar
from tests.support.grammars import tiny_compiler

COMPILER = tiny_compiler()


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(depth):
        schema = {"items": schema}
    return schema


@pytest.mark.parametrize(
    ("schema", "place"),
    [
        (nested(MAX_DEPTH + 1), "s" + ".items" * (MAX_DEPTH + 1)),
        ({"enum": [*range(MAX_NODES)]}, "s"),
        ({"anyOf": [{"type": "null"}] * MAX_NODES}, "s"),
        ({"properties": {f"p{i}": {} for i in range(MAX_PROPERTIES + 1)}}, "s.properties"),
        ({"items": {"pattern": "a" * (MAX_PATTERN_CHARS + 1)}}, "s.items.pattern"),
        ({"patternProperties": {"a" * (MAX_PATTERN_CHARS + 1): {}}}, "s.patternProperties"),
        ({"properties": {"a": {"$ref": "http://127.0.0.1/"}}}, "s.properties.a.$ref"),
        ({"$ref": "file:///etc/passwd"}, "s.$ref"),
        ({"$ref": 5}, "s.$ref"),
        ({"$defs": {"a": {"x-guidance": {"lenient": True}}}}, "s.$defs.a.x-guidance"),
    ],
)
def test_a_schema_beyond_the_bounds_is_refused_at_its_place(schema: Any, place: str) -> None:
    with pytest.raises(BadGrammar) as caught:
        check_schema(schema, "s")
    assert caught.value.param == place
    assert caught.value.message.startswith(f"{place}: ")


def test_a_schema_within_the_bounds_compiles() -> None:
    for schema in (
        nested(MAX_DEPTH),
        {"enum": [f"v{i}" for i in range(MAX_NODES - 10)]},
        {"type": "object", "properties": {f"p{i}": {} for i in range(MAX_PROPERTIES)}},
        {"pattern": "a" * MAX_PATTERN_CHARS, "type": "string"},
        {"$ref": "#/$defs/n", "$defs": {"n": {"type": "array", "items": {"$ref": "#/$defs/n"}}}},
    ):
        check_schema(schema, "s")
        COMPILER.start(json_schema_grammar(schema)).result()


# What the library says of a schema it does not compile, given its place.
@pytest.mark.parametrize(
    ("schema", "place", "message"),
    [
        ({"uniqueItems": True}, "s.uniqueItems", "uniqueItems is not supported"),
        ({"properties": {"a": {"items": {"not": {}}}}}, "s.properties.a.items.not", "not"),
        ({"allOf": [{}, {"if": {}, "then": {}}]}, "s.allOf[1].if", "if"),
        ({"properties": {"not": {"contains": {}}}}, "s.properties.not.contains", "contains"),
        ({"items": {"type": "objekt"}}, "s.items.type", "objekt"),
        ({"items": {"type": ["null", "objekt"]}}, "s.items.type", "objekt"),
        ({"items": {"type": "string", "format": "x"}}, "s.items.format", "unknown format: x"),
        ({"oneOf": [{"minimum": 1}, {"maximum": 5}]}, "s.oneOf", "anyOf"),
        ({"type": "string", "minLength": 2, "maxLength": 1}, "s", "minLength"),
        ({"$ref": "#/$defs/none"}, "s", "/$defs/none"),
    ],
)
def test_an_unsupported_keyword_is_named_with_its_path(
    schema: dict[str, Any], place: str, message: str
) -> None:
    check_schema(schema, "s")
    with pytest.raises(BadGrammar) as caught:
        COMPILER.start(json_schema_grammar(schema)).result()
    text, path = locate(caught.value.message, schema, "s")
    assert path == place
    assert message in text


def test_only_schemas_are_searched_for_keywords() -> None:
    """Values and names that look like keywords are none."""
    schema = {"enum": [{"not": 1}], "properties": {"if": {"const": {"items": {}}}}, "default": {}}
    assert [place for place, _, _ in schemas_in(schema, "s")] == ["s", "s.properties.if"]


def test_closed_objects_have_no_properties_but_their_own() -> None:
    schema = {
        "properties": {"a": {"type": "object"}, "b": {"additionalProperties": {"type": "object"}}},
        "anyOf": [{"properties": {}}, {"type": "string"}, True],
        "enum": [{"properties": {}}],
    }
    assert closed(schema) == {
        "properties": {
            "a": {"type": "object", "additionalProperties": False},
            "b": {"additionalProperties": {"type": "object", "additionalProperties": False}},
        },
        "anyOf": [{"properties": {}, "additionalProperties": False}, {"type": "string"}, True],
        "enum": [{"properties": {}}],
        "additionalProperties": False,
    }


PERSON = {"type": "object", "properties": {"name": {"type": "string"}}}


@pytest.mark.parametrize(
    ("schema", "is_closed"),
    [
        (PERSON, True),
        ({"properties": {"who": {"$ref": "#/$defs/P"}}, "$defs": {"P": PERSON}}, True),
        ({"anyOf": [PERSON, {"type": "null"}]}, True),
        ({"allOf": [PERSON]}, True),
        ({"type": "array", "items": PERSON}, True),
        ({**PERSON, "additionalProperties": True}, False),
        ({"type": "object"}, False),
        ({"type": "object", "properties": {}}, False),
        ({"allOf": [PERSON, {"properties": {"age": {"type": "integer"}}}]}, False),
        ({**PERSON, "anyOf": [{"required": ["name"]}]}, False),
        (
            {"properties": {"x": {"$ref": "#/$defs/P", "properties": {}}}, "$defs": {"P": PERSON}},
            False,
        ),
    ],
)
def test_an_object_that_lists_properties_has_no_invented_ones(
    schema: dict[str, Any], is_closed: bool
) -> None:
    before = json.dumps(schema)
    made = without_invented(schema)
    assert ('"additionalProperties": false' in json.dumps(made)) == is_closed
    assert json.dumps(schema) == before
    if not is_closed:
        assert made == schema
