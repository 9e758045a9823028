"""The weight files as they claim to be: index and safetensors headers, read and distrusted.

Only headers are read here (a few MB of a 200 GB checkpoint), and everything that a header can get
wrong is found before a weight is touched. Imports no torch.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from glimt.checkpoint import checkpoint_file, read_json
from glimt.errors import BadCheckpoint

INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_MAX_HEADER_BYTES = 100 * 2**20
_MAX_LISTED = 40
_ITEM_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64"), 8),
}


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor of a weight file; `offset` and `num_bytes` lie within the file's data."""

    name: str
    file: Path
    dtype: str  # as safetensors writes it: BF16, F8_E4M3, …
    shape: tuple[int, ...]
    offset: int
    num_bytes: int


def read_headers(folder: Path) -> dict[str, StoredTensor]:
    """Every tensor of the checkpoint in `folder`, by name.

    Raises BadCheckpoint with all problems: a missing, truncated or corrupt file, an index that
    disagrees with the files, a tensor stored twice.
    """
    index = _read_index(folder)
    names = sorted(set(index.values())) if index is not None else _unindexed(folder)
    stored: dict[str, StoredTensor] = {}
    problems: list[str] = []
    for name in names:
        try:
            tensors = _read_header(checkpoint_file(folder, name))
        except BadCheckpoint as error:
            problems.append(error.message)
            continue
        for tensor in tensors:
            if index is not None and index.get(tensor.name) not in (None, name):
                problems.append(
                    f"{tensor.name} lies in {name}, but the index says {index[tensor.name]}"
                )
            elif tensor.name in stored:
                problems.append(
                    f"{tensor.name} is stored twice: in {stored[tensor.name].file.name} and {name}"
                )
            elif index is not None and tensor.name not in index:
                problems.append(f"{tensor.name} lies in {name}, but not in the index")
            stored.setdefault(tensor.name, tensor)
        problems += _absent(index, name, {tensor.name for tensor in tensors})
    if problems:
        more = len(problems) - _MAX_LISTED
        shown = problems[:_MAX_LISTED] + ([f"and {more} more"] if more > 0 else [])
        raise BadCheckpoint(
            f"the weight files in {folder} are damaged or incomplete; download them again:", shown
        )
    return stored


def _absent(index: dict[str, str] | None, file: str, present: set[str]) -> list[str]:
    """Tensors that the index promises in `file` and that are not there."""
    promised = sorted(name for name, where in (index or {}).items() if where == file)
    return [
        f"{name} should lie in {file} (says the index) and does not"
        for name in promised
        if name not in present
    ]


def _read_index(folder: Path) -> dict[str, str] | None:
    path = folder / INDEX
    if not path.exists() and not path.is_symlink():
        return None
    weight_map = read_json(checkpoint_file(folder, INDEX)).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise BadCheckpoint(f"{path} has no weight_map; download it again")
    for name, file in weight_map.items():
        if not isinstance(file, str) or not file.endswith(".safetensors"):
            raise BadCheckpoint(f"{path}: {name} lies in {file!r}, which is no safetensors file")
    return weight_map


def _unindexed(folder: Path) -> list[str]:
    """Without an index: model.safetensors, or else all safetensors files together."""
    if (folder / _SINGLE).exists():
        return [_SINGLE]
    names = sorted(path.name for path in folder.glob("*.safetensors"))
    if not names:
        raise BadCheckpoint(
            f"there are no weights in {folder}: neither {INDEX} nor *.safetensors (other formats "
            "are not read)"
        )
    return names


# --------------------------------------------------------------------------------- one file


def _read_header(path: Path) -> list[StoredTensor]:
    """The tensors of one file, proven to tile its data exactly."""
    with path.open("rb") as file:
        file_bytes = file.seek(0, 2)
        file.seek(0)
        header_bytes = int.from_bytes(file.read(8), "little")
        if file_bytes < 8 or header_bytes > file_bytes - 8:
            raise BadCheckpoint(f"{path} is cut off ({file_bytes:,} bytes)")
        if header_bytes > _MAX_HEADER_BYTES:
            raise BadCheckpoint(f"{path} has a header of {header_bytes:,} bytes; it is corrupt")
        header = file.read(header_bytes)
    try:
        if not header.startswith(b"{"):
            raise ValueError("it does not begin with an object")
        entries = json.loads(header.decode("utf-8"), object_pairs_hook=_unique_keys)
        entries.pop("__metadata__", None)
        tensors = [_tensor(path, name, entry) for name, entry in entries.items()]
    except (ValueError, RecursionError) as error:
        raise BadCheckpoint(f"{path} has a corrupt header: {error}") from None
    _check_tiling(path, tensors, file_bytes - 8 - header_bytes)
    return tensors


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique = dict(pairs)
    if len(unique) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"{twice!r} occurs twice")
    return unique


def _tensor(path: Path, name: str, entry: Any) -> StoredTensor:
    """One entry of a header. Raises ValueError."""
    if not isinstance(entry, dict):
        raise ValueError(f"{name} is not described by an object")
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in _ITEM_BYTES:
        raise ValueError(f"{name} has the unknown type {dtype!r}")
    if not _naturals(shape) or not _naturals(offsets) or len(offsets) != 2:
        raise ValueError(f"{name} has shape {shape!r} at {offsets!r}")
    num_bytes = _ITEM_BYTES[dtype]
    for size in shape:
        num_bytes *= size
    if offsets[1] - offsets[0] != num_bytes:
        raise ValueError(
            f"{name} ({dtype} {shape}) needs {num_bytes:,} bytes and has "
            f"{offsets[1] - offsets[0]:,}"
        )
    return StoredTensor(name, path, dtype, tuple(shape), offsets[0], num_bytes)


def _naturals(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _check_tiling(path: Path, tensors: list[StoredTensor], data_bytes: int) -> None:
    """No gap, no overlap, nothing behind the end."""
    end = 0
    for tensor in sorted(tensors, key=lambda tensor: (tensor.offset, tensor.num_bytes)):
        if tensor.offset != end:
            kind = "overlaps the tensor before it" if tensor.offset < end else "lies behind a gap"
            raise BadCheckpoint(f"{path} is corrupt: {tensor.name} {kind}")
        end += tensor.num_bytes
    if end > data_bytes:
        raise BadCheckpoint(f"{path} is cut off: {end - data_bytes:,} bytes of weights are missing")
    if end < data_bytes:
        raise BadCheckpoint(f"{path} is corrupt: {data_bytes - end:,} bytes belong to no tensor")
