"""The report: one HTML file with everything in it, which loads nothing from anywhere."""

from collections.abc import Sequence
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

import msgspec

from glimt.errors import BadSettings

MAX_BYTES = 1_000_000


def report(title: str, subtitle: str, command: str, pages: Sequence[dict[str, Any]]) -> str:
    """The whole file. `pages` are those of `page.py` and `series.py`."""
    content = {"title": title, "subtitle": subtitle, "command": command, "pages": list(pages)}
    parts = {
        "title": escape(title),
        "css": _asset("report.css"),
        "charts": _asset("charts.js"),
        "script": _asset("report.js"),
        "footer": escape(
            "Made by glimt bench. All times are the client's, on one monotonic clock."
        ),
        "data": _in_script(content),
    }
    text = _asset("report.html")
    for name, part in parts.items():
        text = text.replace("{{" + name + "}}", part)
    return text


def write_text(path: Path, text: str) -> None:
    """Write it. Raises BadSettings if that fails."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    except OSError as error:
        raise BadSettings(f"{path} cannot be written: {error.strerror}") from None


def _asset(name: str) -> str:
    return resources.files(__package__).joinpath("assets", name).read_text("utf-8")


def _in_script(content: Any) -> str:
    """JSON that can stand in a script element: nothing in it can end the element."""
    text = msgspec.json.encode(content).decode()
    for character, code in (
        ("<", "3c"),
        (">", "3e"),
        ("&", "26"),
        ("\u2028", "2028"),
        ("\u2029", "2029"),
    ):
        text = text.replace(character, f"\\u{code:>04}")
    return text
