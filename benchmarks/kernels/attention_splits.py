"""Times a decode step's attention by rows and by the parts that each context is split into.

    python -m benchmarks.kernels.attention_splits [--rows 1 8] [--mixed] [--switches e4m3_pairs=1]

As GLM-4.5V's layers call it: heads are turned and keys and values written by the same kernel. Each
time is of two launches, and of one that combines the parts itself (µs, in a graph). Behind a row
are the splits that the code chooses: now, and to fill waves where a lone program takes 35, 50 or
100 percent of a full wave's time (`attention_waves` of `benchmarks/switches.py`).
"""

import argparse
from collections.abc import Callable, Iterator
from typing import Any

import torch

from benchmarks.kernels.attention_tiles import Shape, arguments, sets_of
from benchmarks.kernels.cases import Inputs
from benchmarks.kernels.measure import microseconds
from benchmarks.switches import switch, switches_of
from glimt.kernels import triton_attention, triton_decoding, triton_parts
from glimt.kernels.triton_turned import Turning

ROWS = [1, 2, 4, 8, 16, 32, 48, 64, 67, 82, 96, 110, 128]
SPLITS = [1, 2, 3, 4, 5, 6, 8, 12, 16, 32]
WAVES = [0, 35, 50, 100]
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


def run_with(num_splits: int, max_context_len: int) -> Callable[..., None]:
    """The kernel with so many splits, also where the code would choose others."""

    def run(*given: Any) -> None:
        triton_decoding.attend_singles(
            *given[:-1], max_context_len=max_context_len, turning=given[-1],
            num_splits=num_splits, in_pairs=triton_attention.IN_PAIRS,
        )  # fmt: skip

    return run


def times_of(sets: list[tuple[Any, ...]], splits: int, max_context_len: int) -> Iterator[float]:
    """Of two launches, then of one, which there is only where there are parts."""
    for combines in (0, 1) if splits > 1 else (0,):
        triton_parts.COMBINE_AT_ONCE = combines
        run = run_with(splits, max_context_len)
        yield microseconds(run, sets, sets[0][0].device, 5)
    triton_parts.COMBINE_AT_ONCE = 0


def chosen(rows: int, max_context_len: int, value_bytes: int) -> str:
    """The splits that each rule gives."""
    texts = []
    for combines in (0, 1):
        triton_parts.COMBINE_AT_ONCE = combines
        for waves in WAVES:
            triton_parts.WAVES = waves
            least = triton_decoding.CONFIGS[0].least_tokens
            count = triton_parts.num_splits(
                rows * SHAPE.groups, max_context_len, least, value_bytes
            )
            texts.append(f"{waves}:{count}")
    triton_parts.COMBINE_AT_ONCE = triton_parts.WAVES = 0
    return f"{' '.join(texts[: len(WAVES)])} | {' '.join(texts[len(WAVES) :])}"


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
    print("rows kind  splits:two/one … (splits chosen by attention_waves: two launches | one)")
    for kind in options.kinds:
        for rows in options.rows:
            is_fp8 = kind == "e4m3"
            sets = sets_of(
                lambda n: inputs_of(inputs, n, rows, options.context, is_fp8, options.mixed)  # noqa: B023
            )
            cells = []
            for splits in options.splits:
                if splits * rows > 1024:
                    continue
                times = "/".join(f"{time:.1f}" for time in times_of(sets, splits, bucket))
                cells.append(f"{splits}:{times}")
            choice = chosen(rows, bucket, 1 if is_fp8 else 2)
            print(f"{rows:4d} {kind:4}  {'  '.join(cells)}  ({choice})", flush=True)


if __name__ == "__main__":
    main()
