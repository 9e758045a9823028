"""Libraries that only some options need: imported on use, with a cure where one is missing."""

import importlib
from typing import Any

from glimt.errors import BadSettings


def optional(module: str, purpose: str, cure: str) -> Any:
    """The module, or BadSettings saying what it is for and how to get it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise BadSettings(f"{purpose} needs {module.partition('.')[0]} ({error}): {cure}") from None
