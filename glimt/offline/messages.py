"""Messages as programs write them -> messages as the HTTP API takes them, and the pictures apart.

Beside the API's parts there are

    {"type": "image", "image": PIL.Image | pathlib.Path | str}     (or image_pil / image_pil)
    {"type": "video", "video": pathlib.Path | str}

Strings are addresses under the rules of the server (`allowed_local_media_path`), since they may
come from anywhere. Images of PIL and Paths can only come from the program itself, which may read
what it likes.
"""

import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from glimt.errors import InvalidRequest

Picture = Image.Image | Path

_KEYS = {"image": ("image", "image_url"), "image_pil": ("image_pil", "image_url")}
_KEYS["video"] = ("video", "video_url")
_SCHEME = re.compile(r"(https?|file|data):", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class PlainMessages:
    """Messages in the API's form; `pictures` by the addresses that stand for them there."""

    messages: list[Any]
    pictures: Mapping[str, Picture]


def plain_messages(messages: Sequence[Any]) -> PlainMessages:
    """Raises InvalidRequest naming the part; what else is wrong, the API's rules will find."""
    pictures: dict[str, Picture] = {}
    plain: list[Any] = []
    for index, message in enumerate(messages):
        content = message.get("content") if isinstance(message, Mapping) else None
        if isinstance(content, list | tuple):
            parts = [
                _plain_part(part, f"messages[{index}].content[{place}]", pictures)
                for place, part in enumerate(content)
            ]
            message = {**message, "content": parts}
        plain.append(message)
    return PlainMessages(plain, pictures)


def _plain_part(part: Any, where: str, pictures: dict[str, Picture]) -> Any:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind not in _KEYS:
        return part
    key, field = _KEYS[kind]
    given = part.get(key)
    if isinstance(given, str) and kind != "image_pil":
        url = given if _SCHEME.match(given) else Path(given).absolute().as_uri()
    elif isinstance(given, Path) or (isinstance(given, Image.Image) and kind != "video"):
        # Not to be guessed: no text in a message can mean another's picture.
        url = f"picture:{secrets.token_hex(16)}"
        pictures[url] = given
    else:
        forms = "a Path or an address" if kind == "video" else "a PIL image, a Path or an address"
        raise InvalidRequest(
            f"{where}.{key} must be {forms}, not {type(given).__name__}", param=f"{where}.{key}"
        )
    return {"type": field, field: {"url": url}}
