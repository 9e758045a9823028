"""What a tool's JSON schema says of its arguments' types, and bare text -> JSON by those types.

GLM writes a string bare and everything else as JSON, so `12` is a number or a string by the schema
alone. Where the schema leaves it open, what is JSON is taken as JSON and the rest as a string; a
value that fits nothing is handed on as it is: judging it is the work of the tool.
"""

import json
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

ANY = frozenset({"null", "boolean", "integer", "number", "string", "array", "object"})

_STRING = frozenset({"string"})
_PYTHON_FORMS = {"None": None, "True": True, "False": False}  # models write them now and then
_NOTHING: Mapping[str, Any] = MappingProxyType({})  # the schema that says nothing
_REFERENCE_HOPS = 32
_MAX_FIXED_ITEMS = 64  # of a tuple; those beyond share the schema of the one after
_LONGEST_WORD = 64  # characters, spaces around it included


class ArgumentTypes:
    """The arguments of one function. Schemas are looked into only where a value needs it."""

    def __init__(self, parameters: Mapping[str, Any] | None) -> None:
        """`parameters`: the JSON schema of the arguments object; None says nothing of them."""
        self._root = parameters or {}
        self._types: dict[int, frozenset[str]] = {}  # by the id of a schema below the root
        self._children: dict[tuple[int, str | int], Any] = {}

    def schema_of(self, key: str) -> Any:
        """The schema of one argument; an empty one where there is none."""
        return self._child(self._root, key)

    def types_of(self, schema: Any) -> frozenset[str]:
        """The types that values of a schema may have, of `ANY`: what `type`, `enum` and `const`
        leave of it, unions (anyOf, oneOf), intersections (allOf) and references included."""
        if not isinstance(schema, Mapping):
            return ANY
        found = self._types.get(id(schema))
        if found is None:
            self._types[id(schema)] = ANY  # a schema that refers to itself says nothing by that
            found = self._types[id(schema)] = self._resolved_types(schema)
        return found

    def to_json(self, text: str, schema: Any) -> str:
        """The JSON of a value that stands as bare text; the last resort is a string."""
        types = self.types_of(schema)
        if types == _STRING:
            return dump(text)
        try:
            return self._by_types(text, schema, types)
        except (ValueError, RecursionError):
            return dump(text)

    def _by_types(self, text: str, schema: Any, types: frozenset[str]) -> str:
        stripped = text.strip()
        if stripped in _PYTHON_FORMS and "string" not in types:
            stripped = dump(_PYTHON_FORMS[stripped])
        value = parse(stripped)
        kind = kind_of(value)
        if kind == "string" and types != ANY and "string" in types:
            return dump(text)  # a string stands bare: the quotes are its own
        fitted = self._fit(value, schema)
        if not _allows(types, fitted) and "string" in types:
            return dump(text)
        # What fits stays as it was written: a float would round its digits.
        return stripped if fitted == value and kind != "string" else dump(fitted)

    def _fit(self, value: Any, schema: Any) -> Any:
        """The value, its parts turned into the types that the schema wants where that is plain."""
        if isinstance(value, dict):
            return {key: self._fit(each, self._child(schema, key)) for key, each in value.items()}
        if isinstance(value, list):
            return [self._fit(each, self._child(schema, i)) for i, each in enumerate(value)]
        types, kind = self.types_of(schema), kind_of(value)
        if _allows(types, value):
            return value
        if kind == "string":
            inner = _parsed_or(value, value)
            return inner if _allows(types, inner) else value
        return dump(value) if "string" in types and kind != "null" else value

    def _resolved_types(self, schema: Mapping[str, Any]) -> frozenset[str]:
        types = ANY
        named = schema.get("type")
        if isinstance(named, str | list):
            types &= frozenset([named] if isinstance(named, str) else filter(_is_text, named))
        if isinstance(schema.get("enum"), list):
            types &= frozenset(map(kind_of, schema["enum"]))
        if "const" in schema:
            types &= {kind_of(schema["const"])}
        for union in ("anyOf", "oneOf"):
            if isinstance(schema.get(union), list):
                types &= frozenset[str]().union(*map(self.types_of, schema[union]))
        for part in _parts(schema, "allOf"):
            types &= self.types_of(part)
        if "$ref" in schema:
            types &= self.types_of(self.referred(schema["$ref"]))
        return _with_integers(types) or ANY  # a contradiction says nothing

    def _child(self, schema: Any, key: str | int) -> Any:
        """The schema of a property or item; an empty one if nothing is said of it."""
        if not isinstance(schema, Mapping):
            return _NOTHING
        key = key if isinstance(key, str) else min(key, _MAX_FIXED_ITEMS)
        place = (id(schema), key)
        if place not in self._children:
            self._children[place] = _NOTHING  # found again on the way: a schema within itself
            found = self._said_of(schema, key)
            union = {"anyOf": found} if found else _NOTHING
            self._children[place] = found[0] if len(found) == 1 else union
        return self._children[place]

    def _said_of(self, schema: Mapping[str, Any], key: str | int) -> list[Any]:
        """All that a schema and the schemas it is made of say of one part."""
        own = _property(schema, key) if isinstance(key, str) else _item(schema, key)
        found = [] if own is None else [own]
        made_of = [part for name in ("allOf", "anyOf", "oneOf") for part in _parts(schema, name)]
        if "$ref" in schema:
            made_of.append(self.referred(schema["$ref"]))
        for part in made_of:
            child = self._child(part, key)
            if child and child not in found:
                found.append(child)
        return found

    def referred(self, reference: Any) -> Any:
        """What a local reference (#/$defs/name) leads to; for any other, an empty schema."""
        for _ in range(_REFERENCE_HOPS):
            target: Any = self._root
            if not isinstance(reference, str) or not reference.startswith("#"):
                return _NOTHING
            for step in filter(None, reference[1:].split("/")):
                name = step.replace("~1", "/").replace("~0", "~")
                target = target.get(name) if isinstance(target, Mapping) else None
            if not isinstance(target, Mapping):
                return _NOTHING
            if set(target) != {"$ref"}:
                return target
            reference = target["$ref"]
        return _NOTHING


