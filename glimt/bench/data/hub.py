"""`--dataset-name hf`: known datasets from parquet: a file, a folder, the hub or its cache.

Rows come shuffled as a stream: the files in an order drawn from the seed, and rows within windows
of 1000. (The `datasets` library does the same, with other draws in each of its versions.)
"""

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as Pictures
from PIL import UnidentifiedImageError

from glimt.bench.data.hub_files import cached_dataset, download, list_dataset
from glimt.bench.data.images import jpeg_image
from glimt.bench.data.lengths import fits
from glimt.bench.data.prompt import Image, Prompt, Turn
from glimt.bench.data.tokens import Tokens, estimate
from glimt.bench.optional import optional
from glimt.bench.options import DataOptions
from glimt.errors import BadSettings

OUTPUT_LEN = 128
_WINDOW = 1000
_SPARE = 4  # rows drawn for each prompt where some are too short or too long
_BATCH = 64
_INSTALL = "pip install 'glimt[bench]'"

Row = dict[str, Any]


@dataclass(frozen=True)
class _Kind:
    """How to read the rows of a dataset."""

    column: str  # of the texts
    texts: Callable[[Any], list[str]]  # the user's turns in it
    image: str  # the column of the image, or of several, of which the first is sent
    reference: Callable[[Any], str] | None = None  # the answer, where it says how long ours is


def _user_turns(turns: Any) -> list[str]:
    """Texts of the user's turns in a list of turns, each a list of messages."""
    messages = [turn[0] if isinstance(turn, list) else turn for turn in turns]
    return [str(each["content"]) for each in messages if each.get("role", "user") == "user"]


def _human_turns(messages: Any) -> list[str]:
    return [str(each["value"]) for each in messages[::2]]


def _question(text: Any) -> list[str]:
    """Without the options to choose from, as vLLM's client asks it."""
    return [str(text).split("Options:", 1)[0].strip()]


_KINDS = {
    "lmarena-ai/VisionArena-Chat": _Kind("conversation", _user_turns, "images"),
    "lmarena-ai/vision-arena-bench-v0.1": _Kind("turns", _user_turns, "images"),
    "Lin-Chen/MMStar": _Kind("question", _question, "image"),
    "lmms-lab/LLaVA-OneVision-Data": _Kind(
        "conversations", _human_turns, "image", lambda messages: str(messages[1]["value"])
    ),
}


def hub_prompts(
    options: DataOptions, tokens: Tokens | None, num_prompts: int, seed: int
) -> Iterator[Prompt]:
    """Text first, then the first image as a JPEG; one turn, or --turns of the conversation."""
    if options.dataset_path is None:
        raise BadSettings("--dataset-name hf needs --dataset-path: a hub name, a folder or a file")
    name = options.hf_name or options.dataset_path
    kind = _KINDS.get(name)
    if kind is None:
        known = ", ".join(_KINDS)
        raise BadSettings(
            f"--dataset-name hf knows {known}; {name} is none of them (give --hf-name if a folder "
            "is a copy of one, or write --dataset-name custom_image)"
        )
    given = options.output_len or options.hf_output_len
    num_rows = num_prompts * (1 if kind.reference is None else _SPARE)
    columns = {kind.column, kind.image}
    for row in shuffled_rows(parquet_files(options, seed), options, columns, num_rows, seed):
        texts = kind.texts(row[kind.column])[: options.turns] or [""]
        output_len = given or OUTPUT_LEN
        if kind.reference is not None and given is None:
            if len(row[kind.column]) < 2:
                continue
            output_len = estimate(kind.reference(row[kind.column]), tokens)
            if not fits(estimate(texts[0], tokens), output_len, is_given=False):
                continue
        stored = row.get(kind.image) or []
        images = stored if isinstance(stored, list) else [stored]
        first = (texts[0], _image(images[0])) if images else (texts[0],)
        yield Prompt(
            turns=tuple(
                Turn(
                    parts=first if index == 0 else (text,),
                    output_tokens=output_len,
                    text_tokens=tokens.count(text) if tokens else None,
                )
                for index, text in enumerate(texts)
            )
        )


