"""The words of `glimt bench` as they were typed, in the form in which the parser takes them.

As vLLM's client reads them: `--extra-body.top_k 5` is a member of the JSON of `--extra-body`, and
of an option that was given twice the last counts, so that a script can be called with other values
than it holds (`bench.sh --num-prompts 10`).
"""

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

_JSON = ("--extra-body", "--chat-template-kwargs")


def settled(words: Sequence[str], say: Callable[[str], None]) -> list[str]:
    """Each option once; `say` gets a note for each that was given before."""
    groups: dict[str, list[str]] = {}
    first: list[str] = []
    members: dict[str, dict[str, Any]] = {}
    for group in _groups(words):
        option, is_joined, value = group[0].partition("=")
        if not option.startswith("--"):
            first += group
            continue
        name, _, path = option.partition(".")
        name = f"--{name.removeprefix('--').replace('_', '-')}"
        values = [value, *group[1:]] if is_joined else group[1:]
        if path and name in _JSON and len(values) == 1:
            _put(members.setdefault(name, {}), path.split("."), values[0])
            continue
        key = option if path else name
        if key in groups:
            say(f"note: {key} was given more than once: the last counts")
            del groups[key]
        groups[key] = group
    for name, content in members.items():
        groups[name] = [name, _merged(groups.get(name), content)]
    return [*first, *(word for group in groups.values() for word in group)]


def _groups(words: Sequence[str]) -> Iterator[list[str]]:
    """An option with its values; what stands before the first option, alone."""
    group: list[str] = []
    for word in words:
        if word.startswith("--") and group:
            yield group
            group = []
        group.append(word)
    if group:
        yield group


def _put(content: dict[str, Any], path: Sequence[str], text: str) -> None:
    """Set a member, however deep; `name+` adds to a list."""
    for key in path[:-1]:
        if not isinstance(content.get(key), dict):
            content[key] = {}
        content = content[key]
    if path[-1].endswith("+"):
        values = content.setdefault(path[-1].removesuffix("+"), [])
        values += [_value(part) for part in text.split(",")]
    else:
        content[path[-1]] = _value(text)


def _value(text: str) -> Any:
    """JSON where it is JSON (5, true, [1, 2]); else a text."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _merged(group: Sequence[str] | None, content: dict[str, Any]) -> str:
    """The members given one by one, over those of the whole object, if that was given too."""
    if group is None:
        return json.dumps(content)
    text = group[0].partition("=")[2] or " ".join(group[1:])
    whole = _value(text)
    return json.dumps(_over(whole, content)) if isinstance(whole, dict) else text


def _over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    both = dict(below)
    for key, value in above.items():
        inner = both.get(key)
        both[key] = (
            _over(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
        )
    return both
