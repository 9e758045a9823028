"""The files beside the weights: config.json with the scheme, the index, and copies of the rest."""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glimt.checkpoint import checkpoint_file, read_json
from glimt.errors import BadCheckpoint
from glimt.models.config import ModelConfig
from glimt.models.shards import INDEX
from glimt.quantization.layout import ShardPlan
from glimt.quantization.scheme import quantization_config

CONFIG = "config.json"
_COPIED = (".json", ".jinja", ".md", ".txt")
_COPIED_BARE = ("LICENSE", "NOTICE")
# Not copied and not worth a word: weights (they are quantised) and what git keeps for itself.
_SILENT = (".safetensors", ".gitattributes", ".gitignore")


def companion_files(source: Path) -> tuple[list[Path], list[str]]:
    """Files of `source` to copy, and names of files that are left out.

    Only kinds that hold no code are copied. Raises BadCheckpoint for links out of the folder.
    """
    copied, left_out = [], []
    for path in sorted(source.iterdir()):
        name = path.name
        if name == CONFIG or name.endswith((".index.json", *_SILENT)) or path.is_dir():
            continue
        if name.startswith(".") or not (name.endswith(_COPIED) or name in _COPIED_BARE):
            left_out.append(name)
            continue
        try:
            copied.append(checkpoint_file(source, name))
        except BadCheckpoint as error:
            raise BadCheckpoint(f"{error.message} (or remove it: it is not a weight)") from None
    return copied, left_out


def write_companions(
    source: Path, folder: Path, config: ModelConfig, shards: Sequence[ShardPlan]
) -> None:
    """Write everything but weights into `folder`, each file on the disk when this returns."""
    for path in companion_files(source)[0]:
        _write(folder / path.name, path.read_bytes())
    values = read_json(checkpoint_file(source, CONFIG))
    values["quantization_config"] = quantization_config(config)
    _write(folder / CONFIG, _json(values))
    _write(folder / INDEX, _json(_index(shards)))


@dataclass(frozen=True)
class CompanionReport:
    """`problems`: what keeps the checkpoint from being served as it should be. `notes`: what was
    changed since, perhaps on purpose (a chat template)."""

    problems: tuple[str, ...]
    notes: tuple[str, ...]


def check_companions(
    source: Path, folder: Path, config: ModelConfig, shards: Sequence[ShardPlan]
) -> CompanionReport:
    """Compare everything but weights in `folder` with what `write_companions` writes."""
    problems, notes = [], []
    values = _values(folder / CONFIG)
    if values.pop("quantization_config", None) != quantization_config(config):
        problems.append(f"{CONFIG}: its quantization_config is not that of this scheme")
    elif values != _without_scheme(read_json(checkpoint_file(source, CONFIG))):
        notes.append(f"{CONFIG} differs from the source's")
    if _values(folder / INDEX).get("weight_map") != _index(shards)["weight_map"]:
        problems.append(f"{INDEX}: its weight_map is not that of the files")
    for path in companion_files(source)[0]:
        copy = folder / path.name
        if not copy.is_file():
            problems.append(f"{path.name} is missing")
        elif copy.read_bytes() != path.read_bytes():
            notes.append(f"{path.name} differs from the source's")
    planned = {shard.name for shard in shards}
    names = sorted(path.name for path in folder.glob("*.safetensors"))
    notes += [f"{name} does not belong to it" for name in names if name not in planned]
    return CompanionReport(tuple(problems), tuple(notes))


def _values(file: Path) -> dict[str, Any]:
    try:
        return dict(read_json(file))
    except (BadCheckpoint, OSError):
        return {}


def _without_scheme(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name != "quantization_config"}


def _index(shards: Sequence[ShardPlan]) -> dict[str, Any]:
    """Where each tensor lies, and the bytes of all of them together."""
    total = sum(shard.num_bytes - len(shard.header) for shard in shards)
    return {"metadata": {"total_size": total}, "weight_map": dict(sorted(_places(shards)))}


def _places(shards: Sequence[ShardPlan]) -> Iterator[tuple[str, str]]:
    for shard in shards:
        yield from ((name, shard.name) for name in shard.weight_names)


def _json(values: dict[str, Any]) -> bytes:
    return (json.dumps(values, indent=2, ensure_ascii=False) + "\n").encode()


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
