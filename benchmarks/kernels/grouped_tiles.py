"""Times the experts' feed-forward of prompts, torch's products beside each of our own tiles.

    python -m benchmarks.kernels.grouped_tiles [--tokens 1433 8192] [--tiles 0 1 2] [--out FILE]

Everything between the quantised rows of the norm and the experts' weighted sum counts, so that what
a tile saves elsewhere counts as well. First all tiles for both products, then the best three for
each product crosswise. Each result is compared with torch's. TFLOP/s are those of real rows. The
fastest of our own is also told as switches for `ab_steps.py`. Compiling takes 8 seconds a tile.
"""

import argparse
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.kernels.cases import Inputs, all_cases
from benchmarks.kernels.measure import microseconds
from benchmarks.kernels.shapes import shape_of
from glimt import kernels
from glimt.kernels import grouped, triton_grouped

BEST = 3  # tiles of a product that are tried with those of the other


class Way(NamedTuple):
    """How the products are computed: numbers of `CONFIGS`, or torch's."""

    gate_up: int | None = None
    down: int | None = None
    is_apart: bool = False

    def choose(self) -> None:
        """From now on."""
        grouped.OWN_UP_TO = 0 if self.gate_up is None else 1 << 30
        grouped.GATE_UP_TILE, grouped.DOWN_TILE = self.gate_up or 0, self.down or 0
        grouped.APART = self.is_apart

    @property
    def switches(self) -> str:
        """Of `benchmarks/switches.py`."""
        if self.gate_up is None:
            return f"gates_apart={int(self.is_apart)}"
        return f"own_grouped=100000,gate_up_tile={self.gate_up},down_tile={self.down}"

    def __str__(self) -> str:
        if self.gate_up is None or self.down is None:
            return "torch, gates apart" if self.is_apart else "torch"
        tiles = triton_grouped.CONFIGS
        return f"own {self.gate_up} {self.down}: {tiles[self.gate_up]} {tiles[self.down]}"


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
    ways = [Way(), Way(is_apart=True)]
    lines = [*measured(ways, sets, expected)]
    same = [Way(number, number) for number in tiles]
    own = sorted(measured(same, sets, expected), key=lambda line: line["us"])
    best = [line["way"].gate_up for line in own[:BEST]]
    crossed = [Way(a, b) for a, b in itertools.product(best, best) if a != b]
    lines += [*own, *measured(crossed, sets, expected)]
    lines.sort(key=lambda line: line["us"])
    print(f"{tokens} tokens, {case.what}:", flush=True)
    for line in lines:
        told = line.get("failed") or f"{case.flops / line['us'] / 1e6:7.1f} TFLOP/s"
        print(f"  {line['us']:9.1f} us {told[:150]}  {line['way']}", end="")
        print(f"  differs by {line['error']:.1e}" if "error" in line else "", flush=True)
    ours = next(line["way"] for line in lines if line["way"].gate_up is not None)
    print(f"switches: {ours.switches}", flush=True)
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
