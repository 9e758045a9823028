"""Random JSON schemas, and a validator for them that knows nothing of grammars."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from hypothesis import strategies as st

PATTERNS = ("[a-c]{1,3}", "x?y*z", "(ab|cd)+e", "[0-9]{2}-[0-9]{2}")
_NAMES = ("a", "b", "long name", 'quo"ted', "ä")


def _numbers(kind: str) -> st.SearchStrategy[dict[str, Any]]:
    return st.tuples(st.integers(-200, 200), st.integers(0, 300)).map(
        lambda ends: {"type": kind, "minimum": ends[0], "maximum": ends[0] + ends[1]}
    )


def _strings() -> st.SearchStrategy[dict[str, Any]]:
    lengths = st.tuples(st.integers(0, 3), st.integers(0, 4)).map(
        lambda ends: {"type": "string", "minLength": ends[0], "maxLength": ends[0] + ends[1]}
    )
    patterns = st.sampled_from(PATTERNS).map(lambda p: {"type": "string", "pattern": f"^{p}$"})
    return lengths | patterns


_VALUES = st.sampled_from([None, True, False, 0, -7, 3.5, "", "text", 'q"\\/\n', [], [1, "x"]])

_LEAVES = st.one_of(
    st.sampled_from([{"type": "null"}, {"type": "boolean"}, {"type": ["null", "boolean"]}]),
    _numbers("integer"),
    _numbers("number"),
    _strings(),
    _VALUES.map(lambda value: {"const": value}),
    st.lists(_VALUES, min_size=1, max_size=4).map(lambda values: {"enum": values}),
)


def _within(inner: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    arrays = st.tuples(inner, st.integers(0, 2), st.integers(0, 2)).map(
        lambda parts: {
            "type": "array",
            "items": parts[0],
            "minItems": parts[1],
            "maxItems": parts[1] + parts[2],
        }
    )
    properties = st.dictionaries(st.sampled_from(_NAMES), inner, max_size=3)
    objects = properties.flatmap(
        lambda named: st.sets(st.sampled_from(sorted(named) or ["a"]), max_size=len(named)).map(
            lambda required: {
                "type": "object",
                "properties": named,
                "required": sorted(required & set(named)),
                "additionalProperties": False,
            }
        )
    )
    unions = st.lists(inner, min_size=1, max_size=3).map(lambda each: {"anyOf": each})
    return st.one_of(arrays, objects, objects, unions)


_PLAIN = st.recursive(_LEAVES, _within, max_leaves=6)
SCHEMAS = st.one_of(
    _PLAIN,
    _PLAIN.map(lambda one: {"$ref": "#/$defs/d", "$defs": {"d": one}}),
    _PLAIN.map(lambda one: {"type": "object", "properties": {"v": one}, "required": ["v"]}),
)


def is_instance(value: Any, schema: Mapping[str, Any]) -> bool:
    """Whether a value is one of a schema of the kinds above."""
    if "$ref" in schema:
        return is_instance(value, schema["$defs"]["d"])
    if "enum" in schema:
        return any(_same(value, each) for each in schema["enum"])
    if "const" in schema:
        return _same(value, schema["const"])
    if "anyOf" in schema:
        return any(is_instance(value, each) for each in schema["anyOf"])
    kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    return any(_is_of(kind, value, schema) for kind in kinds)


def _is_of(kind: str, value: Any, schema: Mapping[str, Any]) -> bool:
    if kind == "null":
        return value is None
    if kind == "boolean":
        return isinstance(value, bool)
    if kind in ("integer", "number"):
        types = int if kind == "integer" else int | float
        is_number = isinstance(value, types) and not isinstance(value, bool)
        return is_number and bool(schema["minimum"] <= value <= schema["maximum"])
    if kind == "string":
        if not isinstance(value, str):
            return False
        if "pattern" in schema:
            return re.search(schema["pattern"], value) is not None
        return bool(schema["minLength"] <= len(value) <= schema["maxLength"])
    if kind == "array":
        is_list = isinstance(value, list) and schema["minItems"] <= len(value) <= schema["maxItems"]
        return is_list and all(is_instance(each, schema["items"]) for each in value)
    named = schema["properties"]
    return (
        isinstance(value, dict)
        and set(schema["required"]) <= set(value)
        and (set(value) <= set(named) or schema.get("additionalProperties", True) is True)
        and all(is_instance(each, named[name]) for name, each in value.items() if name in named)
    )


def _same(value: Any, other: Any) -> bool:
    """Equal as JSON: 1 is 1.0, and true is not 1."""
    if isinstance(value, bool) or isinstance(other, bool):
        return value is other
    if isinstance(value, list) and isinstance(other, list):
        pairs = zip(value, other, strict=False)
        return len(value) == len(other) and all(_same(a, b) for a, b in pairs)
    return bool(value == other)
