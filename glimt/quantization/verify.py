"""Reads an FP8 checkpoint back and says, module by module, how far it is from its source."""

import json
import math
import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from glimt.models.quantize import quantize_rows, row_scales
from glimt.quantization.layout import FP8, SCALE, SCALE_BYTES, ShardPlan
from glimt.quantization.slices import DataFile, Slice, for_each, slices_of
from glimt.quantization.workspace import is_whole


@dataclass(frozen=True, slots=True)
class ModuleError:
    """Dequantised against stored weights w of one module.

    relative_rms_error: sqrt(sum (w' - w)² / sum w²). max_error: the largest |w' - w|.
    """

    module: str
    file: str
    max_error: float
    relative_rms_error: float
    max_weight: float


@dataclass(frozen=True)
class Report:
    """`modules`: worst relative RMS first. `problems`: what is not as quantising makes it."""

    modules: tuple[ModuleError, ...]
    relative_rms_error: float  # of all quantised weights together
    num_unchanged: int  # tensors that are byte for byte those of the source
    problems: tuple[str, ...]
    bad_files: tuple[str, ...]

    def as_json(self, source: str, target: str) -> str:
        """The report as a document."""
        content: dict[str, Any] = {"source": source, "target": target, **asdict(self)}
        return json.dumps(content, indent=2) + "\n"


@dataclass
class _Sums:
    """What the slices of one module add up to; sums are kept apart to be exact in any order."""

    file: str
    squares: list[float] = field(default_factory=list)
    error_squares: list[float] = field(default_factory=list)
    max_error: float = 0.0
    max_weight: float = 0.0


def verify(shards: Sequence[ShardPlan], folder: Path, advance: Callable[[int], object]) -> Report:
    """Compare the FP8 files in `folder` with the source that `shards` were planned from."""
    sums: dict[str, _Sums] = {}
    changed: dict[str, set[str]] = defaultdict(set)  # per file
    num_copied = 0
    for shard in shards:
        if not is_whole(shard, folder / shard.name):
            changed[shard.name].add("header or length")
            advance(shard.source_bytes)
            continue
        num_copied += sum(tensor.scale_offset is None for tensor in shard.tensors)
        with DataFile(shard.source) as source, DataFile(folder / shard.name) as made:
            comparison = _Comparison(source, made, sums, changed[shard.name])
            for_each(slices_of(shard), comparison.add, advance)
    modules = [_module(name, total) for name, total in sums.items()]
    modules.sort(key=lambda module: (-module.relative_rms_error, module.module))
    problems = [
        f"{file}: {name} is not what quantising the source gives"
        for file in sorted(changed)
        for name in sorted(changed[file])
    ]
    copied_names = {t.name for s in shards for t in s.tensors if t.scale_offset is None}
    num_changed = sum(len(names & copied_names) for names in changed.values())
    errors = math.fsum(x for total in sums.values() for x in total.error_squares)
    squares = math.fsum(x for total in sums.values() for x in total.squares)
    return Report(
        modules=tuple(modules),
        relative_rms_error=_ratio(errors, squares),
        num_unchanged=num_copied - num_changed,
        problems=tuple(problems),
        bad_files=tuple(sorted(file for file, names in changed.items() if names)),
    )


class _Comparison:
    """Takes slices of one pair of files, from several threads."""

    def __init__(
        self, source: DataFile, made: DataFile, sums: dict[str, _Sums], changed: set[str]
    ) -> None:
        self._source = source
        self._made = made
        self._sums = sums
        self._changed = changed
        self._lock = threading.Lock()

    def add(self, piece: Slice) -> None:
        """Compare one slice."""
        tensor = piece.tensor
        at = tensor.stored.offset + piece.start * tensor.stored_row_bytes
        into = tensor.offset + piece.start * tensor.row_bytes
        if tensor.scale_offset is None:
            same = self._source.read(at, piece.source_bytes) == self._made.read(
                into, piece.source_bytes
            )
            if not same:
                self._note_changed(tensor.name)
            return
        count = piece.stop - piece.start
        weight = self._source.rows(at, count, tensor.stored_row_bytes, tensor.stored.dtype)
        made = self._made.rows(into, count, tensor.row_bytes, FP8)
        scale_at = tensor.scale_offset + piece.start * SCALE_BYTES
        scale = self._made.rows(scale_at, count, SCALE_BYTES, SCALE)[:, 0]
        if not _as_quantised(weight, made, scale):
            self._note_changed(tensor.name)
        self._note_error(piece, weight.float(), made.float().mul_(scale[:, None]))

    def _note_changed(self, name: str) -> None:
        with self._lock:
            self._changed.add(name)

    def _note_error(self, piece: Slice, weight: Tensor, dequantised: Tensor) -> None:
        if not dequantised.isfinite().all():
            return  # it is noted as changed; a number would say nothing
        error = dequantised.sub_(weight).flatten()
        weight = weight.flatten()
        max_error, max_weight = (float(t.abs().max()) for t in (error, weight))
        error_square, square = float(error.dot(error)), float(weight.dot(weight))
        with self._lock:
            total = self._sums.setdefault(piece.tensor.module, _Sums(piece.tensor.stored.file.name))
            total.error_squares.append(error_square)
            total.squares.append(square)
            total.max_error = max(total.max_error, max_error)
            total.max_weight = max(total.max_weight, max_weight)


def _as_quantised(weight: Tensor, made: Tensor, scale: Tensor) -> bool:
    expected = row_scales(weight)
    return torch.equal(expected, scale) and torch.equal(
        quantize_rows(weight, expected).view(torch.uint8), made.view(torch.uint8)
    )


def _module(name: str, total: _Sums) -> ModuleError:
    return ModuleError(
        module=name,
        file=total.file,
        max_error=total.max_error,
        relative_rms_error=_ratio(math.fsum(total.error_squares), math.fsum(total.squares)),
        max_weight=total.max_weight,
    )


def _ratio(error_squares: float, squares: float) -> float:
    return math.sqrt(error_squares / squares) if squares else 0.0
