"""Prompts of the datasets of `glimt bench`, for its tests."""

import base64
import io
from typing import Any

from PIL import Image as Pictures

from glimt.bench.data.prompt import Image, Prompt
from glimt.bench.data.source import prompts
from glimt.bench.data.tokens import Tokens
from glimt.bench.options import DataOptions


def picture_of(image: Image) -> Pictures.Image:
    """The picture of a data: address."""
    return Pictures.open(io.BytesIO(base64.b64decode(image.url.partition(",")[2])))


def all_of(tokens: Tokens | None, count: int = 6, seed: int = 0, **options: Any) -> list[Prompt]:
    """`count` prompts by these options."""
    return list(prompts(DataOptions(**options), tokens, count, seed))
