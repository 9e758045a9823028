"""Tries every tile of the kernels' candidates at the models' sizes; the fastest go in a table.

The table has the form of `glimt/kernels/tiles.json`: product, then outputs × inputs, then rows.
Under "measured" are the microseconds of the best tile and of the one that is used today.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from benchmarks.kernels.cases import Inputs
from benchmarks.kernels.measure import MAX_SETS, ROTATED_BYTES, microseconds
from benchmarks.kernels.shapes import linear_products, shape_of
from glimt.kernels import choice, tiles

BUCKETS = (1, 16, 32, 64)

Run = Callable[..., Any]


def tune(
    models: Sequence[str], rows: Sequence[int] | None, device: torch.device, is_quick: bool
) -> dict[str, Any]:
    """The table for all products of `models`."""
    inputs = Inputs(device, torch.bfloat16)
    table: dict[str, Any] = {"fp8_linear": {}, "measured": {}}
    products = {size for model in models for size in linear_products(shape_of(model)).values()}
    for num_out, num_in in sorted(products):
        size = f"{num_out}x{num_in}"
        for count in rows or BUCKETS:
            best = _tune_linear(inputs, num_out, num_in, count, is_quick)
            if best is None:
                continue
            tile, line = best
            table["fp8_linear"].setdefault(size, {})[str(count)] = tile
            table["measured"][f"fp8_linear {size} {count}"] = line
            print(f"fp8_linear {size} {count:4d} rows: {line}  {tile}", flush=True)
    return table


def _tune_linear(
    inputs: Inputs, num_out: int, num_in: int, rows: int, is_quick: bool
) -> tuple[dict[str, int], dict[str, float]] | None:
    if choice.triton_linear is None:
        raise SystemExit("Triton is not there, so there is nothing to tune")
    sets = []
    for n in range(max(2, min(MAX_SETS, -(-ROTATED_BYTES // (num_out * num_in))))):
        weight, scale = inputs.fp8(n, num_out, num_in)
        x = inputs.randn(n, rows, num_in)
        sets.append((choice.QuantizedRows(x, *choice.quantize_rows(x)), weight, scale))

    def run_with(tile: tiles.LinearTile) -> Run:
        return lambda *given: choice.triton_linear.fp8_linear(*given, None, tile)

    candidates = tiles.LINEAR_CONFIGS[:: 4 if is_quick else 1]
    today = tiles.linear_tile(num_out, num_in, rows)
    return _fastest(candidates, today, run_with, sets, inputs.device)


def _fastest(
    candidates: Iterable[Any],
    today: Any,
    run_with: Callable[[Any], Run],
    sets: list[tuple[Any, ...]],
    device: torch.device,
) -> tuple[dict[str, int], dict[str, float]] | None:
    """(the tile, microseconds of it and of today's); None if none of them runs."""
    times: dict[Any, float] = {}
    for tile in dict.fromkeys([today, *candidates]):
        try:
            times[tile] = microseconds(run_with(tile), sets, device, 3)
        except Exception as error:  # too much shared memory, say
            print(f"  {tile}: {type(error).__name__}", flush=True)
            if device.type == "cuda":
                torch.cuda.synchronize()
    if not times:
        return None
    best = min(times, key=lambda tile: times[tile])
    line = {"best_us": round(times[best], 2)}
    if today in times:
        line["today_us"] = round(times[today], 2)
    return best._asdict(), line
