"""What messages between GPUs cost, in seconds."""

import math
from collections.abc import Sequence

from glimt.planning.constants import Collectives, Gpu

ACTIVATION_BYTES = 2  # of a number that travels between GPUs
_ALIGNMENT = 16  # of a row that travels to experts


def all_reduce_s(
    num_bytes: float, num_gpus: int, collectives: Collectives, *, crosses_nodes: bool = False
) -> float:
    """A small message summed over `num_gpus` GPUs, from the table of measured times."""
    if num_gpus == 1:
        return 0.0
    known = collectives.all_reduce
    ranks = min((n for n in known if n >= num_gpus), default=max(known))
    doublings = max(0.0, math.log2(num_gpus / ranks))
    longer = math.pow(collectives.per_doubling, doublings)
    seconds = longer * interpolate(known[ranks], num_bytes)
    if crosses_nodes:
        seconds += collectives.node_latency_s + 2 * num_bytes / collectives.node_link
    return seconds


def all_reduce_floor_s(
    num_bytes: float, num_gpus: int, collectives: Collectives, *, crosses_nodes: bool = False
) -> float:
    """The least it can take: a round trip for small messages, the table for others."""
    if num_gpus == 1:
        return 0.0
    if crosses_nodes or num_bytes > collectives.floor_bytes:
        return all_reduce_s(num_bytes, num_gpus, collectives, crosses_nodes=crosses_nodes)
    return collectives.floor_s


def large_all_reduce_s(
    num_bytes: float,
    num_gpus: int,
    gpu: Gpu,
    collectives: Collectives,
    *,
    crosses_nodes: bool = False,
    floor: bool = False,
) -> float:
    """A large message: reduce-scatter and all-gather at the rate of the slower link; of a link
    inside a machine, as much as was measured, or (`floor`) all of it."""
    if num_gpus == 1:
        return 0.0
    link = gpu.link if floor else gpu.link * collectives.link_efficiency
    if crosses_nodes:
        link = min(link, collectives.node_link)
    latency = collectives.node_latency_s if crosses_nodes else 0.0
    return latency + 2 * (num_gpus - 1) / num_gpus * num_bytes / link


def row_bytes(width: int, experts_per_token: int, *, fp8: bool) -> int:
    """A row on its way to experts of other copies: its numbers (FP8: and their scale), and for each
    of its experts a weight and a place of 4 bytes each."""
    used = (width + 4 if fp8 else 2 * width) + 8 * experts_per_token
    return -(-used // _ALIGNMENT) * _ALIGNMENT


def exchange_s(
    num_rows: float,
    num_copies: int,
    sizes: tuple[int, int],
    gpu: Gpu,
    collectives: Collectives,
    *,
    num_far: int = 0,
    floor: bool = False,
) -> float:
    """Rows of all copies to each other (all-gather), results back (reduce-scatter).

    `num_rows`: of the fullest copy, to which the others fill up; `sizes`: bytes of a row on the way
    there and of its result on the way back. A GPU gets what each of the others has for it, from the
    `num_far` that are on other machines through its adapter.
    """
    if num_copies == 1:
        return 0.0
    seconds = 2 * collectives.node_latency_s if num_far else 0.0
    for size in sizes:
        num_bytes = (num_copies - 1) * num_rows * size
        far_s = num_far * num_rows * size / collectives.node_link
        if floor:
            seconds += max(collectives.floor_s, num_bytes / gpu.link, far_s)
        else:
            at_rate_s = num_bytes / (gpu.link * collectives.link_efficiency)
            seconds += max(interpolate(collectives.exchange, num_bytes), at_rate_s, far_s)
    return seconds


def interpolate(points: Sequence[tuple[float, float]], size: float) -> float:
    """On straight lines between points, both axes logarithmic; beyond the ends the last slope goes
    on, but below the first point times stay what they are there."""
    if size <= points[0][0]:
        return points[0][1]
    above = next((i for i, (known, _) in enumerate(points) if known >= size), len(points) - 1)
    (low, low_s), (high, high_s) = points[above - 1], points[above]
    slope = math.log(high_s / low_s) / math.log(high / low)
    return low_s * math.pow(size / low, slope)
