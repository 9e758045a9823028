"""Which tiles of a product are worth compiling and timing: by what is known without a GPU.

A processor must have some 29 KiB of weights on the way (800 ns at 4.8 TB/s over 132 of them) or
the memory waits for it. So a tile is judged by how many of its programs a processor holds, by
shared memory, registers and warps, and what these ask for ahead; whether all programs run at once,
or how full the last round is; and whether another launch must add parts. What is left is put in an
order in which the ways to multiply take turns, so that any number of them from the start is a fair
choice.
"""

from collections.abc import Iterator
from itertools import chain, zip_longest
from typing import NamedTuple

from glimt.kernels.tiles import ExpertTile, LinearTile

PROCESSORS = 132  # of an H100 or H200
SHARED_BYTES = 227 << 10  # of a processor, for programs; each takes 1 KiB more than it asks for
REGISTERS = 65536
LEAST_IN_FLIGHT = 29 << 10
WANTED_IN_FLIGHT = 60 << 10
BYTES_PER_US = 4.54e6  # what an H200 reads
ENOUGH_PROGRAMS = 0.8  # of a processor: fewer idle than that do not limit the memory
SUM_US = 1.8  # a launch that adds parts
FMA_RUN = 512  # inputs that a warp takes at once, 16 bytes in each thread


