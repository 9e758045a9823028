"""Writes one file of the FP8 checkpoint from one file of the source."""

import os
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from glimt.errors import BadCheckpoint
from glimt.models.quantize import quantize_rows, row_scales
from glimt.quantization.layout import SCALE_BYTES, ShardPlan
from glimt.quantization.slices import DataFile, Slice, for_each, slices_of


def write_shard(shard: ShardPlan, path: Path, advance: Callable[[int], object]) -> None:
    """Write `shard` to `path` and have it on the disk, not only in memory, when this returns.

    The numbers are those of `--quantization fp8` at load: the same functions, row by row.
    Raises BadCheckpoint for a weight that is not finite, OSError if the disk is full.
    """
    out = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
    try:
        _write(out, 0, shard.header)
        os.ftruncate(out, shard.num_bytes)
        with DataFile(shard.source) as source:
            for_each(
                slices_of(shard),
                lambda piece: _write_slice(piece, source, out, len(shard.header)),
                advance,
            )
        os.fsync(out)
    finally:
        os.close(out)


def _write_slice(piece: Slice, source: DataFile, out: int, data_start: int) -> None:
    tensor = piece.tensor
    count = piece.stop - piece.start
    at = tensor.stored.offset + piece.start * tensor.stored_row_bytes
    into = data_start + tensor.offset + piece.start * tensor.row_bytes
    if tensor.scale_offset is None:
        _write(out, into, source.read(at, piece.source_bytes))
        return
    weight = source.rows(at, count, tensor.stored_row_bytes, tensor.stored.dtype)
    scale = row_scales(weight)
    if not scale.isfinite().all():
        row = piece.start + int((~scale.isfinite()).nonzero()[0])
        raise BadCheckpoint(
            f"{tensor.stored.name} in {source.path} is not finite in row {row}: it holds NaN or "
            "infinity, of which no FP8 can be made; download the file again"
        )
    _write(out, into, _bytes(quantize_rows(weight, scale)))
    _write(out, data_start + tensor.scale_offset + piece.start * SCALE_BYTES, _bytes(scale))


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.contiguous().view(torch.uint8).numpy().reshape(-1).data


def _write(out: int, offset: int, content: bytes | bytearray | memoryview) -> None:
    view = memoryview(content)
    while view:
        count = os.pwrite(out, view, offset)
        view, offset = view[count:], offset + count
