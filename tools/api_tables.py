"""The tables of docs/api.md: every field of every request, made from the types that validate it."""

import types
import typing
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec
from doc_tables import shown, table

from glimt.api import completions_schema, responses_schema, schema
from glimt.api.anthropic_schema import CountRequest, MessagesRequest
from glimt.api.completions_schema import CompletionRequest
from glimt.api.fields import NO_EFFECT, Label, NoEffect, NotDone
from glimt.api.responses_schema import ResponsesRequest
from glimt.api.schema import ChatRequest
from glimt.api.tokens import DetokenizeRequest, TokenizeRequest

REQUESTS = {
    "chat": ChatRequest,
    "completions": CompletionRequest,
    "responses": ResponsesRequest,
    "messages": MessagesRequest,
    "tokenize": TokenizeRequest,
    "detokenize": DetokenizeRequest,
}
# Values, beside null, that a field lets through although what it is for is not done.
HARMLESS: dict[type, dict[str, tuple[Any, ...]]] = {
    ChatRequest: schema._HARMLESS,
    CompletionRequest: completions_schema.HARMLESS,
    ResponsesRequest: {
        name: () if value is None else (value,) for name, value, _ in responses_schema._HARMLESS
    },
}


IGNORED = "accepted, without effect, and said in `X-Glimt-Ignored-Fields`"
NEEDLESS = "accepted; there is nothing to do for it"


def request(kind: type[msgspec.Struct]) -> str:
    """All fields of one request: what is done first, then what has no effect, then the refused."""
    done, no_effect, labels, refused = [], [], [], []
    for field, hint in fields_of(kind):
        name = f"`{field.name}`"
        if hint == NotDone:
            refused.append((name, _let_through(kind, field.name)))
        elif hint == NoEffect:
            no_effect.append(name)
        elif hint == Label:
            labels.append(name)
        else:
            done.append((name, _default(field), _kind(hint)))
    parts = [table(("field", "default", "value"), done)]
    if no_effect:
        parts.append(f"{IGNORED[0].upper()}{IGNORED[1:]}: {', '.join(no_effect)}.")
    if labels:
        parts.append(f"{NEEDLESS[0].upper()}{NEEDLESS[1:]}: {', '.join(labels)}.")
    if refused:
        parts.append("Refused with `unsupported`, but for values that ask for nothing:")
        parts.append(table(("field", "let through"), refused))
    return "\n\n".join(parts)


def objects() -> str:
    """Every object within requests, by name."""
    found: dict[str, type[msgspec.Struct]] = {}
    for kind in (*REQUESTS.values(), CountRequest):
        for _, hint in fields_of(kind):
            _collect(hint, found)
    parts = []
    for name, kind in sorted(found.items()):
        text = " ".join((kind.__doc__ or "").split())
        tag = kind.__struct_config__.tag
        told = f"`type`: `{tag}`. {text}" if isinstance(tag, str) else text
        rows = [
            (f"`{field.name}`", _default(field), _kind(hint)) for field, hint in fields_of(kind)
        ]
        parts.append(f"### {name}\n\n{told}")
        if rows:
            parts.append(table(("field", "default", "value"), rows))
    return "\n\n".join(parts)


def fields_of(kind: type[msgspec.Struct]) -> Iterator[tuple[Any, Any]]:
    """(field, its type), the required ones first."""
    hints = typing.get_type_hints(kind, include_extras=True)
    found = msgspec.structs.fields(kind)
    for field in sorted(found, key=lambda field: not field.required):
        yield field, hints[field.name]


def _collect(hint: Any, found: dict[str, type[msgspec.Struct]]) -> None:
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
        if found.get(hint.__name__) is not hint:
            if hint.__name__ in found:
                raise ValueError(f"two objects are called {hint.__name__}")
            found[hint.__name__] = hint
            for _, inner in fields_of(hint):
                _collect(inner, found)
        return
    for inner in typing.get_args(hint):
        _collect(inner, found)


def _default(field: Any) -> str:
    if field.required:
        return "required"
    return "–" if field.default is msgspec.NODEFAULT else shown(field.default)


def _let_through(kind: type, name: str) -> str:
    values = (None, *HARMLESS.get(kind, {}).get(name, ()))
    return ", ".join(f"`{msgspec.json.encode(value).decode()}`" for value in values)


def _kind(hint: Any) -> str:
    """A type in a reader's words, with its bounds; objects lead to their tables."""
    for marker, text in ((NoEffect, IGNORED), (Label, NEEDLESS), (NotDone, "refused")):
        if hint == marker:
            return text
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
        return f"[{hint.__name__}](#{hint.__name__.lower()})"
    plain = {bool: "true or false", int: "integer", float: "number", str: "text", Any: "anything"}
    if hint in plain:
        return plain[hint]
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        inner = _kind(arguments[0])
        for meta in hint.__metadata__:
            if meta == NO_EFFECT:
                inner = f"{inner}; {IGNORED}"
            elif isinstance(meta, msgspec.Meta):
                inner = _bounded(inner, meta)
        return inner
    if origin is typing.Literal:
        return " · ".join(f"`{each}`" for each in arguments)
    if origin in (typing.Union, types.UnionType):
        kinds = [_kind(each) for each in arguments if each is not type(None)]
        return " or ".join(dict.fromkeys(kinds))
    if origin is list:
        return f"list of {_kind(arguments[0])}"
    return "object"


def _bounded(kind: str, meta: msgspec.Meta) -> str:
    bounds = ((">", meta.gt), ("≥", meta.ge), ("<", meta.lt), ("≤", meta.le))
    texts = [
        f"{sign} {value:,}"
        for sign, value in bounds
        if value is not None and (isinstance(value, float) or abs(value) < 2**31 - 1)
    ]
    if meta.max_length is not None:
        unit = " characters" if kind == "text" else ""
        texts.append(f"(at most {meta.max_length:,}{unit})")
    return " ".join((kind, ", ".join(texts))).strip()


def _make(kind: type[msgspec.Struct]) -> Any:
    return lambda: request(kind)


def _tables() -> Iterable[tuple[str, Any]]:
    yield from ((name, _make(kind)) for name, kind in REQUESTS.items())
    yield "objects", objects


TABLES = dict(_tables())
