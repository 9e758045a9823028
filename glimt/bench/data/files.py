"""Prompts from local files: `sharegpt`, `custom`, `custom_image`, `burstgpt`, `timed_trace`."""

import csv
import io
import json
import random
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np
from PIL import Image as Pictures
from PIL import UnidentifiedImageError

from glimt.bench.data.images import jpeg_image
from glimt.bench.data.lengths import fits
from glimt.bench.data.prompt import Image, Prompt, Turn
from glimt.bench.data.random_text import RandomText
from glimt.bench.data.tokens import Tokens, estimate
from glimt.bench.options import DataOptions
from glimt.errors import BadSettings

_FETCH_S = 60.0
_URL_STARTS = ("http://", "https://", "file://", "data:image/")


def sharegpt_prompts(
    options: DataOptions, tokens: Tokens | None, num_prompts: int, seed: int
) -> Iterator[Prompt]:
    """First turns of a ShareGPT file that are neither too short nor too long, with their image."""
    path = _path(options)
    rows = _json(path)
    if not isinstance(rows, list):
        raise BadSettings(f"{path}: must be a JSON list of conversations")
    talks = [row for row in rows if len(row.get("conversations", ())) >= 2]
    _shuffle(talks, options, seed)
    wanted = options.sharegpt_output_len if options.output_len is None else options.output_len
    for row in talks:
        text, reference = (message["value"] for message in row["conversations"][:2])
        count = estimate(text, tokens)
        output_len = estimate(reference, tokens) if wanted is None else wanted
        if not fits(count, output_len, is_given=wanted is not None):
            continue
        if row.get("video"):
            raise BadSettings(f"{path}: has videos, which are not sent here")
        images = [_image(str(row["image"]), options, path)] if row.get("image") else []
        yield _single((text, *images), output_len, count if tokens else None)


def custom_prompts(
    options: DataOptions, tokens: Tokens | None, num_prompts: int, seed: int
) -> Iterator[Prompt]:
    """`prompt` (and `output_tokens`) of each line of a JSONL file."""
    path = _path(options)
    rows = _json_lines(path)
    _shuffle(rows, options, seed)
    for row in rows:
        text = row.get("prompt")
        if not isinstance(text, str):
            raise BadSettings(f"{path}: each line needs a text `prompt`")
        yield _single((text,), _custom_length(options, row, path), _count(text, tokens))


def custom_image_prompts(
    options: DataOptions, tokens: Tokens | None, num_prompts: int, seed: int
) -> Iterator[Prompt]:
    """`prompt` and `image_files`, or `content` parts, of each line of a JSONL file."""
    path = _path(options)
    rows = _json_lines(path)
    _shuffle(rows, options, seed)
    for row in rows:
        if isinstance(row.get("content"), list):
            parts = tuple(_part(part, options, path) for part in row["content"])
        elif isinstance(row.get("prompt"), str):
            images = row.get("image_files", [])
            parts = (row["prompt"], *(_image(str(file), options, path) for file in images))
        else:
            raise BadSettings(f"{path}: each line needs `prompt` and `image_files`, or `content`")
        text = "\n".join(part for part in parts if isinstance(part, str))
        yield _single(parts, _custom_length(options, row, path), _count(text, tokens))


def burstgpt_prompts(
    options: DataOptions, tokens: Tokens | None, num_prompts: int, seed: int
) -> Iterator[Prompt]:
    """Lengths of the GPT-4 rows of a BurstGPT CSV, with made-up texts (arrival times unused)."""
    path = _path(options)
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = [
                (int(row["Request tokens"]), int(row["Response tokens"]))
                for row in csv.DictReader(file)
                if row["Model"] == "GPT-4" and int(row["Response tokens"]) > 0
            ]
    except (OSError, KeyError, ValueError) as error:
        raise BadSettings(f"{path} is not a BurstGPT CSV: {error!r}") from None
    _shuffle(rows, options, seed)
    made = RandomText(tokens, np.random.default_rng(seed))
    for index, (input_len, output_len) in enumerate(rows):
        text, count = made.text([], index, input_len)
        yield _single((text,), options.output_len or output_len, count)


