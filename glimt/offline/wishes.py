"""Keyword arguments of `LLM` -> the Settings that `glimt serve` is started with."""

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import msgspec

from glimt.config import (
    CacheSettings,
    MediaSettings,
    ModelSettings,
    ParallelSettings,
    ServerSettings,
    Settings,
)
from glimt.errors import BadSettings

_GROUPS = {
    "models": ModelSettings,
    "cache": CacheSettings,
    "media": MediaSettings,
    "parallel": ParallelSettings,
    "server": ServerSettings,
}
# Of the server's settings, those that are not about HTTP.
_SERVER_NAMES = frozenset({"reasoning_parser", "tool_call_parser", "box_tokens", "max_logprobs"})
# Flags are text where a program has a number, a mapping or a path.
_TEXTS = frozenset({"max_model_len", "kv_cache_memory_bytes"})


def settings_of(model: str | Path, wishes: Mapping[str, Any]) -> Settings:
    """The settings; a wish of None is left at its default.

    Raises TypeError for names that are no setting, BadSettings for values of the wrong type.
    """
    groups: dict[str, dict[str, Any]] = {}
    for name, value in wishes.items():
        group = _group_of(name)
        if value is not None:
            groups.setdefault(group, {})[name] = _as_flag(name, value)
    try:
        return msgspec.convert({"model": str(model), **groups}, Settings)
    except msgspec.ValidationError as error:
        text, _, path = str(error).partition(" - at `$.")
        raise BadSettings(f"LLM: {path.rstrip('`').rpartition('.')[2]}: {text}") from None


def _group_of(name: str) -> str:
    for group, kind in _GROUPS.items():
        known = _SERVER_NAMES if kind is ServerSettings else {each.name for each in fields(kind)}
        if name in known:
            return group
    raise TypeError(f"LLM() has no argument {name!r}")


def _as_flag(name: str, value: Any) -> Any:
    if isinstance(value, Mapping):
        return json.dumps(dict(value))
    if isinstance(value, Path) or (name in _TEXTS and isinstance(value, int)):
        return str(value)
    return value
