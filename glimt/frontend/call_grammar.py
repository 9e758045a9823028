"""Writes the grammar of tool calls: what an answer has to be that must, or may only, call tools.

    answer := call { call }                          a call is required, or one function is named
    answer := { text | call }                        the model may choose; its calls are held to
                                                     the schemas, or to names alone
    call   := "<tool_call>" name { "<arg_key>" key "</arg_key>" "<arg_value>" value "</arg_value>" }
              "</tool_call>"

The text is Lark, in the dialect of the llguidance library: `<tool_call>` without quotes is the
control token, which no quoted text can be. Arguments come in the order of the schema's properties,
the required ones always. Values stand as GLM writes them, strings bare and all else as JSON.

A function that is `strict` is held to all of its schema, and a keyword that cannot be enforced is
an error of the compiler. Others are held to names, required arguments, types and enumerations. A
call that is held to names alone has arguments in any order, with any values.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from glimt.frontend.argument_types import ArgumentTypes, dump, kind_of

CallForm = Literal["glm45", "glm47"]

_ANYTHING = "TEXT?"  # the value of any string, and of all that may stand bare
_ESCAPED_OR_SLASH = re.compile(r"(\\.)|/", re.DOTALL)
_SLASH = "\\/"
_MAX_DEPTH = 16  # of unions within unions
_NOTES = frozenset({"title", "description", "default", "examples", "deprecated", "$comment"})
_UNIONS = ("anyOf", "oneOf")
_KEY = r"[^\s](?s:.*[^\s])?"
_TEXT = r"TEXT: /(?s:.+)/"


@dataclass(frozen=True, slots=True)
class CallableFunction:
    """A function that may be called, by the schema of its arguments."""

    name: str
    parameters: Mapping[str, Any] | None = None
    strict: bool = False


def required_calls(functions: Sequence[CallableFunction], form: CallForm, *, only_one: bool) -> str:
    """An answer of calls and nothing else: of one call, or of one or more."""
    more = "" if only_one else ' ("\\n"? call)*'
    return f'start: "\\n"? call{more}\n' + _calls(functions, form)


def free_calls(
    functions: Sequence[CallableFunction], form: CallForm, marks: Sequence[str] = ()
) -> str:
    """An answer of text and calls in any order, and of nothing as well.

    `marks`: control tokens that may stand in the text.
    """
    start = " | ".join(("TEXT", "call", *marks))
    return f"start: ({start})*\n" + _calls(functions, form)


def named_calls(
    functions: Sequence[CallableFunction], form: CallForm, marks: Sequence[str] = ()
) -> str:
    """An answer of text and calls in any order, or of nothing, whose calls are whole and of these
    functions, with arguments of these names: what a schema says of values is not looked at, so any
    schema will do. `marks` as those of `free_calls`.
    """
    start = " | ".join(("TEXT", "call", *marks))
    newline = "\n" if form == "glm45" else ""
    gap = f" {_quoted(newline)}?" if newline else ""
    rules = [
        f"start: ({start})*",
        "call: <tool_call> ("
        + " | ".join(f"call_{i}" for i in range(len(functions)))
        + ") </tool_call>",
        f"value: </arg_key>{gap} <arg_value> {_ANYTHING} </arg_value>{gap}",
        f"KEY: {_slashed(_KEY)}",
        _TEXT,
    ]
    for index, function in enumerate(functions):
        rules += _FunctionRules(function, f"{index}", newline).write_names()
    return "\n".join(rules)


def _calls(functions: Sequence[CallableFunction], form: CallForm) -> str:
    newline = "\n" if form == "glm45" else ""
    rules = ["call: " + " | ".join(f"call_{index}" for index in range(len(functions)))]
    for index, function in enumerate(functions):
        rules += _FunctionRules(function, f"{index}", newline).write()
    return "\n".join([*rules, _TEXT])


class _FunctionRules:
    """Writes the rules of one function; their names end in its number."""

    def __init__(self, function: CallableFunction, number: str, newline: str) -> None:
        self._function = function
        self._number = number
        self._newline = newline
        self._root = function.parameters or {}
        self._types = ArgumentTypes(self._root)
        self._rules: list[str] = []

    def write(self) -> list[str]:
        parts = [_quoted(self._function.name + self._newline)]
        properties, required = self._properties(self._root)
        for key in properties:
            rule = self._argument(_quoted(key), self._types.schema_of(key))
            parts.append(rule if key in required else f"{rule}?")
        free = self._free_values(properties)
        if free is not None:
            parts.append(f"{self._argument(self._free_key(properties), free)}*")
        call = f"call_{self._number}: <tool_call> {' '.join(parts)} </tool_call>"
        return [call, *self._rules]

    def write_names(self) -> list[str]:
        """Rules without `<tool_call>` and `</tool_call>`; they share `value` and `KEY`."""
        properties, _ = self._properties(self._root)
        keys = [_quoted(key) for key in properties]
        if self._free_values(properties) is not None:
            keys = ["KEY"]
        name = _quoted(self._function.name) + (
            f" {_quoted(self._newline)}?" if self._newline else ""
        )
        arguments = f" (<arg_key> ({' | '.join(keys)}) value)*" if keys else ""
        return [f"call_{self._number}: {name}{arguments}"]

    def _properties(self, schema: Any, depth: int = 0) -> tuple[dict[str, None], set[str]]:
        """Names of the arguments in order, and of those that are required."""
        names: dict[str, None] = {}
        required: set[str] = set()
        if not isinstance(schema, Mapping) or depth > _MAX_DEPTH:
            return names, required
        if isinstance(schema.get("properties"), Mapping):
            names |= dict.fromkeys(schema["properties"])
        if isinstance(schema.get("required"), list):
            required |= {name for name in schema["required"] if isinstance(name, str)}
        for part in [*_listed(schema, "allOf"), self._types.referred(schema.get("$ref"))]:
            of_part, required_of_part = self._properties(part, depth + 1)
            names |= of_part
            required |= required_of_part
        for part in (part for union in _UNIONS for part in _listed(schema, union)):
            names |= self._properties(part, depth + 1)[0]
        return names, required

    def _free_values(self, properties: Mapping[str, None]) -> Any:
        """The schema of arguments that the schema does not name; None: there are none.

        Without parameters a function takes nothing, as everywhere; with an object of which nothing
        is said, anything.
        """
        others = self._root.get("additionalProperties")
        if isinstance(others, Mapping) or others is True:
            return {} if others is True else others
        is_open = others is None and self._root and "properties" not in self._root
        return {} if is_open and not properties else None

    def _free_key(self, properties: Mapping[str, None]) -> str:
        """Any name but those that have a place of their own; no argument may come twice."""
        names = "|".join(re.escape(name) for name in properties)
        terminal = f"KEY_{self._number}"
        others = f" & ~{_slashed(f'({names})')}" if names else ""
        self._rules.append(f"{terminal}: {_slashed(_KEY)}{others}")
        return terminal

    def _argument(self, key: str, schema: Any) -> str:
        name = f"arg_{self._number}_{len(self._rules)}"
        gap = f" {_quoted(self._newline)}" if self._newline else ""
        value = " | ".join(dict.fromkeys(self._values(schema)))
        self._rules.append(
            f"{name}: <arg_key> {key} </arg_key>{gap} <arg_value> ({value}) </arg_value>{gap}"
        )
        return name

    def _values(self, schema: Any) -> list[str]:
        """The alternatives of a value; where one is any text, that is all."""
        alternatives = list(self._alternatives(schema, 0))
        return [_ANYTHING] if _ANYTHING in alternatives or not alternatives else alternatives

    def _alternatives(self, schema: Any, depth: int) -> Iterator[str]:
        if not isinstance(schema, Mapping) or depth > _MAX_DEPTH:
            yield _ANYTHING
            return
        said = {name for name in schema if name not in _NOTES}
        unions = [name for name in _UNIONS if _listed(schema, name)]
        if "const" in schema or isinstance(schema.get("enum"), list):
            yield from self._literals(schema)
        elif said == {"$ref"}:
            yield from self._alternatives(self._types.referred(schema["$ref"]), depth + 1)
        elif unions and said <= {unions[0], "type"}:
            for part in schema[unions[0]]:
                yield from self._alternatives(part, depth + 1)
        elif isinstance(schema.get("type"), list) and not unions:
            for name in schema["type"]:
                yield from self._alternatives({**schema, "type": name}, depth + 1)
        elif schema.get("type") == "string" and not unions:
            yield self._string(schema)
        elif "string" in self._types.types_of(schema):
            yield _ANYTHING
        else:
            yield self._json(schema)

    def _literals(self, schema: Mapping[str, Any]) -> Iterator[str]:
        types = self._types.types_of(schema)
        for value in [schema["const"]] if "const" in schema else schema["enum"]:
            if kind_of(value) in types:
                yield _quoted(value if isinstance(value, str) else dump(value))

    def _string(self, schema: Mapping[str, Any]) -> str:
        least, most = schema.get("minLength", 0), schema.get("maxLength")
        expressions = []
        if isinstance(schema.get("pattern"), str):
            expressions.append(_searching(schema["pattern"]))
        if least or most is not None:
            expressions.append(f"(?s:.{{{least},{'' if most is None else most}}})")
        if not self._function.strict or not expressions:
            return _ANYTHING
        terminal = f"STRING_{self._number}_{len(self._rules)}"
        self._rules.append(f"{terminal}: {' & '.join(map(_slashed, expressions))}")
        return terminal

    def _json(self, schema: Mapping[str, Any]) -> str:
        """The schema as a document of its own, in which all references begin at the old root."""
        document: dict[str, Any] = dict(schema)
        if "$ref" in json.dumps(schema):
            document = _moved(document) | {"$defs": {"root": _moved(self._root)}}
        document["x-guidance"] = {"lenient": not self._function.strict}
        return f"%json {json.dumps(document)}"


def _moved(schema: Any) -> Any:
    """A copy whose local references lead to the same places below `#/$defs/root`."""
    if isinstance(schema, Mapping):
        copy = {key: _moved(value) for key, value in schema.items()}
        reference = copy.get("$ref")
        if isinstance(reference, str) and reference.startswith("#"):
            copy["$ref"] = f"#/$defs/root{reference[1:]}"
        return copy
    return [_moved(each) for each in schema] if isinstance(schema, list) else schema


def _searching(pattern: str) -> str:
    """An expression for whole texts in which `pattern` is found."""
    begins = pattern.startswith("^")
    ends = pattern.endswith("$") and not pattern.endswith("\\$")
    bare = pattern[begins : len(pattern) - ends]
    return f"{'' if begins else '(?s:.*)'}(?:{bare}){'' if ends else '(?s:.*)'}"


def _quoted(text: str) -> str:
    return json.dumps(text)


def _slashed(expression: str) -> str:
    """An expression as it stands in Lark."""
    one_line = expression.replace("\n", "\\n")
    return f"/{_ESCAPED_OR_SLASH.sub(lambda match: match[1] or _SLASH, one_line)}/"


def _listed(schema: Mapping[str, Any], name: str) -> list[Any]:
    parts = schema.get(name)
    return parts if isinstance(parts, list) else []
