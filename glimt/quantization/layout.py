"""What each file of the FP8 checkpoint holds, decided by headers alone before a weight is read.

Each weight file of the source gives one file of the same name: its tensors under the published
names, projections of the text layers in FP8 with a float32 `weight_scale` [out, 1] beside them, all
else byte for byte. The headers are made here, so a file is finished exactly if it has this header
and this length.
"""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glimt.models.names import scale_name
from glimt.models.shards import StoredTensor
from glimt.models.weight_plan import WeightPlan

FP8 = "F8_E4M3"
SCALE = "F32"
SCALE_BYTES = 4
ITEM_BYTES = {FP8: 1, "BF16": 2, "F16": 2, SCALE: 4}


@dataclass(frozen=True, slots=True)
class OutputTensor:
    """One tensor on its way from a file of the source to a file of the result.

    It travels in rows: a row of a quantised matrix is one output's weights, any other tensor is a
    column of bytes. Offsets lie within the data of the output file.
    """

    name: str
    stored: StoredTensor
    offset: int
    num_rows: int
    stored_row_bytes: int
    row_bytes: int
    scale_offset: int | None  # None = copied as it is

    @property
    def module(self) -> str:
        """The module as the checkpoint calls it."""
        return self.name.removesuffix(".weight")


@dataclass(frozen=True, slots=True)
class ShardPlan:
    """One file to write: `header` (its first bytes, length included), then the tensors' data."""

    name: str
    source: Path
    header: bytes
    tensors: tuple[OutputTensor, ...]
    num_bytes: int  # of the whole file
    source_bytes: int  # that are read for it
    weight_names: tuple[str, ...]  # all that it holds, scales included


def plan_shards(plan: WeightPlan, stored: dict[str, StoredTensor]) -> tuple[ShardPlan, ...]:
    """All files to write, in the order of their names.

    Args:
        plan: of `inspect` with quantization="fp8", whole.
        stored: of `read_headers`, for the same folder.
    """
    files = []
    for file in sorted(plan.tasks):
        pieces = [
            (task.source.name, stored[task.stored_name], task.action == "quantize")
            for task in plan.tasks[file]
        ]
        files.append(_shard(file, pieces))
    return tuple(files)


def _shard(file: Path, pieces: Sequence[tuple[str, StoredTensor, bool]]) -> ShardPlan:
    entries = [entry for piece in pieces for entry in _entries(*piece)]
    # Larger items first, as safetensors' own writer does: then each lies at a multiple of its size.
    entries.sort(key=lambda entry: -ITEM_BYTES[entry[1]])
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offsets: dict[str, int] = {}
    end = 0
    for name, dtype, shape in entries:
        start, end = end, end + ITEM_BYTES[dtype] * math.prod(shape)
        offsets[name] = start
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    head = len(text).to_bytes(8, "little") + text
    return ShardPlan(
        name=file.name,
        source=file,
        header=head,
        tensors=tuple(_tensor(name, tensor, fp8, offsets) for name, tensor, fp8 in pieces),
        num_bytes=len(head) + end,
        source_bytes=sum(tensor.num_bytes for _, tensor, _ in pieces),
        weight_names=tuple(offsets),
    )


def _entries(
    name: str, stored: StoredTensor, quantize: bool
) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """(name, dtype, shape) of what becomes of one stored tensor."""
    yield name, FP8 if quantize else stored.dtype, stored.shape
    if quantize:
        yield scale_name(name), SCALE, (stored.shape[0], 1)


def _tensor(
    name: str, stored: StoredTensor, quantize: bool, offsets: dict[str, int]
) -> OutputTensor:
    if not quantize:
        return OutputTensor(name, stored, offsets[name], stored.num_bytes, 1, 1, None)
    num_rows, width = stored.shape
    return OutputTensor(
        name=name,
        stored=stored,
        offset=offsets[name],
        num_rows=num_rows,
        stored_row_bytes=stored.num_bytes // num_rows,
        row_bytes=width,
        scale_offset=offsets[scale_name(name)],
    )
