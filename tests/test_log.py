"""Lines of the log, in both forms."""

import json
import logging
import sys

import pytest

from glimt.log import JsonLines, TextLines


def record(exc_info: object) -> logging.LogRecord:
    said = ("a task was\ndestroyed", ())
    return logging.LogRecord("asyncio", logging.ERROR, "", 1, *said, exc_info)  # type: ignore[arg-type]


@pytest.mark.parametrize("exc_info", [None, False, (None, None, None)])
def test_errors_without_an_exception_are_one_line(exc_info: object) -> None:
    """asyncio says `False` of what it has no exception for."""
    line = TextLines("server").format(record(exc_info))
    assert line.endswith("ERROR [server] asyncio a task was\\x0adestroyed")
    assert "traceback" not in json.loads(JsonLines("server").format(record(exc_info)))


def test_an_exception_is_told_below() -> None:
    try:
        raise ValueError("seen")
    except ValueError:
        found = record(sys.exc_info())
    assert TextLines("").format(found).endswith("\n    ValueError: seen")
    assert json.loads(JsonLines("").format(found))["traceback"][-1] == "ValueError: seen"
