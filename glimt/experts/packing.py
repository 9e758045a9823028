"""Placing experts by measured load: the heaviest first, each on the GPU that has the least so far.

Then experts are exchanged as long as that helps. The greedy rule for machines that finish together
(longest processing time first) gives no GPU more than 4/3 of the best possible load where places
do not bind (Graham 1969). Each layer is packed by itself, since a step waits for the fullest GPU in
each of them.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from glimt.errors import BadSettings
from glimt.experts.load import ExpertLoad
from glimt.experts.placement import Layer, Placement

FloatArray = npt.NDArray[np.float64]

MAX_SWAPS = 200


def place_by_load(load: ExpertLoad, num_ranks: int, num_redundant: int = 0) -> Placement:
    """A table for `num_ranks` GPUs, with `num_redundant` places of a layer for further copies.

    Raises BadSettings where places cannot be divided among the GPUs.
    """
    places = load.num_experts + num_redundant
    problems = []
    if num_ranks < 1 or num_redundant < 0:
        problems.append("GPUs must be at least 1, redundant experts at least 0")
    elif places % num_ranks:
        problems.append(
            f"{load.num_experts} experts and {num_redundant} redundant ones cannot be divided "
            f"among {num_ranks} GPUs: {-places % num_ranks} more redundant ones would do"
        )
    elif places // num_ranks > load.num_experts:
        problems.append(f"{num_redundant} redundant experts: each GPU would have all experts")
    if problems:
        raise BadSettings("experts cannot be placed so:", problems)
    return Placement(
        num_experts=load.num_experts,
        layers={
            layer: pack(counts, num_ranks, places // num_ranks)
            for layer, counts in load.layers.items()
        },
    )


def pack(counts: Sequence[int], num_ranks: int, num_places: int) -> Layer:
    """One layer. Experts that nobody chose count as a hundredth of a token, so they spread too."""
    weights = np.maximum(np.array(counts, float), 0.01)
    copies = _copies(weights, num_ranks, num_ranks * num_places - len(counts))
    each = weights / copies
    # Copies of one expert must not meet on a GPU: those with most of them choose first.
    order = sorted(range(len(each)), key=lambda e: (copies[e] > 1, each[e], -e), reverse=True)
    held = _deal(order, each, copies, num_ranks, num_places, by_load=True)
    if held is None:
        order = sorted(range(len(each)), key=lambda e: (copies[e], each[e], -e), reverse=True)
        held = _deal(order, each, copies, num_ranks, num_places, by_load=False)
    if held is None:
        raise BadSettings(f"{num_ranks} GPUs of {num_places} places cannot hold these copies")
    _swap(held, each)
    return tuple(tuple(sorted(rank)) for rank in held)


def _copies(weights: FloatArray, num_ranks: int, num_redundant: int) -> npt.NDArray[np.int64]:
    """How often each expert lies somewhere: each further copy goes to the one whose copies have
    the most to do."""
    copies = np.ones(len(weights), np.int64)
    for _ in range(num_redundant):
        each = np.where(copies < num_ranks, weights / copies, -1.0)
        copies[int(each.argmax())] += 1
    return copies


def _deal(
    order: Sequence[int],
    each: FloatArray,
    copies: npt.NDArray[np.int64],
    num_ranks: int,
    num_places: int,
    *,
    by_load: bool,
) -> list[set[int]] | None:
    """Each expert's copies to the GPUs that have the least, or, which always works out where most
    copies come first, to those with the most places left. None if places run out."""
    held: list[set[int]] = [set() for _ in range(num_ranks)]
    loads = [0.0] * num_ranks
    for expert in order:
        free = [rank for rank in range(num_ranks) if len(held[rank]) < num_places]
        if len(free) < copies[expert]:
            return None
        if by_load:
            free.sort(key=lambda rank: (loads[rank], len(held[rank])))
        else:
            free.sort(key=lambda rank: (len(held[rank]), loads[rank]))
        for rank in free[: copies[expert]]:
            held[rank].add(expert)
            loads[rank] += each[expert]
    return held


def _swap(held: list[set[int]], each: FloatArray) -> None:
    """Exchange experts of the fullest GPU for lighter ones of others while that helps it: where
    places bind, the greedy rule leaves the last GPUs what nobody else had room for."""
    for _ in range(MAX_SWAPS):
        loads = [sum(each[expert] for expert in rank) for rank in held]
        full = max(range(len(held)), key=lambda rank: loads[rank])
        best = (loads[full] * (1 - 1e-9), -1, -1, -1)
        for other in range(len(held)):
            for given in held[full] - held[other]:
                for taken in held[other] - held[full]:
                    moved = each[given] - each[taken]
                    peak = max(loads[full] - moved, loads[other] + moved)
                    best = min(best, (peak, other, given, taken))
        _, other, given, taken = best
        if other < 0:
            return
        held[full] ^= {given, taken}
        held[other] ^= {given, taken}
