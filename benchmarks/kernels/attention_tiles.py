"""Times the candidate tiles of the attention kernels and prints them, fastest first.

    python -m benchmarks.kernels.attention_tiles [--heads 96 --groups 8] [--page 64] [--only chunk]

A decode step streams its cache: GB/s says how near to the memory's speed that is. A chunk computes:
TFLOP/s counts only what causal attention needs.
"""

import argparse
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.attention import varlen

from benchmarks.kernels.cases import Inputs
from benchmarks.kernels.measure import MAX_SETS, ROTATED_BYTES, microseconds
from glimt.kernels import (
    triton_chunks,
    triton_decoding,
    triton_rope,
    triton_segments,
    triton_widen,
)

DECODING = [
    (1, 1600),
    (1, 16000),
    (8, 1600),
    (16, 1600),
    (32, 1600),
    (64, 1600),
    (128, 1600),
    (8, 16000),
]
SEGMENTS = [[2048], [5376], [5376, 5376, 1024, 256], [1024] * 16]  # the vision tower's patches
CHUNKS = [
    (1433, 0),
    (2048, 0),
    (8192, 0),
    (700, 5000),
    (2048, 6144),
    (64, 16000),
]  # new tokens, those before


class Shape(NamedTuple):
    """Heads of one rank, and the cache's pages."""

    heads: int
    groups: int
    dim: int
    page: int


def arguments(
    inputs: Inputs, seed: int, shape: Shape, rows: int, new: int, length: int, is_fp8: bool
) -> tuple[Any, ...]:
    """What both kernels take: `rows` of `length` tokens, the last `new` of them queries."""
    pages = math.ceil(length / shape.page)
    size = (rows * pages, 2, shape.groups, shape.page, shape.dim)
    cache, scale = inputs.fp8(seed, *size) if is_fp8 else (inputs.randn(seed, *size), None)
    table = torch.randperm(rows * pages, device=inputs.device).view(rows, pages).int()
    starts = torch.arange(rows + 1, dtype=torch.int32, device=inputs.device) * new
    lengths = torch.full((rows,), length, dtype=torch.int32, device=inputs.device)
    q = inputs.randn(seed, rows * new, shape.heads, shape.dim)
    return q, cache, table, starts, lengths, torch.empty_like(q), scale


def compare(
    title: str,
    work: tuple[float, str],
    candidates: tuple[Any, ...],
    run_with: Callable[[Any], Callable[..., None]],
    sets: list[tuple[Any, ...]],
) -> None:
    """Print the candidates in the order of their times; the first of the list is in use."""
    times = {}
    for tiles in candidates:
        try:
            times[tiles] = microseconds(run_with(tiles), sets, sets[0][0].device, 3)
        except Exception as error:  # too much shared memory, say
            print(f"  {tiles}: {type(error).__name__}")
            torch.cuda.synchronize()
    amount, unit = work
    for tiles in sorted(times, key=lambda tiles: times[tiles]):
        mark = "*" if tiles == candidates[0] else " "
        print(
            f"{title:44} {mark} {times[tiles]:9.1f} us {amount / times[tiles]:8.1f} {unit} {tiles}"
        )


