"""Times a decode step's attention by rows and by the parts that each context is split into.

    python -m benchmarks.kernels.attention_splits [--rows 1 8] [--mixed] [--switches tuned=0]

As GLM-4.5V's layers call it: heads are turned and keys and values written by the same kernel, and
where there are parts a second one combines them (µs of both, in a graph). Behind a row are the
splits that the code chooses.
"""

import argparse
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.kernels.attention_tiles import Shape, arguments, sets_of
from benchmarks.kernels.cases import Inputs
from benchmarks.kernels.measure import microseconds
from benchmarks.switches import switch, switches_of
from glimt.kernels import triton_decoding
from glimt.kernels.triton_turned import Turning

ROWS = [1, 2, 4, 8, 16, 32, 48, 64, 67, 82, 96, 110, 128]
SPLITS = [1, 2, 3, 4, 5, 6, 8, 12, 16, 32]
SHAPE = Shape(heads=96, groups=8, dim=128, page=64)


def inputs_of(
    inputs: Inputs, seed: int, rows: int, context: int, is_fp8: bool, is_mixed: bool
) -> tuple[Any, ...]:
    """What `attend_singles` takes, and its `turning`."""
    longest = 2 * context if is_mixed else context
    _, cache, table, starts, lengths, out, scale = arguments(
        inputs, seed, SHAPE, rows, 1, longest, is_fp8
    )
    if is_mixed:
        lengths = (inputs.ints(seed, longest, rows) + 1).int()
    heads = inputs.randn(seed, rows, SHAPE.heads + 2 * SHAPE.groups, SHAPE.dim)
    angles = inputs.randn(seed, rows, SHAPE.dim // 4).float()
    last = lengths.long() - 1
    pages = table[torch.arange(rows, device=inputs.device), last // SHAPE.page].long()
    turning = Turning(angles.cos(), angles.sin(), pages * SHAPE.page + last % SHAPE.page, False)
    return heads, cache, table, starts, lengths, out, scale, turning


def run_with(splits: int, max_context_len: int) -> Callable[..., None]:
    """The kernel with so many splits, also where the code would choose others."""

    def run(*given: Any) -> None:
        triton_decoding.attend_singles(
            *given[:-1], max_context_len=max_context_len, turning=given[-1], splits=splits
        )

    return run


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS)
    parser.add_argument("--splits", type=int, nargs="+", default=SPLITS)
    parser.add_argument("--context", type=int, default=1600, help="tokens of a row")
    parser.add_argument("--mixed", action="store_true", help="1 to twice as many tokens")
    parser.add_argument("--bucket", type=int, help="the graph's longest context")
    parser.add_argument("--kinds", nargs="+", choices=["bf16", "e4m3"], default=["bf16", "e4m3"])
    parser.add_argument("--switches", default="", help="of benchmarks/switches.py")
    options = parser.parse_args()
    switch(switches_of(options.switches))
    bucket = options.bucket or (8192 if options.mixed else 2048)
    inputs = Inputs(torch.device("cuda", 0), torch.bfloat16)
    print(f"{torch.cuda.get_device_name(0)}, {options.context} tokens, graphs for {bucket}")
    print("rows kind  splits:µs … (splits chosen)")
    for kind in options.kinds:
        for rows in options.rows:
            is_fp8 = kind == "e4m3"
            sets = sets_of(
                lambda n: inputs_of(inputs, n, rows, options.context, is_fp8, options.mixed)  # noqa: B023
            )
            cells = []
            for splits in options.splits:
                if splits * rows <= 1024:
                    time = microseconds(run_with(splits, bucket), sets, sets[0][0].device, 5)
                    cells.append(f"{splits}:{time:.1f}")
            least = triton_decoding.CONFIGS[0].least_tokens
            chosen = triton_decoding.num_splits(rows * SHAPE.groups, bucket, least)
            print(f"{rows:4d} {kind:4}  {'  '.join(cells)}  ({chosen})", flush=True)


if __name__ == "__main__":
    main()
