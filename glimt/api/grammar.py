"""What an answer must look like: from the fields that say so to a grammar that compiles.

A request may use one of them (`glimt/api/formats.py`). Whatever cannot be enforced is refused,
naming the field.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from glimt.api.fields import RequestFields
from glimt.api.formats import ResponseFormat, StructuredOutputs
from glimt.errors import BadGrammar, InvalidRequest, Unsupported
from glimt.frontend.grammars import GrammarChecker
from glimt.grammar import source
from glimt.grammar.schema import check_schema, closed, locate, without_invented
from glimt.wire import Grammar

MAX_SCHEMA_CHARS = 256 * 2**10
MAX_CHOICE_CHARS = 256 * 2**10  # of all together


@dataclass(frozen=True, slots=True)
class Wish:
    """A grammar that is written, and not yet proven to compile."""

    param: str  # the field that asked for it
    text: str
    schema: Mapping[str, Any] | None = None  # that it was made of, to name places in


async def grammar_of(request: RequestFields, checker: GrammarChecker) -> Grammar | None:
    """The grammar that the answer must match; None if anything will do.

    Raises InvalidRequest, Unsupported, and BadGrammar naming the place.
    """
    # Reading GBNF is Python's work, and may be a lot of it.
    is_slow = any(text is not None and source.is_gbnf(text) for text in _grammars(request))
    wish = await asyncio.to_thread(wish_of, request) if is_slow else wish_of(request)
    if wish is None:
        return None
    try:
        return await checker.check(wish.text)
    except BadGrammar as error:
        message, path = error.message, wish.param
        if wish.schema is not None:
            message, path = locate(message, wish.schema, wish.param)
        raise BadGrammar(f"{path}: {message}", param=path) from None


def _grammars(request: RequestFields) -> tuple[str | None, str | None]:
    wanted = request.structured_outputs
    return request.guided_grammar, None if wanted is None else wanted.grammar


def wish_of(request: RequestFields) -> Wish | None:
    """What the request asks for. Raises InvalidRequest, Unsupported, BadGrammar."""
    wishes = [
        wish
        for wish in (
            _response_format(request.response_format),
            _structured_outputs(request.structured_outputs),
            *_older(request),
        )
        if wish is not None
    ]
    _check_one([wish.param.partition(".")[0] for wish in wishes])
    return wishes[0] if wishes else None


def _response_format(wanted: ResponseFormat | None) -> Wish | None:
    if wanted is None:
        return None
    if wanted.type == "structural_tag":
        raise Unsupported(
            "structural tags are not supported; use json_schema, or structured_outputs.grammar",
            param="response_format.type",
        )
    if wanted.type == "json_schema":
        path = "response_format.json_schema"
        if wanted.json_schema is None:
            raise InvalidRequest(f"{path} is missing; it holds the schema", param=path)
        return _schema(wanted.json_schema.schema, f"{path}.schema")
    if wanted.json_schema is not None:
        raise InvalidRequest(
            f'response_format.type is "{wanted.type}", but there is a json_schema',
            param="response_format.json_schema",
        )
    return _any_object("response_format") if wanted.type == "json_object" else None


def _structured_outputs(wanted: StructuredOutputs | None) -> Wish | None:
    if wanted is None:
        return None
    if wanted.structural_tag is not None:
        raise Unsupported(
            "structural tags are not supported; use json or grammar",
            param="structured_outputs.structural_tag",
        )
    names = [
        name
        for name in ("json", "regex", "choice", "grammar", "json_object")
        if getattr(wanted, name) not in (None, False if name == "json_object" else None)
    ]
    _check_one([f"structured_outputs.{name}" for name in names])
    if not names:
        raise InvalidRequest(
            "structured_outputs needs one of json, regex, choice, grammar, json_object",
            param="structured_outputs",
        )
    path = f"structured_outputs.{names[0]}"
    if names[0] not in ("json", "json_object"):
        _check_json_options(wanted)
        return _text(path, getattr(wanted, names[0]))
    if names[0] == "json_object":
        return _any_object(path, _whitespace(wanted))
    return _schema(
        wanted.json if wanted.json is not None else True,
        path,
        _whitespace(wanted),
        is_closed=wanted.disable_additional_properties,
    )


def _older(request: RequestFields) -> list[Wish | None]:
    return [
        None if request.guided_json is None else _schema(request.guided_json, "guided_json"),
        _text("guided_regex", request.guided_regex),
        _text("guided_choice", request.guided_choice),
        _text("guided_grammar", request.guided_grammar),
    ]


def _check_one(names: list[str]) -> None:
    if len(names) > 1:
        raise InvalidRequest(
            f"{names[0]} and {names[1]} exclude each other; send one of them", param=names[1]
        )


def _check_json_options(wanted: StructuredOutputs) -> None:
    for name in ("disable_any_whitespace", "disable_additional_properties", "whitespace_pattern"):
        if getattr(wanted, name):
            path = f"structured_outputs.{name}"
            raise InvalidRequest(f"{path} is about JSON, and none is asked for", param=path)


def _whitespace(wanted: StructuredOutputs) -> str:
    if wanted.disable_any_whitespace and wanted.whitespace_pattern is not None:
        _check_one(
            ["structured_outputs.disable_any_whitespace", "structured_outputs.whitespace_pattern"]
        )
    return "" if wanted.disable_any_whitespace else wanted.whitespace_pattern or source.WHITESPACE


def _any_object(path: str, whitespace: str = source.WHITESPACE) -> Wish:
    return Wish(path, source.json_schema_grammar(source.ANY_OBJECT, whitespace=whitespace))


def _schema(
    schema: dict[str, Any] | bool | str,
    path: str,
    whitespace: str = source.WHITESPACE,
    *,
    is_closed: bool = False,
) -> Wish:
    parsed = _parsed(schema, path) if isinstance(schema, str) else schema
    if parsed is False:
        raise BadGrammar(f"{path}: the schema false allows no answer", param=path)
    whole: dict[str, Any] = {} if isinstance(parsed, bool) else parsed
    check_schema(whole, path)
    enforced = closed(whole) if is_closed else without_invented(whole)
    text = source.json_schema_grammar(enforced, whitespace=whitespace)
    if len(text) > MAX_SCHEMA_CHARS:
        raise BadGrammar(
            f"{path}: the schema has more than {MAX_SCHEMA_CHARS} characters", param=path
        )
    return Wish(path, text, whole)


def _parsed(text: str, path: str) -> dict[str, Any] | bool:
    try:
        return msgspec.json.decode(text, type=dict[str, Any] | bool)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        raise BadGrammar(f"{path}: this text is not a JSON schema", param=path) from None


def _text(path: str, wanted: str | list[str] | None) -> Wish | None:
    """A regular expression, a choice or Lark, by the last part of the path."""
    if wanted is None:
        return None
    parts = [wanted] if isinstance(wanted, str) else wanted
    if sum(len(part) for part in parts) > MAX_CHOICE_CHARS:
        raise BadGrammar(f"{path} has more than {MAX_CHOICE_CHARS} characters together", param=path)
    if any("\0" in part for part in parts):
        raise BadGrammar(f"{path} holds a NUL character", param=path)
    kind = path.rpartition(".")[2].removeprefix("guided_")
    if kind == "choice":
        return Wish(path, source.choice_grammar(parts))
    writers: dict[str, Callable[[str], str]] = {
        "regex": source.regex_grammar,
        "grammar": _grammar,
    }
    if kind == "regex" and _ends_escaping(parts[0]):
        raise BadGrammar(f"{path}: the expression ends with a lone backslash", param=path)
    try:
        return Wish(path, writers[kind](parts[0]))
    except BadGrammar as error:
        raise BadGrammar(f"{path}: {error.message}", param=path) from None


def _grammar(text: str) -> str:
    return source.lark_grammar(source.lark_of_gbnf(text) if source.is_gbnf(text) else text)


def _ends_escaping(expression: str) -> bool:
    return (len(expression) - len(expression.rstrip("\\"))) % 2 == 1
