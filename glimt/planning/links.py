"""What messages between GPUs cost, in seconds."""

import math
from collections.abc import Sequence

from glimt.planning.constants import Collectives, Gpu


def all_reduce_s(
    num_bytes: float, num_gpus: int, collectives: Collectives, *, crosses_nodes: bool = False
) -> float:
    """A small message summed over `num_gpus` GPUs, from the table of measured times."""
    if num_gpus == 1:
        return 0.0
    ranks = min((n for n in collectives.all_reduce if n >= num_gpus), default=None)
    table = collectives.all_reduce[max(collectives.all_reduce) if ranks is None else ranks]
    seconds = interpolate(table, num_bytes)
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
) -> float:
    """A large message: reduce-scatter and all-gather at the rate of the slower link."""
    if num_gpus == 1:
        return 0.0
    link = min(gpu.link, collectives.node_link) if crosses_nodes else gpu.link
    latency = collectives.node_latency_s if crosses_nodes else 0.0
    return latency + 2 * (num_gpus - 1) / num_gpus * num_bytes / link


def interpolate(points: Sequence[tuple[float, float]], size: float) -> float:
    """On straight lines between points, both axes logarithmic; beyond the ends the last slope goes
    on, but below the first point times stay what they are there."""
    if size <= points[0][0]:
        return points[0][1]
    above = next((i for i, (known, _) in enumerate(points) if known >= size), len(points) - 1)
    (low, low_s), (high, high_s) = points[above - 1], points[above]
    slope = math.log(high_s / low_s) / math.log(high / low)
    return low_s * math.pow(size / low, slope)