def sets_of(make: Callable[[int], tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Enough sets of inputs that none is still in the cache when its turn comes again."""
    first = make(0)
    own = sum(t.numel() * t.itemsize for t in first if isinstance(t, Tensor))
    return [first, *(make(n) for n in range(1, max(2, min(MAX_SETS, ROTATED_BYTES // own))))]


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("heads", 96), ("groups", 8), ("dim", 128), ("page", 64)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--only", help="cases whose title has this: segments, decode, chunk, turn")
    parser.add_argument("--kinds", nargs="+", choices=["bf16", "e4m3"], default=["bf16", "e4m3"])
    options = vars(parser.parse_args())
    only, kinds = options.pop("only") or "", options.pop("kinds")
    shape = Shape(**options)
    inputs = Inputs(torch.device("cuda", 0), torch.bfloat16)
    print(f"{torch.cuda.get_device_name(0)}, {shape}; * is in use")
    for lengths in SEGMENTS if only in "segments" else ():
        compare(
            f"segments {lengths[0]} … ({len(lengths)})",
            (4 * sum(n * n for n in lengths) * 1536 / 1e6, "TFLOP/s"),
            (*triton_segments.CONFIGS, "varlen_attn"),
            lambda tiles: _segments_with(tiles, max(lengths)),  # noqa: B023
            sets_of(lambda n: _segments(inputs, n, lengths)),  # noqa: B023
        )
    for kind in kinds:
        is_fp8 = kind == "e4m3"
        token_bytes = 2 * shape.groups * shape.dim * (1 if is_fp8 else 2)
        for rows, length in DECODING if only in "decode" else ():
            compare(
                f"decode {rows} x {length} {kind}",
                (rows * length * token_bytes / 1e3, "GB/s"),
                triton_decoding.PAIR_CONFIGS if is_fp8 else triton_decoding.CONFIGS,
                lambda tiles, length=length: _decode_with(tiles, length),
                sets_of(lambda n: arguments(inputs, n, shape, rows, 1, length, is_fp8)),  # noqa: B023
            )
        for new, before in CHUNKS if only in "chunk" else ():
            seen = new * before + new * (new + 1) / 2
            compare(
                f"chunk {new} after {before} {kind}",
                (4 * seen * shape.heads * shape.dim / 1e6, "TFLOP/s"),
                triton_chunks.CONFIGS,
                lambda tiles: lambda *given: triton_chunks.attend_chunks(*given, tiles=tiles),
                sets_of(lambda n: arguments(inputs, n, shape, 1, new, before + new, is_fp8)),  # noqa: B023
            )
            if is_fp8:
                compare(
                    f"chunk {new} after {before} {kind} widened",
                    (4 * seen * shape.heads * shape.dim / 1e6, "TFLOP/s"),
                    triton_chunks.CONFIGS,
                    _widened_with,
                    sets_of(lambda n: arguments(inputs, n, shape, 1, new, before + new, True)),  # noqa: B023
                )
        for rows in (1, 64, 2048) if only in "turn" else ():
            heads = rows * (shape.heads + 2 * shape.groups)
            compare(
                f"turn and write {rows} {kind}",
                (heads * shape.dim * 4 / 1e3, "GB/s"),
                triton_rope.CONFIGS,
                lambda tiles: (
                    lambda *given: triton_rope.turn_and_write_kv(
                        *given, interleaved=False, tiles=tiles
                    )
                ),
                sets_of(lambda n: _heads(inputs, n, shape, rows, is_fp8)),  # noqa: B023
            )


def _decode_with(tiles: triton_decoding.Tiles, length: int) -> Callable[..., None]:
    return lambda *given: triton_decoding.attend_singles(
        *given, max_context_len=length, tiles=tiles
    )


def _widened_with(tiles: Any) -> Callable[..., None]:
    """A chunk over e4m3 pages that are widened first, which is part of its time."""

    def attend(q: Tensor, cache: Tensor, table: Tensor, *rest: Any) -> None:
        starts, lengths, out, scale = rest
        rows, num_pages = (table, starts, lengths), table.numel()
        pages = triton_widen.widened(cache, scale, *rows, num_pages=num_pages, dtype=q.dtype)
        triton_chunks.attend_chunks(q, *pages, starts, lengths, out, None, tiles=tiles)

    return attend


def _segments_with(tiles: Any, longest: int) -> Callable[..., None]:
    """Ours with these tiles, or torch's flash attention."""
    if tiles == "varlen_attn":
        return lambda q, k, v, starts: varlen.varlen_attn(q, k, v, starts, starts, longest, longest)
    return lambda *given: triton_segments.segment_attention(*given, tiles=tiles)


def _segments(inputs: Inputs, seed: int, lengths: list[int]) -> tuple[Tensor, ...]:
    """Queries, keys and values of the vision tower's 12 heads, and where segments begin."""
    heads = inputs.randn(seed, sum(lengths), 36, 128)
    starts = torch.tensor([0, *lengths], device=inputs.device).cumsum(0).int()
    return (*heads.chunk(3, dim=1), starts)


def _heads(inputs: Inputs, seed: int, shape: Shape, rows: int, is_fp8: bool) -> tuple[Any, ...]:
    """What `turn_and_write_kv` takes."""
    size = (math.ceil(rows / shape.page), 2, shape.groups, shape.page, shape.dim)
    cache, scale = inputs.fp8(seed, *size) if is_fp8 else (inputs.randn(seed, *size), None)
    angles = torch.rand(rows, shape.dim // 4, device=inputs.device)
    heads = inputs.randn(seed, rows, shape.heads + 2 * shape.groups, shape.dim)
    slots = torch.randperm(rows, device=inputs.device)
    return heads, angles.cos(), angles.sin(), cache, slots, scale


if __name__ == "__main__":
    main()
