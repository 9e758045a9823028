"""The built-in model's tokenizer: byte-level BPE whose merges are chosen, not counted.

Words that the model's English is made of are single tokens only with the space before them. All
else, and so everything that is read off a picture or copied from a tool's description, is spelled
letter by letter: one and the same string has one and the same spelling wherever it stands (after a
quote, a line end or a tag), which is what makes copying and reading easy for a small model.
Digits always stand alone. A merge list does this if each merge begins with the space: " the" is
made by " "+"t", " t"+"h", " th"+"e", and no merge joins two letters without it.

    python -m training.tokenizer    writes training/vocabulary/tokenizer.json
"""

import json
import random
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

from glimt.tiny.tokenizer import control_tokens
from training.conversations import converse

# A word or marks take the space before them, unless a blank of the same line stands before that.
# What comes is never looked at: in a text of blanks that would cost the square of its length.
_PIECES = r"(?<![^\S\n]) \p{L}+|\p{L}+|\p{N}|(?<![^\S\n]) [^\s\p{L}\p{N}]+|[^\s\p{L}\p{N}]+|\s"
_SPACE = "Ġ"  # the byte-level alphabet's space
NUM_CONVERSATIONS = 6000
MIN_COUNT = 12


def make_tokenizer(control: Iterable[tuple[str, bool]], seed: int = 0) -> Tokenizer:
    """Collect the words of some thousand conversations and write them down as merges.

    `control`: (token, special) in the order of their ids.
    """
    words, marks = _counted(seed)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {piece: index for index, piece in enumerate(alphabet)}
    merges: list[tuple[str, str]] = []
    for word in words:
        _chain(_SPACE + word, vocabulary, merges)
    for mark in marks:
        _chain(mark.replace(" ", _SPACE), vocabulary, merges)
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    for token, special in control:
        added = AddedToken(token, special=special, normalized=False)
        (tokenizer.add_special_tokens if special else tokenizer.add_tokens)([added])
    return tokenizer


def _chain(piece: str, vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> None:
    """Make `piece` one token, from its first character on."""
    for end in range(2, len(piece) + 1):
        whole = piece[:end]
        if whole not in vocabulary:
            vocabulary[whole] = len(vocabulary)
            merges.append((piece[: end - 1], piece[end - 1]))


def _counted(seed: int) -> tuple[list[str], list[str]]:
    """Frequent words after a space, and frequent runs of marks, most frequent first."""
    words: Counter[str] = Counter()
    marks: Counter[str] = Counter()
    rng = random.Random(seed)
    for _ in range(NUM_CONVERSATIONS):
        conversation = converse(rng.getrandbits(48), 0.0, held_out=False)
        for text in _texts(conversation.messages):
            words.update(re.findall(r" ([A-Za-z]+)", text))
            marks.update(re.findall(r" ?[^\sA-Za-z0-9<>/|]{2,}", text))
        for tool in conversation.tools:
            words.update(re.findall(r" ([A-Za-z]+)", json.dumps(tool)))
            marks.update(re.findall(r" ?[^\sA-Za-z0-9<>/|]+", json.dumps(tool)))
    words.update(dict.fromkeys(TEMPLATE_WORDS, 10**6))
    frequent = [word for word, count in words.most_common() if count >= MIN_COUNT]
    return frequent, [mark for mark, count in marks.most_common(48) if count >= MIN_COUNT]


# Words of the chat template's tool instructions.
TEMPLATE_WORDS = (
    "Tools answer you may call functions They are listed here one JSON document per line each in "
    "this form To Write"
).split()


def _texts(messages: list[dict[str, object]]) -> Iterable[str]:
    for message in messages:
        content = message.get("content")
        parts = content if isinstance(content, list) else [{"text": content}]
        for part in parts:
            yield str(part.get("text", ""))
        yield str(message.get("reasoning_content", ""))


def main() -> None:
    """Write the file that the trainer, the exporter and the tests read."""
    path = Path(__file__).parent / "vocabulary" / "tokenizer.json"
    path.parent.mkdir(exist_ok=True)
    tokenizer = make_tokenizer(control_tokens("4.5"))
    tokenizer.save(str(path))
    print(f"{path}: {tokenizer.get_vocab_size()} tokens")


if __name__ == "__main__":
    main()
