"""`Placement`: which experts of each layer lie on which GPUs; a file, and what may be in it.

Every GPU has equally many places in each layer. An expert may lie on several GPUs, which then share
its tokens: the n-th row of a step goes to copy n modulo their number.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
import numpy.typing as npt

from glimt.errors import BadSettings

MAX_CYCLE = 64  # rows after which the turns of copies begin anew
Strategy = Literal["linear", "round_robin"]
Layer = tuple[tuple[int, ...], ...]  # by GPU, the expert in each of its places


class Placement(msgspec.Struct, frozen=True, kw_only=True):
    """Of each layer with experts, by its number: of each GPU the experts that it holds."""

    format: Literal["glimt-expert-placement-1"] = "glimt-expert-placement-1"
    num_experts: int
    layers: dict[int, Layer]

    @property
    def num_ranks(self) -> int:
        """GPUs that experts are spread over."""
        return len(next(iter(self.layers.values())))

    @property
    def num_places(self) -> int:
        """On each GPU, in each layer."""
        return len(next(iter(self.layers.values()))[0])

    @property
    def num_redundant(self) -> int:
        """Places of a layer that hold a further copy of an expert."""
        return self.num_ranks * self.num_places - self.num_experts


def by_strategy(
    strategy: Strategy, layers: Sequence[int], num_experts: int, num_ranks: int
) -> Placement:
    """linear: experts in order, GPU by GPU. round_robin: expert e on GPU e modulo their number.

    Raises BadSettings where experts cannot be divided among the GPUs.
    """
    each, rest = divmod(num_experts, num_ranks)
    if rest:
        raise BadSettings(f"{num_experts} experts cannot be divided among {num_ranks} GPUs")
    if strategy == "linear":
        layer = tuple(tuple(range(rank * each, (rank + 1) * each)) for rank in range(num_ranks))
    else:
        layer = tuple(tuple(range(rank, num_experts, num_ranks)) for rank in range(num_ranks))
    return Placement(num_experts=num_experts, layers=dict.fromkeys(layers, layer))


def read_placement(file: Path) -> Placement:
    """Raises BadSettings naming the file and all that is wrong with it."""
    try:
        placement = msgspec.json.decode(file.read_bytes(), type=Placement)
    except OSError as error:
        raise BadSettings(f"--expert-placement {file}: {error.strerror}") from None
    except msgspec.MsgspecError as error:
        raise BadSettings(
            f"{file} is no expert placement (`glimt experts place` makes one): {error}"
        ) from None
    problems = problems_of(placement)
    if problems:
        raise BadSettings(f"{file} is no usable expert placement:", problems[:20])
    return placement


def problems_of(placement: Placement) -> list[str]:
    """What is wrong with a table, layer by layer."""
    if not placement.layers or not all(placement.layers.values()):
        return ["it has no layers, or a layer without GPUs"]
    shape = placement.num_ranks, placement.num_places
    problems = []
    for layer, ranks in placement.layers.items():
        name = f"layer {layer}"
        if {len(ranks), *map(len, ranks)} != {*shape} or len(ranks) != shape[0]:
            problems.append(f"{name}: all layers must have {shape[0]} GPUs of {shape[1]} places")
        held = [expert for rank in ranks for expert in rank]
        if missing := sorted({*range(placement.num_experts)} - {*held}):
            problems.append(f"{name}: experts {_few(missing)} lie nowhere")
        if unknown := sorted({*held} - {*range(placement.num_experts)}):
            problems.append(f"{name}: there are no experts {_few(unknown)}")
        for number, rank in enumerate(ranks):
            if len({*rank}) != len(rank):
                problems.append(f"{name}: GPU {number} has an expert twice")
    return problems


def check_fits(
    placement: Placement, layers: Sequence[int], num_experts: int, num_ranks: int
) -> None:
    """Raises BadSettings unless it is for such a model on so many GPUs."""
    problems = []
    if placement.num_experts != num_experts:
        problems.append(f"it is of {placement.num_experts} experts, the model has {num_experts}")
    elif {*placement.layers} != {*layers}:
        differing = sorted({*placement.layers} ^ {*layers})
        problems.append(f"layers {_few(differing)} are not in both, model and placement")
    if placement.num_ranks != num_ranks:
        problems.append(
            f"it is for {placement.num_ranks} GPUs and experts are spread over {num_ranks} here: "
            f"make one with `glimt experts place --gpus {num_ranks}`"
        )
    if problems:
        raise BadSettings("--expert-placement does not fit:", problems)


def places_of(layer: Layer, num_experts: int) -> npt.NDArray[np.int64]:
    """[C, E]: the place (counted over all GPUs) that computes expert e of row n = c modulo C."""
    places: list[list[int]] = [[] for _ in range(num_experts)]
    for place, expert in enumerate(expert for rank in layer for expert in rank):
        places[expert].append(place)
    cycle = cycle_of([len(copies) for copies in places])
    return np.array(
        [[copies[row % len(copies)] for copies in places] for row in range(cycle)], np.int64
    )


def cycle_of(num_copies: Sequence[int]) -> int:
    """After how many rows all experts' copies have had equally many turns; bounded."""
    cycle = math.lcm(*{*num_copies})
    return cycle if cycle <= MAX_CYCLE else max(num_copies)


def shares_of(placement: Placement) -> npt.NDArray[np.float64]:
    """[layers in ascending order, GPUs, experts]: which part of an expert's tokens a GPU
    computes."""
    shape = (len(placement.layers), placement.num_ranks, placement.num_experts)
    shares = np.zeros(shape)
    expert_E = np.arange(placement.num_experts)
    for index, (_, layer) in enumerate(sorted(placement.layers.items())):
        for places_E in (places_CE := places_of(layer, placement.num_experts)):
            np.add.at(
                shares[index], (places_E // placement.num_places, expert_E), 1 / len(places_CE)
            )
    return shares


def imbalance(placement: Placement, counts: Mapping[int, Sequence[int]]) -> dict[int, float]:
    """Tokens of the fullest GPU over the mean, of each layer that has tokens."""
    loads: dict[int, float] = {}
    for shares_RE, layer in zip(shares_of(placement), sorted(placement.layers), strict=True):
        load_R = shares_RE @ np.array(counts[layer], float)
        if load_R.any():
            loads[layer] = float(load_R.max() / load_R.mean())
    return loads


def _few(numbers: Sequence[int]) -> str:
    shown = ", ".join(map(str, numbers[:8]))
    return f"{shown} and {len(numbers) - 8} more" if len(numbers) > 8 else shown
