"""Text to tokens and back, over a checkpoint's tokenizer.json (byte-level BPE).

Control tokens are the file's added tokens, flagged special or not: roles, placeholders, thought
and tool marks. `encode_text` knows none of them, so no text can become one. `encode_template` does
recognise them, and is only for text in which whatever a client wrote has been disguised
(`standins.py`).
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as BpeTokenizer

from glimt.errors import BadCheckpoint, InvalidRequest

# Control tokens that are part of the text a model writes for its reader or for a parser. The
# published files do not agree on which tokens are "special", so the flag cannot decide this.
_WRITTEN = {
    *("<think>", "</think>", "<answer>", "</answer>", "<|begin_of_box|>", "<|end_of_box|>"),
    *("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "/nothink"),
    *("<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"),
}
_LOOKS_SPECIAL = re.compile(r"<\|.*\|>")


class Tokenizer:
    """Encodes text without, and trusted templates with, control tokens; decodes exact bytes."""

    def __init__(self, path: Path) -> None:
        """Read tokenizer.json. Raises BadCheckpoint if it is unreadable or not byte-level BPE."""
        whole = _read(path)
        added = whole.get_added_tokens_decoder()
        self.control_tokens: dict[str, int] = {
            token.content: token_id for token_id, token in added.items()
        }
        self._text_of = {token_id: token.content for token_id, token in added.items()}
        self.skip_ids = frozenset(
            token_id
            for token_id, token in added.items()
            if token.content not in _WRITTEN
            and (token.special or _LOOKS_SPECIAL.fullmatch(token.content))
        )
        self._plain = _without_added_tokens(whole, set(self.control_tokens))
        self.vocab_size = 1 + max(whole.get_vocab(with_added_tokens=True).values(), default=-1)
        self._control = _ControlPattern(added.values())
        self._bytes: dict[int, bytes] = {}  # filled as ids are met; at most the vocabulary

    def token_id(self, text: str) -> int | None:
        """The id of a control token, looked up by its text; None where there is no such token."""
        return self.control_tokens.get(text)

    def encode_text(self, text: str) -> list[int]:
        """Token ids of text that means nothing but itself: never a control token.

        Time is linear in the text (times its logarithm within one word). Raises InvalidRequest for
        text with lone surrogates, which is not Unicode.
        """
        try:
            # The batch form is the one that lets other threads run, and it computes no offsets.
            (encoding,) = self._plain.encode_batch_fast([text], add_special_tokens=False)
        except (TypeError, UnicodeEncodeError):
            raise InvalidRequest("the text holds a lone surrogate, it is not Unicode") from None
        return list(encoding.ids)

    def encode_template(self, text: str, restore: Callable[[str], str] | None = None) -> list[int]:
        """Token ids of a rendered template: control tokens in it are recognised.

        `restore` maps each stretch between control tokens to the text it stands for, after control
        tokens were looked for and before the stretch is encoded.
        """
        token_ids: list[int] = []
        for stretch, control in self._control.split(text):
            if stretch:
                token_ids += self.encode_text(restore(stretch) if restore else stretch)
            if control is not None:
                token_ids.append(self.control_tokens[control])
        return token_ids

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes a token stands for; b"" for ids without a token (padding of the logits)."""
        known = self._bytes.get(token_id)
        if known is None:
            text = self._text_of.get(token_id)
            if text is None:
                text = self._plain.id_to_token(token_id) if token_id >= 0 else None
            known = b"" if text is None else _to_bytes(text)
            if text is not None:
                self._bytes[token_id] = known
        return known

    def token_text(self, token_id: int) -> str:
        """One token alone as text; bytes that are no character of their own become U+FFFD."""
        return self.token_bytes(token_id).decode("utf-8", "replace")

    def decode(self, token_ids: Iterable[int], skip: frozenset[int] = frozenset()) -> str:
        """The text of a whole sequence without the tokens in `skip`; invalid bytes: U+FFFD."""
        parts = [self.token_bytes(token_id) for token_id in token_ids if token_id not in skip]
        return b"".join(parts).decode("utf-8", "replace")


class _ControlPattern:
    """Finds control tokens in a text, the leftmost first and of those the longest."""

    def __init__(self, tokens: Iterable[Any]) -> None:
        by_text = {token.content: token for token in tokens}
        alternatives = [
            rf"(?<!\w){re.escape(text)}(?!\w)" if by_text[text].single_word else re.escape(text)
            for text in sorted(by_text, key=len, reverse=True)
        ]
        self._pattern = re.compile("|".join(alternatives)) if alternatives else None
        self._eats_left = {text for text, token in by_text.items() if token.lstrip}
        self._eats_right = {text for text, token in by_text.items() if token.rstrip}

    def split(self, text: str) -> Iterator[tuple[str, str | None]]:
        """Pairs (text, the control token after it); None after the last."""
        position = 0
        for match in self._pattern.finditer(text) if self._pattern else ():
            control = match.group()
            stretch = text[position : match.start()]
            yield (stretch.rstrip() if control in self._eats_left else stretch), control
            position = match.end()
            if control in self._eats_right:
                while position < len(text) and text[position].isspace():
                    position += 1
        yield text[position:], None


def _read(path: Path) -> BpeTokenizer:
    try:
        tokenizer = BpeTokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise BadCheckpoint(f"{path.name} cannot be read as a tokenizer: {error}") from error
    decoder = tokenizer.decoder
    if type(tokenizer.model).__name__ != "BPE" or type(decoder).__name__ != "ByteLevel":
        raise BadCheckpoint(f"{path.name} is not a byte-level BPE tokenizer")
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _without_added_tokens(whole: BpeTokenizer, control: set[str]) -> BpeTokenizer:
    """A tokenizer of the same model that recognises no added token."""
    model = whole.model
    if any(model.token_to_id(text) is not None for text in control):
        return _without_vocabulary(whole, control)
    plain = BpeTokenizer(model)
    plain.normalizer = whole.normalizer
    plain.pre_tokenizer = whole.pre_tokenizer
    return plain


def _without_vocabulary(whole: BpeTokenizer, control: set[str]) -> BpeTokenizer:
    """The same, for files that list control tokens in the model's vocabulary too: merges (or the
    whole-word rule) could lead to them."""
    file = json.loads(whole.to_str())
    file["added_tokens"], file["post_processor"] = [], None
    model = file["model"]
    model["vocab"] = {text: i for text, i in model["vocab"].items() if text not in control}

    def leads_to_control(merge: str | list[str]) -> bool:
        pair = merge.split(" ") if isinstance(merge, str) else merge
        return "".join(pair) in control or not control.isdisjoint(pair)

    model["merges"] = [merge for merge in model["merges"] if not leads_to_control(merge)]
    return BpeTokenizer.from_str(json.dumps(file))


def _byte_alphabet() -> dict[str, int]:
    """The characters by which byte-level BPE writes the 256 bytes: printable Latin-1 characters
    stand for themselves, the other bytes, in order, for the characters from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(0x100 + i): b for i, b in enumerate(others)}


_BYTE_OF = _byte_alphabet()


def _to_bytes(text: str) -> bytes:
    """A vocabulary entry as bytes; one with a character outside the byte alphabet is plain text."""
    try:
        return bytes([_BYTE_OF[character] for character in text])
    except KeyError:
        return text.encode("utf-8")
