"""How long prompts and answers are: drawn as vLLM's client draws them, and chosen as it chooses."""

import json
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from glimt.errors import BadSettings

IntArray = NDArray[np.int64]

# Bounds of vLLM's client for conversations that others wrote, in tokens.
_MIN_LEN, _MAX_PROMPT_LEN, _MAX_TOTAL_LEN = 4, 1024, 2048


def fits(prompt_len: int, output_len: int, *, is_given: bool) -> bool:
    """Whether a conversation is neither too short nor too long; an answer's length that was given
    may be short."""
    is_short = prompt_len < _MIN_LEN or (not is_given and output_len < _MIN_LEN)
    is_long = prompt_len > _MAX_PROMPT_LEN or prompt_len + output_len > _MAX_TOTAL_LEN
    return not (is_short or is_long)


@dataclass(frozen=True)
class Spread:
    """By which fraction lengths vary around their middle, each side: 0 is fixed."""

    input: float = 0.0
    output: float = 0.0

    @classmethod
    def parse(cls, text: str) -> "Spread":
        """From `0.3` or `{"input": 0.2, "output": 0.5}`. Raises BadSettings."""
        try:
            value = json.loads(text)
            if isinstance(value, dict):
                spread = cls(float(value.pop("input")), float(value.pop("output")))
                if value:
                    raise ValueError(f"knows only input and output, not {', '.join(value)}")
            else:
                spread = cls(float(value), float(value))
        except (ValueError, KeyError, TypeError) as error:
            raise BadSettings(f"--random-range-ratio {text}: {error}") from None
        if not (0 <= spread.input < 1 and 0 <= spread.output < 1):
            raise BadSettings(f"--random-range-ratio {text}: must be at least 0 and below 1")
        return spread


@dataclass(frozen=True)
class Draw:
    """Lengths of prompts and answers in tokens, and where each prompt starts in the vocabulary."""

    inputs: IntArray
    outputs: IntArray
    offsets: IntArray


def draw_lengths(
    random: np.random.Generator,
    num_prompts: int,
    *,
    input_len: int,
    output_len: int,
    spread: Spread,
    vocab_size: int,
) -> Draw:
    """Uniform between floor(len · (1 - r)) and ceil(len · (1 + r)); answers have at least one."""
    low, high = _bounds(input_len, spread.input)
    out_low, out_high = _bounds(output_len, spread.output)
    inputs = random.integers(low, high + 1, size=num_prompts)
    outputs = random.integers(max(out_low, 1), max(out_high, 1) + 1, size=num_prompts)
    return Draw(inputs, outputs, random.integers(0, vocab_size, size=num_prompts))


def _bounds(length: int, ratio: float) -> tuple[int, int]:
    return math.floor(length * (1 - ratio)), math.ceil(length * (1 + ratio))
