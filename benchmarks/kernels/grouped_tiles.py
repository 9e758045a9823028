"""Times the experts' feed-forward of prompts, torch's products beside each of our own tiles.

    python -m benchmarks.kernels.grouped_tiles [--tokens 1433 8192] [--tiles 0 1 2] [--out FILE]

Everything between the quantised rows of the norm and the experts' weighted sum counts, so that what
a tile saves elsewhere counts as well. Each result is compared with torch's. TFLOP/s are those of
real rows. Compiling takes 8 seconds a tile.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.kernels.cases import Inputs, all_cases
from benchmarks.kernels.measure import microseconds
from benchmarks.kernels.shapes import shape_of
from glimt import kernels
from glimt.kernels import triton_grouped

_TAKES = triton_grouped.takes


class Way(NamedTuple):
    """How the products are computed: by one of `CONFIGS`, or by torch."""

    tile: int | None = None

    def choose(self) -> None:
        """From now on."""
        is_ours = self.tile is not None
        setattr(triton_grouped, "takes", _TAKES if is_ours else lambda *given: False)  # noqa: B010
        tile = triton_grouped.CONFIGS[self.tile or 0]
        setattr(triton_grouped, "tile_for", lambda *shape: tile)  # noqa: B010

    def __str__(self) -> str:
        return "torch" if self.tile is None else f"{self.tile}: {triton_grouped.CONFIGS[self.tile]}"


def run(x: kernels.QuantizedRows, *given: Any) -> torch.Tensor:
    return kernels.fp8_grouped_experts(x, *given)


def measured(ways: list[Way], sets: list[Any], expected: torch.Tensor) -> Iterator[dict[str, Any]]:
    """One line for each way: microseconds and the error against torch's."""
    for way in ways:
        way.choose()
        try:
            error = (run(*sets[0]).float() - expected).norm() / expected.norm()
            us = microseconds(run, sets, torch.device("cuda"), 3)
        except Exception as failure:  # too much shared memory, say
            torch.cuda.synchronize()
            yield {"way": way, "us": float("inf"), "failed": f"{type(failure).__name__}: {failure}"}
            continue
        yield {"way": way, "us": us, "error": error.item()}


def compare(tokens: int, model: str, inputs: Inputs, tiles: list[int]) -> list[dict[str, Any]]:
    """All ways, fastest first; printed."""
    shape = shape_of(model)
    case = next(c for c in all_cases(shape, tokens, inputs) if c.op == "fp8_grouped_experts")
    sets = []
    for number in range(2):
        x, *others = case.make(number)
        sets.append((kernels.QuantizedRows(x, *kernels.quantize_rows(x)), *others))
    Way().choose()
    expected = run(*sets[0]).float()
    lines = [*measured([Way(), *(Way(number) for number in tiles)], sets, expected)]
    lines.sort(key=lambda line: line["us"])
    print(f"{tokens} tokens, {case.what}:", flush=True)
    for line in lines:
        told = line.get("failed") or f"{case.flops / line['us'] / 1e6:7.1f} TFLOP/s"
        print(f"  {line['us']:9.1f} us {told[:150]}  {line['way']}", end="")
        print(f"  differs by {line['error']:.1e}" if "error" in line else "", flush=True)
    return [line | {"way": str(line["way"]), "tokens": tokens} for line in lines]


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, nargs="+", default=[1433, 2048, 8192])
    parser.add_argument("--model", default="106b:1")
    every = range(len(triton_grouped.CONFIGS))
    parser.add_argument("--tiles", type=int, nargs="+", choices=every, default=[*every])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    inputs, found = Inputs(torch.device("cuda", 0), torch.bfloat16), []
    print(torch.cuda.get_device_name(0))
    with torch.inference_mode():
        for tokens in options.tokens:
            found += compare(tokens, options.model, inputs, options.tiles)
            if options.out:
                options.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
