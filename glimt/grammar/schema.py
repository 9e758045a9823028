"""JSON schemas as clients send them: bounded before they are compiled, and errors given a place.

What the library cannot enforce it refuses; here is only what it does not tell: where that stands.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import msgspec

from glimt.errors import BadGrammar

MAX_DEPTH = 32  # of schemas within schemas
MAX_NODES = 10_000  # values, of the whole
MAX_PROPERTIES = 512  # of one object
MAX_PATTERN_CHARS = 2048

_OWN_OPTIONS = "x-guidance"  # the library would take its settings from it
_ONE = {
    *("items", "additionalItems", "contains", "not", "if", "then", "else", "additionalProperties"),
    *("propertyNames", "unevaluatedItems", "unevaluatedProperties"),
}
_MANY = {"anyOf", "allOf", "oneOf", "prefixItems", "items"}
_NAMED = {"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"}
_JOINING = frozenset({"allOf", "anyOf", "oneOf", "$ref", "dependentSchemas", "if"})
_UNIMPLEMENTED = re.compile(r"Unimplemented keys: (\[.*\])")
_NAMED_VALUES = {
    "type": re.compile(r"Invalid type: (.*)"),
    "format": re.compile(r"Unknown format: (.*)"),
}
_BAD_REGEX = re.compile(r"at \d+\(\d+\): invalid regex ")  # of a grammar that a pattern is part of
_REGEX_REASON = re.compile(r"^error: (.*)$", re.MULTILINE)


def check_schema(schema: Mapping[str, Any], path: str) -> None:
    """Raises BadGrammar naming the place if the schema is larger or other than we compile."""
    num_nodes = 0
    for place, depth, part in schemas_in(schema, path):
        if depth > MAX_DEPTH:
            _refuse(f"schemas are nested deeper than {MAX_DEPTH} levels", place)
        num_nodes += 1
        for key, value in part.items():
            num_nodes += _num_values(value) if key not in _ONE | _MANY | _NAMED else 1
            _check_keyword(key, value, f"{place}.{key}")
        if num_nodes > MAX_NODES:
            _refuse(f"the schema has more than {MAX_NODES} values", path)


def _check_keyword(key: str, value: Any, place: str) -> None:
    if key == _OWN_OPTIONS:
        _refuse(f"{_OWN_OPTIONS} is not taken from clients", place)
    if key == "$ref" and not (isinstance(value, str) and value.startswith("#")):
        _refuse("a $ref must lead to a place in the schema, and begin with #", place)
    if key == "properties" and isinstance(value, Mapping) and len(value) > MAX_PROPERTIES:
        _refuse(f"an object has more than {MAX_PROPERTIES} properties", place)
    patterns = value if key == "patternProperties" and isinstance(value, Mapping) else ()
    for pattern in (value,) if key == "pattern" else patterns:
        if isinstance(pattern, str) and len(pattern) > MAX_PATTERN_CHARS:
            _refuse(f"a pattern has more than {MAX_PATTERN_CHARS} characters", place)


def schemas_in(
    schema: Mapping[str, Any], path: str
) -> Iterator[tuple[str, int, Mapping[str, Any]]]:
    """(path, depth, schema) of a schema and of all within it, each object once."""
    stack: list[tuple[str, int, Any]] = [(path, 0, schema)]
    while stack:
        place, depth, part = stack.pop()
        if not isinstance(part, Mapping):
            continue
        yield place, depth, part
        for key, value in reversed([*part.items()]):
            if key in _NAMED and isinstance(value, Mapping):
                stack += [
                    (f"{place}.{key}.{name}", depth + 1, each) for name, each in value.items()
                ]
            elif key in _MANY and isinstance(value, list):
                stack += [(f"{place}.{key}[{i}]", depth + 1, each) for i, each in enumerate(value)]
            elif key in _ONE:
                stack.append((f"{place}.{key}", depth + 1, value))


def closed(schema: Any) -> Any:
    """A copy in which objects that do not say so otherwise have no properties but their own."""
    return _closed(schema, lambda part: "properties" in part or part.get("type") == "object")


def without_invented(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """A copy in which objects that list properties, and say nothing of others, have no others.

    To JSON schemas such objects are open, and a model may go on inventing properties until its
    answer is cut; those who generate schemas from classes mean the listed ones. Where an object is
    put together from several schemas, what one of them lists is not all, and nothing is changed.
    """
    if any(_is_one_of_several(part) for _, _, part in schemas_in(schema, "")):
        return schema
    whole: dict[str, Any] = _closed(
        schema, lambda part: bool(part.get("properties")) and not _JOINING & part.keys()
    )
    return whole


def _is_one_of_several(part: Mapping[str, Any]) -> bool:
    joined = _JOINING & part.keys()
    parts = part.get("allOf")
    return (
        len(joined) > 1
        or (bool(joined) and "properties" in part)
        or (isinstance(parts, list) and len(parts) > 1)
    )


def _closed(schema: Any, is_all: Callable[[Mapping[str, Any]], bool]) -> Any:
    """A copy in which objects of which the properties `is_all` may have no others."""
    if not isinstance(schema, Mapping):
        return schema
    copy: dict[str, Any] = {}
    for key, value in schema.items():
        if key in _NAMED and isinstance(value, Mapping):
            copy[key] = {name: _closed(each, is_all) for name, each in value.items()}
        elif key in _MANY and isinstance(value, list):
            copy[key] = [_closed(each, is_all) for each in value]
        else:
            copy[key] = _closed(value, is_all) if key in _ONE else value
    if is_all(copy):
        copy.setdefault("additionalProperties", False)
    return copy


def locate(message: str, schema: Mapping[str, Any], path: str) -> tuple[str, str]:
    """The library's message in terms of the schema, and the path of what it is about."""
    if found := _UNIMPLEMENTED.search(message):
        keys = set(msgspec.json.decode(found[1], type=list[str]))
        place, key = _find(schema, path, lambda name, _: name in keys)
        return f"the keyword {key} is not supported", place
    for keyword, pattern in _NAMED_VALUES.items():
        if found := pattern.search(message):
            value = found[1]
            place, _ = _find(schema, path, _says(keyword, value))
            return f"{message[:1].lower()}{message[1:]}", place
    if _BAD_REGEX.match(message):
        shown = message.partition("\n")[0]
        place, keyword = _find(schema, path, lambda name, value: _is_pattern(name, value, shown))
        reason = _REGEX_REASON.search(message)
        if keyword:
            return f"the pattern cannot be enforced: {reason[1] if reason else 'bad regex'}", place
    if message.startswith("oneOf constraints are not supported"):
        place, _ = _find(schema, path, lambda name, _: name == "oneOf")
        return "alternatives of oneOf that do not exclude each other; use anyOf", place
    return message, path


def _is_pattern(name: str, value: Any, message: str) -> bool:
    return name == "pattern" and isinstance(value, str) and value != "" and value in message


def _says(keyword: str, value: str) -> Callable[[str, Any], bool]:
    def is_it(name: str, found: Any) -> bool:
        return name == keyword and (found == value or (isinstance(found, list) and value in found))

    return is_it


def _find(
    schema: Mapping[str, Any], path: str, is_it: Callable[[str, Any], bool]
) -> tuple[str, str]:
    """(path, keyword) of the first keyword for which `is_it(keyword, value)`."""
    for place, _, part in schemas_in(schema, path):
        for key, value in part.items():
            if is_it(key, value):
                return f"{place}.{key}", key
    return path, ""


def _num_values(value: Any) -> int:
    count = 0
    stack = [value]
    while stack:
        each = stack.pop()
        count += 1
        if isinstance(each, Mapping):
            stack += each.values()
        elif isinstance(each, list):
            stack += each
    return count


def _refuse(message: str, place: str) -> None:
    raise BadGrammar(f"{place}: {message}", param=place)
