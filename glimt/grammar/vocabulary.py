"""Vocabulary: a checkpoint's tokens as the grammar library sees them, and sets of them as bits.

A set of tokens is a row of words, uint32 [W]: token t is bit t % 32 of word t // 32.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
from llguidance import LLTokenizer

from glimt.errors import BadCheckpoint

Bits = npt.NDArray[np.uint32]

_PLAIN_END = "<|endoftext|>"


class Vocabulary:
    """Read once for a checkpoint, shared by all its grammars; never changes."""

    def __init__(self, library: LLTokenizer, size: int, end_id: int, control: Bits) -> None:
        self.library = library
        self.size = size  # rows of the logits; ids without a token are never allowed
        self.end_id = end_id  # what the library takes for the end of a text
        self.not_control = ~control  # [W]

    @classmethod
    def read(cls, path: Path, size: int) -> "Vocabulary":
        """From tokenizer.json. Raises BadCheckpoint.

        For 150,000 tokens it takes about a second, in which no other thread of Python runs, and
        130 MB.

        All added tokens count as control tokens, whatever the file calls them: only so can no text
        within a grammar become one, and a grammar of the server's own name them (`<tool_call>`).
        """
        try:
            file = msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
            added = {token["content"]: token["id"] for token in file["added_tokens"]}
            for token in file["added_tokens"]:
                token["special"] = True
            end_id = added.get(_PLAIN_END, next(iter(added.values()), None))
            if end_id is None:
                raise ValueError("it has no control tokens")
            library = LLTokenizer(
                msgspec.json.encode(file).decode(), n_vocab=size, eos_token=end_id
            )
        except (OSError, msgspec.MsgspecError, ValueError, KeyError, TypeError) as error:
            raise BadCheckpoint(f"{path.name} cannot be used with grammars: {error}") from error
        return cls(library, size, end_id, bits_of(added.values(), size))

    @property
    def num_words(self) -> int:
        """W."""
        return -(-self.size // 32)


def bits_of(token_ids: Iterable[int], size: int) -> Bits:
    """The set of these tokens, [W]."""
    bits_W = np.zeros(-(-size // 32), np.uint32)
    allow(bits_W, token_ids)
    return bits_W


def allow(bits_W: Bits, token_ids: Iterable[int]) -> None:
    """Add tokens to a set."""
    for token_id in token_ids:
        bits_W[token_id >> 5] |= np.uint32(1 << (token_id & 31))


def forbid(bits_W: Bits, token_ids: Iterable[int]) -> None:
    """Take tokens out of a set."""
    for token_id in token_ids:
        bits_W[token_id >> 5] &= np.uint32(~(1 << (token_id & 31)) & 0xFFFFFFFF)
