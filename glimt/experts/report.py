"""Loads and placements in words: a line of a load, a table of what a placement makes of it."""

import statistics
from collections.abc import Mapping, Sequence

from glimt.experts.load import ExpertLoad
from glimt.experts.placement import Placement, imbalance


def describe_load(load: ExpertLoad) -> str:
    """How much was counted, and how unevenly."""
    if not load.num_choices:
        return f"{len(load.layers)} layers of {load.num_experts} experts; no token has come yet"
    uneven = [_max_over_mean(counts) for counts in load.layers.values() if sum(counts)]
    unused = sum(count == 0 for counts in load.layers.values() for count in counts)
    return (
        f"{load.num_choices:,} choices in {load.seconds:.0f} s, {len(load.layers)} layers of "
        f"{load.num_experts} experts; fullest expert over mean {statistics.mean(uneven):.2f} "
        f"(worst layer {max(uneven):.2f}), never chosen {unused}"
    )


def compare(placements: Mapping[str, Placement], load: ExpertLoad) -> str:
    """A line for each placement: tokens of the fullest GPU over the mean, over the layers."""
    width = max(map(len, placements))
    lines = [f"{'':{width}}  fullest GPU / mean: mean of layers, worst layer"]
    for name, placement in placements.items():
        loads = imbalance(placement, load.layers).values()
        if loads:
            lines.append(f"{name:{width}}  {statistics.mean(loads):8.3f} {max(loads):8.3f}")
        else:
            lines.append(f"{name:{width}}  no tokens were counted")
    return "\n".join(lines)


def _max_over_mean(counts: Sequence[int]) -> float:
    return max(counts) / statistics.mean(counts)
