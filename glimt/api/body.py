"""Turns a request's bytes into a typed struct, or says precisely what is wrong with them.

msgspec decodes and validates in one pass but takes the last of two equal keys, accepts depths of
hundreds and drops unknown fields. A scan over the structure (strings skipped at memchr speed)
finds the first two, the types themselves know the third. 4 MB of base64 cost about 3 ms together.
"""

import re
from typing import Any, TypeVar

import msgspec

from glimt.api.known import Ignored, KnownFields
from glimt.errors import InvalidRequest

T = TypeVar("T")

MAX_DEPTH = 64
MAX_KEYS = 4096  # of one object
MAX_VALUES = 524_288  # strings, and opening and closing brackets, of the whole body
MAX_TEXT_BYTES = 8 * 2**20  # the body without its data: addresses

_MAX_CHOICES = 24
_MAX_ERROR_CHARS = 300  # the text may quote what the client sent
_OPEN, _CLOSE = frozenset(b"{["), frozenset(b"}]")
_NOT_STRUCTURE = bytes(byte for byte in range(256) if byte not in b"{}[]:")
_LONG_BYTES = 4096  # no key of ours is as long
# Characters that JSON strings never hold stand in for the two escapes that hide a quote.
_BACKSLASH, _QUOTE = b"\x00\x01", b"\x00\x02"
_PATH = re.compile(r"^(?P<text>.*?)(?: - at `(?:key in )?\$\.?(?P<path>[^`]*)`)?$", re.DOTALL)
_NOT_JSON = "the body is not valid JSON in UTF-8"
_MALFORMED = re.compile(r"JSON is malformed: (?P<what>.+) \(byte (?P<byte>[0-9]+)\)")
_MISSING = re.compile(r"missing required field `(\w+)`")


def decode_body(
    body: bytes, decoder: "msgspec.json.Decoder[T]", known: KnownFields
) -> tuple[T, Ignored]:
    """The decoded struct, and the paths of the fields that do nothing, at every depth.

    Raises InvalidRequest naming the JSON path. Never recurses over the client's depth.
    """
    outline = _scan(body)
    try:
        decoded = decoder.decode(body)
    except msgspec.ValidationError as error:
        raise named(error, known) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _not_json(body, error) from None
    try:
        plain = msgspec.json.decode(outline)
    except (msgspec.DecodeError, UnicodeDecodeError):
        # In what the type does not know: the decoder has skipped it with half an eye.
        raise InvalidRequest(_NOT_JSON, code="invalid_json") from None
    return decoded, known.ignored_in(plain)


def _not_json(body: bytes, error: Exception) -> InvalidRequest:
    """What of the decoder's words a client understands; lone surrogates are `truncated` to it."""
    if not body.strip():
        return InvalidRequest("the body is empty; send JSON", code="invalid_json")
    text = _NOT_JSON
    if (match := _MALFORMED.fullmatch(str(error))) is not None:
        text += f": {match['what']} near byte {match['byte']}"
    elif str(error).endswith("was truncated"):
        text += ": it ends too early, or holds half a surrogate pair"
    return InvalidRequest(text, code="invalid_json")


def named(error: msgspec.ValidationError, known: KnownFields | None = None) -> InvalidRequest:
    """The error of a wrong type or range, with the path of the field, and what it may be."""
    match = _PATH.match(str(error))
    if match is None:
        return InvalidRequest("the body does not have the expected form")
    text, path = match["text"][:_MAX_ERROR_CHARS], match["path"] or None
    if missing := _MISSING.search(text):
        path = f"{path}.{missing[1]}" if path else missing[1]
    if known is not None and path and text.startswith(("Invalid enum value", "Invalid value")):
        text += _choices(known.choices(path))
    return InvalidRequest(f"{path or 'the body'}: {text}", param=path)


def _choices(values: tuple[Any, ...]) -> str:
    shown = ", ".join(str(value) for value in values[:_MAX_CHOICES])
    return f"; what may be: {shown}" if shown else ""


def _scan(body: bytes) -> bytes:
    """Raise InvalidRequest for what decoders let pass; malformed JSON is left for them to refuse.

    Gives the body without its long strings, in which the same keys stand in the same places.
    """
    text = body
    if b"\\" in text:
        text = text.replace(b"\\\\", _BACKSLASH).replace(b'\\"', _QUOTE)
    pieces = text.split(b'"')  # structure, string, structure, string, …, structure
    _check_sizes(len(body), pieces)
    open_objects: list[set[bytes] | None] = []  # keys seen so far; None = an array
    num_brackets = 0
    for index in range(0, len(pieces), 2):
        structure = pieces[index].translate(None, _NOT_STRUCTURE)
        num_brackets += len(structure)
        if num_brackets > 2 * MAX_VALUES:
            raise InvalidRequest(f"the body has more than {MAX_VALUES} values")
        for byte in structure:
            if byte in _OPEN:
                open_objects.append(set() if byte == 0x7B else None)
                if len(open_objects) > MAX_DEPTH:
                    raise InvalidRequest(f"the body is nested deeper than {MAX_DEPTH} levels")
            elif byte in _CLOSE:
                if open_objects:
                    open_objects.pop()
            elif index and open_objects and open_objects[-1] is not None:
                _add_key(open_objects[-1], pieces[index - 1])
    short = [
        b"" if index % 2 and len(piece) > _LONG_BYTES else piece
        for index, piece in enumerate(pieces)
    ]
    return b'"'.join(short).replace(_QUOTE, b'\\"').replace(_BACKSLASH, b"\\\\")


def _check_sizes(num_bytes: int, pieces: list[bytes]) -> None:
    if len(pieces) > 2 * MAX_VALUES:
        raise InvalidRequest(f"the body has more than {MAX_VALUES} values")
    if num_bytes > MAX_TEXT_BYTES:
        num_bytes -= sum(len(piece) for piece in pieces[1::2] if piece.startswith(b"data:"))
        if num_bytes > MAX_TEXT_BYTES:
            raise InvalidRequest(
                f"the body has more than {MAX_TEXT_BYTES} bytes beside its data: addresses"
            )


def _add_key(keys: set[bytes], key: bytes) -> None:
    if b"\\" in key:  # \u006e is the letter n
        key = _text(key).encode("utf-8", "surrogatepass")
    if key in keys:
        name = _text(key)[:64]
        raise InvalidRequest(f"the key {name!r} appears twice in one object", param=name)
    if len(keys) == MAX_KEYS:
        raise InvalidRequest(f"an object has more than {MAX_KEYS} keys")
    keys.add(key)


def _text(key: bytes) -> str:
    escaped = key.replace(_BACKSLASH, b"\\\\").replace(_QUOTE, b'\\"')
    if b"\\" not in escaped:
        return escaped.decode("utf-8", "replace")
    try:
        return msgspec.json.decode(b'"' + escaped + b'"', type=str)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return escaped.decode("utf-8", "replace")
