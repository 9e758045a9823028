"""`Fields`: typed reading of one JSON object that notes problems instead of raising at the first.

Each reader gives a harmless value of the right type after noting a problem, so that reading can
go on and the user sees the whole list.
"""

import math
from collections.abc import Mapping
from typing import Any


class Fields:
    """One object of a JSON file; `path` is its dotted address, for the messages."""

    def __init__(self, values: Mapping[str, Any], path: str, problems: list[str]) -> None:
        self.values = values
        self.path = path
        self._problems = problems

    def __contains__(self, key: str) -> bool:
        return self.values.get(key) is not None

    def problem(self, text: str) -> None:
        """Note a problem of this object."""
        self._problems.append(f"{self.path}: {text}" if self.path else text)

    def section(self, key: str) -> "Fields":
        """The object below `key`; empty, with a problem, if there is none."""
        value = self._get(key)
        if not isinstance(value, Mapping):
            if value is not None:
                self._wrong(key, "an object", value)
            value = {}
        return Fields(value, self._at(key), self._problems)

    def integer(self, key: str, minimum: int = 1) -> int:
        """A whole number of at least `minimum`."""
        value = self._get(key)
        if _is_integer(value) and value >= minimum:
            return int(value)
        if value is not None:
            self._wrong(key, f"a whole number of at least {minimum}", value)
        return max(1, minimum)

    def number(self, key: str) -> float:
        """A positive number."""
        value = self._get(key)
        if _is_positive(value):
            return float(value)
        if value is not None:
            self._wrong(key, "a positive number", value)
        return 1.0

    def boolean(self, key: str) -> bool:
        """True or false."""
        value = self._get(key)
        if value is not None and not isinstance(value, bool):
            self._wrong(key, "true or false", value)
        return value is True

    def choice(self, key: str, known: tuple[str, ...]) -> str:
        """One of the strings `known`."""
        value = self._get(key)
        if isinstance(value, str) and value in known:
            return value
        self._wrong(key, f"one of {', '.join(known)}", value)
        return known[0]

    def integers(self, key: str, length: int) -> tuple[int, ...]:
        """A list of `length` whole numbers of at least 0."""
        value = self._get(key)
        if isinstance(value, list) and len(value) == length and all(map(_is_natural, value)):
            return tuple(value)
        if value is not None:
            self._wrong(key, f"a list of {length} whole numbers", value)
        return (0,) * length

    def token_ids(self, key: str) -> tuple[int, ...]:
        """One token id or a list of them."""
        value = self._get(key)
        ids = value if isinstance(value, list) else [value]
        if all(map(_is_natural, ids)):
            return tuple(ids)
        if value is not None:
            self._wrong(key, "a token id or a list of token ids", value)
        return ()

    def rgb(self, key: str) -> tuple[float, float, float]:
        """Three positive numbers."""
        value = self._get(key)
        if isinstance(value, list) and len(value) == 3 and all(map(_is_positive, value)):
            return (float(value[0]), float(value[1]), float(value[2]))
        self._wrong(key, "a list of three positive numbers", value)
        return (1.0, 1.0, 1.0)

    def require(self, key: str, wanted: object, default: object = None) -> None:
        """Only `wanted` is computed here; a missing key counts as `default`."""
        value = self.values.get(key, default)
        if value != wanted or type(value) is not type(wanted):
            self.problem(f"{key} is {value!r}, only {wanted!r} is supported")

    def _get(self, key: str) -> Any:
        value = self.values.get(key)
        if value is None:
            self._problems.append(f"{self._at(key)} is missing")
        return value

    def _wrong(self, key: str, wanted: str, value: object) -> None:
        self._problems.append(f"{self._at(key)} must be {wanted}, not {value!r}")

    def _at(self, key: str) -> str:
        return f"{self.path}.{key}" if self.path else key


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_positive(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and 0 < value < math.inf


def _is_natural(value: Any) -> bool:
    return _is_integer(value) and value >= 0
