"""Sets up the standard library's logging: text or JSON lines, nothing a client sent unescaped.

A record is one line, whatever its text holds: control characters, line separators and lone
surrogates are escaped, long values are cut. Extra facts travel as `extra={"fields": {...}}` and
come out as key=value pairs, or as keys of the JSON object. Prompt and answer texts are never
logged; that is the callers' duty.
"""

import json
import logging
import re
import sys
import time
from typing import Any, TextIO

# C0 and C1 controls, DEL, line and paragraph separators, direction overrides, lone surrogates.
_UNSAFE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_MAX_FIELD_CHARS = 256
_MAX_MESSAGE_CHARS = 8192

_LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}


def set_up(level: str, *, as_json: bool, stream: TextIO | None = None, name: str = "") -> None:
    """Send the records of every logger of this process to `stream` (default: standard error).

    `level` is debug, info, warning or error; `name` says which process speaks. Calling it again
    replaces the earlier set-up. Libraries below warning are silenced, except uvicorn's errors.
    """
    handler = logging.StreamHandler(sys.stderr if stream is None else stream)
    handler.setFormatter(JsonLines(name) if as_json else TextLines(name))
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    logging.getLogger("glimt").setLevel(_LEVELS[level])


def log_finish(logger: logging.Logger, fields: dict[str, Any], *, failed: bool = False) -> None:
    """The one line per request, at its end. Values of None are left out."""
    shown = {key: value for key, value in fields.items() if value is not None}
    logger.log(
        logging.WARNING if failed else logging.INFO, "request finished", extra={"fields": shown}
    )


def escaped(text: str, max_chars: int = _MAX_FIELD_CHARS) -> str:
    """`text` in one line without control characters, cut after `max_chars`."""
    cut = text if len(text) <= max_chars else text[:max_chars] + "…"
    return _UNSAFE.sub(_escape, cut)


def _escape(match: re.Match[str]) -> str:
    code = ord(match.group())
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def _message(record: logging.LogRecord) -> str:
    return escaped(record.getMessage(), _MAX_MESSAGE_CHARS)


def _traceback(record: logging.LogRecord) -> list[str]:
    """Lines of the exception, each escaped; a traceback is ours and may take several lines."""
    if not record.exc_info or record.exc_info[0] is None:
        return []
    text = logging.Formatter().formatException(record.exc_info)
    return [escaped(line, _MAX_MESSAGE_CHARS) for line in text.split("\n")]


class TextLines(logging.Formatter):
    """`2026-01-31 12:00:00.123 INFO glimt.api request finished id=… status=200`."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = f" [{process}]" if process else ""

    def format(self, record: logging.LogRecord) -> str:
        """One line, and the indented traceback if there is one."""
        seconds = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.created))
        head = f"{seconds}.{int(record.msecs):03d} {record.levelname}{self._process} {record.name}"
        fields: dict[str, Any] = getattr(record, "fields", {})
        pairs = "".join(f" {key}={_shown(value)}" for key, value in fields.items())
        return "\n    ".join([f"{head} {_message(record)}{pairs}", *_traceback(record)])


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    text = escaped(str(value))
    quoted = not text or " " in text or '"' in text or "=" in text
    return json.dumps(text, ensure_ascii=False) if quoted else text


class JsonLines(logging.Formatter):
    """One JSON object per record: time (UTC), level, logger, process, message, then the fields."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        """One line; the traceback, if any, is the key `traceback`."""
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, Any] = {
            "time": f"{seconds}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
        }
        if self._process:
            line["process"] = self._process
        line["message"] = _message(record)
        for key, value in getattr(record, "fields", {}).items():
            line.setdefault(key, escaped(value) if isinstance(value, str) else value)
        if lines := _traceback(record):
            line["traceback"] = lines
        return json.dumps(line, default=lambda value: escaped(str(value)))