def timed_trace_prompts(
    options: DataOptions, tokens: Tokens | None, num_prompts: int, seed: int
) -> Iterator[Prompt]:
    """Prompts of token ids from the block hashes of a trace, each with its time.

    Equal hashes give equal tokens, in every process and for every seed, so a server's prefix cache
    sees what it saw in the trace.
    """
    if tokens is None:
        raise BadSettings("timed_trace makes prompts of token ids: give --tokenizer")
    path = _path(options)
    size = options.timed_trace_chunk_hash_size
    names = (
        options.timed_trace_label_timestamp,
        options.timed_trace_label_input_length,
        options.timed_trace_label_output_length,
        options.timed_trace_label_hash_ids,
    )
    for row in _json_lines(path):
        try:
            time, num_in, num_out, blocks = (row[name] for name in names)
            length, output_len, hashes = int(num_in), int(num_out), list(blocks)
            at_s = float(time) * options.timed_trace_sec_multiplier
        except (KeyError, TypeError, ValueError) as error:
            raise BadSettings(f"{path}: a line needs {', '.join(names)} ({error})") from None
        ids: list[int] = []
        for block in hashes:
            ids += _block(block, min(size, length - len(ids)), tokens)
        turn = Turn(
            token_ids=tuple(ids),
            output_tokens=options.output_len or output_len,
            text_tokens=len(ids),
        )
        yield Prompt(turns=(turn,), at_s=at_s)


def _block(block: Any, num_tokens: int, tokens: Tokens) -> list[int]:
    draw = np.random.default_rng(zlib.crc32(f"{block}".encode()))
    return [int(each) for each in draw.integers(0, tokens.vocab_size, size=max(num_tokens, 0))]


def _single(parts: tuple[str | Image, ...], output_len: int, count: int | None) -> Prompt:
    return Prompt(turns=(Turn(parts=parts, output_tokens=output_len, text_tokens=count),))


def _count(text: str, tokens: Tokens | None) -> int | None:
    return tokens.count(text) if tokens else None


def _custom_length(options: DataOptions, row: dict[str, Any], path: Path) -> int:
    if options.output_len is not None:
        return options.output_len
    if options.custom_output_len != -1:
        return options.custom_output_len
    try:
        return int(row["output_tokens"])
    except (KeyError, TypeError, ValueError):
        raise BadSettings(
            f"{path}: --custom-output-len -1 needs a number `output_tokens` in each line"
        ) from None


def _part(part: Any, options: DataOptions, path: Path) -> str | Image:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    if kind == "image" and isinstance(part.get("image"), str):
        return _image(part["image"], options, path)
    if kind == "image_url":
        url = part.get("image_url")
        url = url.get("url") if isinstance(url, dict) else url
        if isinstance(url, str):
            return _image(url, options, path)
    raise BadSettings(f"{path}: a content part must be a text, image or image_url, not {part!r}")


def _image(name: str, options: DataOptions, path: Path) -> Image:
    """An image by address, or by file name (relative to the JSONL file, if it is not here)."""
    is_remote = name.startswith(("http://", "https://"))
    if name.startswith("data:image/"):
        return Image(name)
    if name.startswith(_URL_STARTS) and not options.custom_ensure_client_side_data:
        return Image(name)
    file = Path(name.removeprefix("file://")).expanduser()
    if not (is_remote or file.is_absolute() or file.exists()):
        file = path.parent / file
    if not options.custom_ensure_client_side_data:
        return Image(f"file://{file.resolve()}")
    where = name if is_remote else str(file)
    try:
        encoded = _fetched(name) if is_remote else file.read_bytes()
        with Pictures.open(io.BytesIO(encoded)) as picture:
            return jpeg_image(picture)
    except (OSError, ValueError, UnidentifiedImageError) as error:
        raise BadSettings(f"{path}: the image {where} cannot be read: {error}") from None


def _fetched(url: str) -> bytes:
    with urlopen(url, timeout=_FETCH_S) as answer:
        return bytes(answer.read())


def _path(options: DataOptions) -> Path:
    if options.dataset_path is None:
        raise BadSettings(f"--dataset-name {options.dataset_name} needs --dataset-path")
    return Path(options.dataset_path).expanduser()


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise BadSettings(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise BadSettings(f"{path} cannot be read as JSON: {error}") from None


def _json_lines(path: Path) -> list[dict[str, Any]]:
    rows = []
    try:
        for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
            if line.strip():
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise ValueError(f"line {number} is not a JSON object")
                rows.append(row)
    except OSError as error:
        raise BadSettings(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise BadSettings(f"{path} cannot be read as JSON lines: {error}") from None
    return rows


def _shuffle(rows: Sequence[Any], options: DataOptions, seed: int) -> None:
    """In place, in the order in which vLLM's client shuffles lists."""
    if not options.disable_shuffle and isinstance(rows, list):
        random.Random(seed).shuffle(rows)
