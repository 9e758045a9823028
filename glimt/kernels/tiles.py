"""The shapes of the kernels' tiles: a table for each GPU's kind, and a rule for what it lacks.

`tiles.json` is data, written by `python -m benchmarks.kernels --tune` on an H200: by the name of
the GPU, product, outputs × inputs, and bucket of rows the fastest of the candidates that it tried,
where it is clearly faster than the rule. Without a GPU it is not read, and GPUs of other names have
no part of it: the rules serve these.
"""

import functools
import json
from pathlib import Path
from typing import Any, NamedTuple

import torch

# Whether the table counts; else the rules serve everywhere.
TUNED = True

_NUM_PROCESSORS = 132  # of an H100 or H200

# Rows; a product with more than one bucket's takes the next one's tile. Experts of up to 4 tokens
# have a rule of their own, and so a bucket: what was measured of 16 does not hold for them.
_LINEAR_BUCKETS = (1, 16, 32, 64)
_EXPERT_BUCKETS = (1, 4, 16, 32, 64)


class LinearTile(NamedTuple):
    """A tile of `triton_linear`: outputs × inputs of a step, and the number of parts.

    `way`: how weights come to be multiplied. "copy": by asynchronous copies to shared memory, for
    tensor cores; "tma": likewise whole blocks by TMA, and scales that are still to be found are
    when the first blocks are on their way; "fma": to registers, without tensor cores, for a single
    row (there a step is 512 inputs for each warp, `stages` is 2 or 3).
    """

    block_o: int
    block_i: int
    parts: int
    warps: int
    stages: int
    way: str = "copy"


class ExpertTile(NamedTuple):
    """A tile of `triton_experts`: outputs × inputs of a step."""

    block_o: int
    block_i: int
    warps: int
    stages: int


def linear_tile(num_outputs: int, num_inputs: int, num_rows: int) -> LinearTile:
    """The table's tile for a product, or the rule's."""
    found = _lookup("fp8_linear", num_outputs, num_inputs, num_rows, _LINEAR_BUCKETS)
    return LinearTile(**found) if found else linear_rule(num_outputs, num_inputs)


def linear_rule(num_outputs: int, num_inputs: int) -> LinearTile:
    """One with about two programs for each processor."""
    tiles = -(-num_outputs // 64)
    parts = 1
    while tiles * parts < 3 * _NUM_PROCESSORS // 2 and parts < 8 and num_inputs >= 1024 * parts:
        parts *= 2
    return LinearTile(64, 256 if num_inputs >= 1024 else 128, parts, 4, 3)


def gate_up_tile(width: int, num_inputs: int, num_rows: int) -> ExpertTile:
    """The tile of the experts' first product; block_o counts gates, and as many ups beside them."""
    found = _lookup("gate_up", width, num_inputs, num_rows, _EXPERT_BUCKETS)
    return ExpertTile(**found) if found else gate_up_rule(num_rows)


def gate_up_rule(num_rows: int) -> ExpertTile:
    """Few rows make few tiles: smaller ones give each processor of an H200 three."""
    return ExpertTile(32 if num_rows <= 4 else 64, 128, 4, 4)


def down_tile(num_outputs: int, width: int, num_rows: int) -> ExpertTile:
    """The tile of the experts' second product."""
    found = _lookup("down", num_outputs, width, num_rows, _EXPERT_BUCKETS)
    return ExpertTile(**found) if found else down_rule(num_rows)


def down_rule(num_rows: int) -> ExpertTile:
    """Three steps ahead, six programs share a processor, and few rows' tiles run all at once."""
    return ExpertTile(64, 128, 4, 3 if num_rows <= 4 else 4)


def _lookup(
    product: str, num_outputs: int, num_inputs: int, num_rows: int, buckets: tuple[int, ...]
) -> dict[str, Any]:
    """The entry of the smallest bucket that so many rows fit in, or of the largest."""
    if not TUNED or not gpu_name():
        return {}
    bucket = next((size for size in buckets if num_rows <= size), buckets[-1])
    by_size = _table().get(gpu_name(), {}).get(product, {})
    by_rows = by_size.get(f"{num_outputs}x{num_inputs}", {})
    found: dict[str, Any] = by_rows.get(str(bucket), {})
    return found


@functools.cache
def gpu_name() -> str:
    """What the table calls the GPUs of this machine; empty without one."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else ""


@functools.cache
def _table() -> dict[str, Any]:
    text = Path(__file__).with_name("tiles.json").read_text("utf-8")
    table: dict[str, Any] = json.loads(text)
    return table