def streams_as_text(types: frozenset[str]) -> Callable[[str], bool] | None:
    """For types of which a text can be told to be a string before it is whole: whether it can be.

    Strings may be null or true instead: as long as `nul` may become null it has to wait. None:
    numbers, lists and objects may begin like anything.
    """
    if "string" not in types or types - {"string", "null", "boolean"}:
        return None
    words = (["null"] if "null" in types else []) + (
        ["true", "false"] if "boolean" in types else []
    )
    return lambda text: (
        len(text) > _LONGEST_WORD or not any(word.startswith(text.strip()) for word in words)
    )


def dump(value: Any) -> str:
    """JSON text, non-ASCII characters kept. Raises ValueError for infinities."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    try:
        text.encode()
    except UnicodeEncodeError:  # a lone surrogate, which JSON can escape and UTF-8 cannot hold
        return json.dumps(value, allow_nan=False)
    return text


def escape(text: str) -> str:
    """Text as it stands between the quotes of a JSON string; of pieces as of the whole."""
    return json.dumps(text, ensure_ascii=False)[1:-1]


def parse(text: str) -> Any:
    """A JSON value. Raises ValueError, also for NaN and Infinity, or RecursionError."""
    return json.loads(text, parse_constant=_refuse)


def kind_of(value: Any) -> str:
    """The JSON schema type of a value."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else "boolean"
    if isinstance(value, int | float):
        return "integer" if isinstance(value, int) else "number"
    if isinstance(value, str):
        return "string"
    return "array" if isinstance(value, list | tuple) else "object"


def _allows(types: frozenset[str], value: Any) -> bool:
    if kind_of(value) in types:
        return True
    return "integer" in types and isinstance(value, float) and value.is_integer()  # as 5.0 is


def _with_integers(types: frozenset[str]) -> frozenset[str]:
    return types & ANY | ({"integer"} if "number" in types else set())


def _property(schema: Mapping[str, Any], key: str) -> Any:
    properties = schema.get("properties")
    if isinstance(properties, Mapping) and key in properties:
        return properties[key]
    others = schema.get("additionalProperties")
    return others if isinstance(others, Mapping) else None


def _item(schema: Mapping[str, Any], index: int) -> Any:
    fixed = _parts(schema, "prefixItems")
    if index < len(fixed):
        return fixed[index]
    items = schema.get("items")
    return items if isinstance(items, Mapping) else None


def _parts(schema: Any, name: str) -> list[Any]:
    parts = schema.get(name) if isinstance(schema, Mapping) else None
    return parts if isinstance(parts, list) else []


def _parsed_or(text: str, default: Any) -> Any:
    try:
        return parse(text)
    except (ValueError, RecursionError):
        return default


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _is_text(value: Any) -> bool:
    return isinstance(value, str)