def parquet_files(options: DataOptions, seed: int) -> Iterator[Path]:
    """The files of the dataset's split, in the order drawn; those of the hub as they are needed."""
    where = str(options.dataset_path)
    path = Path(where).expanduser()
    split = options.hf_split or "train"
    if path.is_file():
        yield path
        return
    if path.is_dir():
        names = [str(file) for file in path.rglob("*.parquet")]
        for name in _order(_of_split(names, options.hf_subset, split), options, seed):
            yield Path(name)
        return
    if where.count("/") != 1 or where.startswith(("/", ".")):
        raise BadSettings(f"--dataset-path {where}: neither a file, a folder nor a hub name")
    yield from _from_hub(where, options, split, seed)


def _from_hub(name: str, options: DataOptions, split: str, seed: int) -> Iterator[Path]:
    """Files as they are needed; from an earlier download where the hub cannot be asked."""
    try:
        names = [file for file in list_dataset(name) if file.endswith(".parquet")]
    except BadSettings as error:
        folder = cached_dataset(name)
        if folder is None:
            raise BadSettings(
                f"--dataset-path {name}: {error.message}, and there is no earlier download; give a "
                "folder with its parquet files and --hf-name, or take --dataset-name "
                "visionarena-like, which needs no network"
            ) from None
        names = [str(file) for file in folder.rglob("*.parquet")]
    for file in _order(_of_split(names, options.hf_subset, split), options, seed):
        path = Path(file)
        yield path if path.is_absolute() else download(name, file, is_dataset=True)


def _of_split(names: list[str], subset: str | None, split: str) -> list[str]:
    """Files of a split, by the hub's custom of naming them after it; all if none is."""
    if subset is not None:
        names = [name for name in names if subset in Path(name).parts]
    named = [name for name in names if Path(name).name.startswith(split)]
    if not (named or names):
        raise BadSettings("--dataset-path: there are no parquet files of this subset and split")
    return sorted(named or names)


def _order(names: list[str], options: DataOptions, seed: int) -> list[str]:
    if options.disable_shuffle:
        return names
    return [names[index] for index in np.random.default_rng(seed).permutation(len(names))]


def shuffled_rows(
    files: Iterator[Path], options: DataOptions, columns: set[str], num_rows: int, seed: int
) -> Iterator[Row]:
    """Rows, shuffled in windows; or (--no-stream) `num_rows` of all, if there are as many."""
    random = np.random.default_rng((seed, 1))
    if options.no_stream and not options.disable_shuffle:
        yield from _sampled(list(files), columns, num_rows, random)
        return
    window: list[Row] = []
    for row in _rows(files, columns):
        if options.disable_shuffle:
            yield row
        else:
            window.append(row)
        if len(window) == _WINDOW:
            yield from (window[index] for index in random.permutation(_WINDOW))
            window = []
    yield from (window[index] for index in random.permutation(len(window)))


def _rows(files: Iterator[Path], columns: set[str]) -> Iterator[Row]:
    parquet = optional("pyarrow.parquet", "--dataset-name hf", _INSTALL)
    for path in files:
        with _opened(parquet, path) as file:
            names = [name for name in file.schema_arrow.names if name in columns]
            for batch in file.iter_batches(batch_size=_BATCH, columns=names):
                yield from batch.to_pylist()


def _sampled(
    files: list[Path], columns: set[str], num_rows: int, random: np.random.Generator
) -> Iterator[Row]:
    """Rows drawn from all files without repetition, in the order drawn."""
    parquet = optional("pyarrow.parquet", "--dataset-name hf", _INSTALL)
    total = 0
    for path in files:
        with _opened(parquet, path) as file:
            total += file.metadata.num_rows
    drawn = [int(each) for each in random.permutation(total)[:num_rows]]
    place = {row: rank for rank, row in enumerate(drawn)}
    found = [(place[i], row) for i, row in enumerate(_rows(iter(files), columns)) if i in place]
    yield from (row for _, row in sorted(found, key=lambda pair: pair[0]))


def _opened(parquet: Any, path: Path) -> Any:
    try:
        return parquet.ParquetFile(path)
    except (OSError, ValueError) as error:  # pyarrow's errors are subclasses of these
        raise BadSettings(f"{path} cannot be read as parquet: {error}") from None


def _image(stored: Any) -> Image:
    """An image as the hub stores it, encoded again as vLLM's client would."""
    encoded: Any = stored.get("bytes") if isinstance(stored, dict) else stored
    try:
        with Pictures.open(io.BytesIO(encoded)) as picture:
            return jpeg_image(picture)
    except (OSError, TypeError, UnidentifiedImageError) as error:
        raise BadSettings(f"the dataset holds an image that cannot be read: {error}") from None
