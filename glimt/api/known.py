"""KnownFields: the keys that a type of request knows, at every depth; all others are reported, and
so are those that are known and ask for something that is not done.

The decoder of msgspec drops what it does not know, and refuses it only type by type. Here the
types say once what is known where, and a request's plain JSON is held against that.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import msgspec
from msgspec import inspect


@dataclass(slots=True)
class _Shape:
    """What may stand in one place. Without fields and items, anything is known."""

    fields: "dict[str, _Shape] | None" = None
    tag_field: str | None = None
    by_tag: "dict[Any, _Shape]" = field(default_factory=dict)
    tags: tuple[Any, ...] = ()  # those that are not known only to be refused
    items: "_Shape | None" = None
    values: "_Shape | None" = None
    has_effect: bool = True
    choices: tuple[Any, ...] = ()  # values that are allowed, where these are a list


_ANY = _Shape()
_STEP = re.compile(r"([^.\[\]]+)|\[(\d+|\.\.\.)\]")  # of a path: a name, or a place in a list
# Of a field without effect, these ask for nothing.
_NOTHING: tuple[Any, ...] = (None, False, "auto", "default", [], {})


class Ignored(NamedTuple):
    """Paths of the keys of a request that do nothing, without indices, sorted."""

    unknown: tuple[str, ...] = ()  # to everybody
    without_effect: tuple[str, ...] = ()


class KnownFields:
    """Of one type of request."""

    def __init__(self, kind: type[msgspec.Struct]) -> None:
        self._shape = _shape_of(inspect.type_info(kind))

    def ignored_in(self, value: Any) -> Ignored:
        """The keys of `value` that do nothing; those whose value is null ask for nothing."""
        found = set(_ignored(self._shape, value, ""))
        unknown = sorted(path for path, is_known in found if not is_known)
        return Ignored(tuple(unknown), tuple(sorted(path for path, is_known in found if is_known)))

    def choices(self, path: str) -> tuple[Any, ...]:
        """The values that may stand at a JSON path such as `messages[0].role`, if they are few."""
        shapes = [self._shape]
        for name, index in _STEP.findall(path):
            if index:
                shapes = [shape.items for shape in shapes if shape.items is not None]
            else:
                shapes = [inner for shape in shapes for inner in _fields(shape, name)]
        return tuple(dict.fromkeys(choice for shape in shapes for choice in shape.choices))


def _fields(shape: _Shape, name: str) -> Iterator[_Shape]:
    """What may stand under a name, whichever struct of a union it is."""
    if name == shape.tag_field:
        yield _Shape(choices=shape.tags)
    for each in (shape, *shape.by_tag.values()):
        inner = (each.fields or {}).get(name) or each.values
        if inner is not None and name != each.tag_field:
            yield inner


def _ignored(shape: _Shape, value: Any, path: str) -> Iterator[tuple[str, bool]]:
    """(path, whether it is known)."""
    if isinstance(value, dict):
        if shape.tag_field is not None:
            tag = value.get(shape.tag_field)
            shape = shape.by_tag.get(tag) or _ANY if isinstance(tag, str) else _ANY
        for key, item in value.items():
            below = f"{path}.{key}" if path else key
            if shape.fields is not None:
                inner = shape.fields.get(key)
                if inner is None:
                    if item is not None:
                        yield below, False
                elif inner.has_effect:
                    yield from _ignored(inner, item, below)
                elif item not in _NOTHING:
                    yield below, True
            elif shape.values is not None:
                yield from _ignored(shape.values, item, f"{path}.*")
    elif isinstance(value, list) and shape.items is not None:
        for item in value:
            yield from _ignored(shape.items, item, f"{path}[]")


def _shape_of(kind: inspect.Type) -> _Shape:
    """A union has at most one kind of list, one of mapping, and structs told apart by a tag."""
    if isinstance(kind, inspect.Metadata):
        if not (kind.extra or {}).get("has_effect", True):
            return _Shape(has_effect=False, choices=_shape_of(kind.type).choices)
        return _shape_of(kind.type)
    if isinstance(kind, inspect.StructType):
        shape = _Shape({each.encode_name: _shape_of(each.type) for each in kind.fields})
        if kind.tag_field is not None and shape.fields is not None:
            shape.fields[kind.tag_field] = _Shape()
        return shape
    if isinstance(kind, inspect.ListType):
        return _Shape(items=_shape_of(kind.item_type))
    if isinstance(kind, inspect.DictType):
        return _Shape(values=_shape_of(kind.value_type))
    if isinstance(kind, inspect.LiteralType):
        return _Shape(choices=tuple(kind.values))
    if isinstance(kind, inspect.UnionType):
        return _union([_plain(each) for each in kind.types])
    return _Shape()


def _union(kinds: list[inspect.Type]) -> _Shape:
    whole = _Shape()
    if any(isinstance(kind, inspect.AnyType) for kind in kinds):
        return whole
    for kind in kinds:
        shape = _shape_of(kind)
        whole.choices += shape.choices
        whole.items = whole.items or shape.items
        whole.values = whole.values or shape.values
        if isinstance(kind, inspect.StructType) and kind.tag_field is not None:
            whole.tag_field = kind.tag_field
            whole.by_tag[kind.tag] = shape
            whole.tags += () if getattr(kind.cls, "is_refused", False) else (kind.tag,)
        elif shape.fields is not None:
            whole.fields = shape.fields
    return whole


def _plain(kind: inspect.Type) -> inspect.Type:
    return kind.type if isinstance(kind, inspect.Metadata) else kind
