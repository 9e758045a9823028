"""Checkpoints of a training run: written whole or not at all, and read without running code."""

import os
from pathlib import Path
from typing import Any

import torch

FILE = "checkpoint.pt"
FORMAT = 1


def save(folder: Path, state: dict[str, Any]) -> Path:
    """Write a state of tensors, numbers, strings, lists and dicts; returns the file.

    A kill at any moment leaves the previous checkpoint, or the new one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    final, partial = folder / FILE, folder / f"{FILE}.partial"
    with partial.open("wb") as file:
        torch.save({"format": FORMAT, **state}, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, final)
    return final


def load(file: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """A state that `save` wrote.

    Raises FileNotFoundError if there is none and ValueError if it is of another format.
    """
    if not file.exists():
        raise FileNotFoundError(f"there is no checkpoint at {file}")
    state: dict[str, Any] = torch.load(file, map_location=device, weights_only=True)
    if state.get("format") != FORMAT:
        raise ValueError(f"{file} has format {state.get('format')}, this is for format {FORMAT}")
    return state