class Load(NamedTuple):
    """How a tile would use a processor."""

    programs: float  # of each processor, all in all
    resident: int  # at once
    in_flight: float  # bytes of weights asked for ahead

    @property
    def rounds(self) -> float:
        """At least 1: of resident programs."""
        return max(1.0, self.programs / max(1, self.resident))

    @property
    def slowness(self) -> float:
        """Times that reading would take, at least: 1 is the memory's speed."""
        idle = -(-self.rounds // 1) / self.rounds
        wait = max(1.0, LEAST_IN_FLIGHT / max(1.0, self.in_flight))
        return idle * wait + 0.1 * max(0.0, 1 - self.in_flight / WANTED_IN_FLIGHT)


def resident(shared_bytes: int, registers: int, warps: int) -> int:
    """Programs that a processor holds at once."""
    by_registers = REGISTERS // (32 * warps * -(-registers // 8) * 8)
    return min(SHARED_BYTES // (shared_bytes + 1024), by_registers, 64 // warps, 32)


def linear_load(
    tile: LinearTile, num_out: int, num_in: int, rows: int, *, measured: bool = False
) -> Load:
    """Of `triton_linear`. Registers are estimates from compiled tiles (within a fifth)."""
    programs = -(-num_out // tile.block_o) * tile.parts / PROCESSORS
    block_t = min(64, max(16, 1 << (rows - 1).bit_length()))
    if tile.way == "fma":
        each = tile.block_o * tile.block_i // (tile.warps * FMA_RUN)  # 16-byte words of a thread
        shared, registers = 0, 16 + 4 * each * (tile.stages + 1)
    else:
        width = tile.block_o + block_t * (1 + measured)
        shared = tile.stages * tile.block_i * width
        registers = 48 + 2 * tile.block_o * block_t // (32 * tile.warps)
    held = resident(shared, registers, tile.warps)
    ahead = (tile.stages - 1) * tile.block_o * tile.block_i
    return Load(programs, held, min(held, programs) * ahead)


def linear_candidates(
    num_out: int, num_in: int, rows: int, count: int, *, measured: bool, deferred: bool
) -> list[LinearTile]:
    """At most `count`, the likeliest first. `deferred`: the norm that follows adds parts."""
    least_us = num_out * num_in / BYTES_PER_US

    def badness(tile: LinearTile) -> float:
        load = linear_load(tile, num_out, num_in, rows, measured=measured)
        sums = 0.15 * tile.parts if deferred else SUM_US * (tile.parts > 1)
        return load.slowness + sums / least_us

    def is_possible(tile: LinearTile) -> bool:
        load = linear_load(tile, num_out, num_in, rows, measured=measured)
        steps = -(-num_in // (tile.block_i * tile.parts))
        is_busy = load.programs >= ENOUGH_PROGRAMS and load.in_flight >= LEAST_IN_FLIGHT
        if tile.parts > 1 and not deferred and load.programs / tile.parts >= ENOUGH_PROGRAMS:
            return False  # a launch for nothing
        return load.resident > 0 and steps >= min(3, tile.stages) and is_busy

    given = [_tma_tiles(), _copy_tiles()]
    if rows == 1:
        given.insert(0, _fma_tiles())
    return _in_turn([sorted(filter(is_possible, tiles), key=badness) for tiles in given])[:count]


def _fma_tiles() -> Iterator[LinearTile]:
    for block_o in (4, 2, 8):
        for warps in (1, 4, 2, 8):
            for stages in (2, 3):
                for parts in (1, 2, 3, 4):
                    yield LinearTile(block_o, FMA_RUN * warps, parts, warps, stages, "fma")


def _tma_tiles() -> Iterator[LinearTile]:
    for block_o, warps in ((64, 4), (128, 4), (128, 8)):
        for block_i, stages in ((256, 3), (128, 6), (256, 4), (128, 4), (512, 2), (128, 8)):
            for parts in (1, 2, 3, 4, 6, 8):
                yield LinearTile(block_o, block_i, parts, warps, stages, "tma")


def _copy_tiles() -> Iterator[LinearTile]:
    """Tiles of fewer than 64 outputs are for an older instruction, of 16 rows at a time."""
    for block_o, warps in ((64, 4), (32, 4), (128, 8), (16, 2), (128, 4)):
        for block_i, stages in ((256, 4), (128, 6), (256, 3), (128, 4), (512, 3), (512, 2)):
            for parts in (1, 2, 3, 4, 6, 8):
                yield LinearTile(block_o, block_i, parts, warps, stages)


def expert_candidates(
    product: str, num_out: int, num_in: int, slots: float, block_t: int, count: int
) -> list[ExpertTile]:
    """At most `count`, the likeliest first. `slots`: experts that are read, each by one tile."""
    halves = 2 if product == "gate_up" else 1  # block_o counts gates, and as many ups beside them

    def load_of(tile: ExpertTile) -> Load:
        width = halves * tile.block_o
        programs = -(-num_out // tile.block_o) * slots / PROCESSORS
        rows = block_t * (1 if halves == 2 else 2)  # inner rows are bfloat16
        shared = tile.stages * tile.block_i * (width + rows)
        registers = 48 + 2 * width * block_t // (32 * tile.warps)
        held = resident(shared, registers, tile.warps)
        ahead = (tile.stages - 1) * width * tile.block_i
        return Load(programs, held, min(held, programs) * ahead)

    def is_possible(tile: ExpertTile) -> bool:
        load = load_of(tile)
        # One program more than a round's ends late whatever it is, so rounds do not count here:
        # most tables have many, of experts of several sizes.
        return (
            load.resident > 0
            and load.in_flight >= LEAST_IN_FLIGHT
            and load.programs >= ENOUGH_PROGRAMS
        )

    found = filter(is_possible, _expert_tiles(halves))
    return sorted(found, key=lambda tile: load_of(tile).slowness)[:count]


def _expert_tiles(halves: int) -> Iterator[ExpertTile]:
    for width, warps in ((64, 4), (32, 4), (128, 4), (128, 8)):
        for block_i, stages in ((128, 4), (128, 3), (128, 6), (256, 3), (256, 2), (256, 4)):
            yield ExpertTile(width // halves, block_i, warps, stages)


def _in_turn(lists: list[list[LinearTile]]) -> list[LinearTile]:
    rounds = zip_longest(*lists)
    return [tile for tile in chain.from_iterable(rounds) if tile is not None]
