"""`ExpertLoad`: how many tokens chose each expert of each layer; a file, and sums of such files."""

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import msgspec

from glimt.errors import BadSettings


class ExpertLoad(msgspec.Struct, frozen=True, kw_only=True):
    """Of each layer with experts, by its number: how many tokens chose each of its experts.

    A token counts once for each expert that it chose. `seconds`: over how long it was counted.
    """

    format: Literal["glimt-expert-load-1"] = "glimt-expert-load-1"
    num_experts: int
    layers: dict[int, tuple[int, ...]]
    seconds: float = 0.0
    model: str = ""

    @property
    def num_choices(self) -> int:
        """Over all layers."""
        return sum(sum(counts) for counts in self.layers.values())

    def since(self, earlier: "ExpertLoad") -> "ExpertLoad":
        """What was counted after `earlier`. Raises BadSettings if it was not part of this."""
        if self.layers.keys() != earlier.layers.keys():
            raise BadSettings("the two countings are of different models")
        layers = {
            layer: tuple(
                now - then for now, then in zip(counts, earlier.layers[layer], strict=True)
            )
            for layer, counts in self.layers.items()
        }
        if any(count < 0 for counts in layers.values() for count in counts):
            raise BadSettings("an engine was started anew in the meantime; collect again")
        return msgspec.structs.replace(self, layers=layers)


def added(loads: Iterable[ExpertLoad]) -> ExpertLoad:
    """One load of several of the same model. Raises BadSettings without any, or if they differ."""
    given = [*loads]
    if not given:
        raise BadSettings("no expert load is given")
    first, *others = given
    for other in others:
        if other.layers.keys() != first.layers.keys() or other.num_experts != first.num_experts:
            raise BadSettings("expert loads of different models cannot be added")
        layers = {
            layer: tuple(a + b for a, b in zip(counts, other.layers[layer], strict=True))
            for layer, counts in first.layers.items()
        }
        seconds = first.seconds + other.seconds
        first = msgspec.structs.replace(first, layers=layers, seconds=seconds)
    return first


def read_load(file: Path) -> ExpertLoad:
    """Raises BadSettings naming the file and what is wrong with it."""
    try:
        load = msgspec.json.decode(file.read_bytes(), type=ExpertLoad)
    except OSError as error:
        raise BadSettings(f"{file}: {error.strerror}") from None
    except msgspec.MsgspecError as error:
        raise BadSettings(f"{file} is no expert load (`glimt experts collect`): {error}") from None
    for layer, counts in load.layers.items():
        if len(counts) != load.num_experts or min(counts, default=0) < 0:
            raise BadSettings(
                f"{file}: layer {layer} must have {load.num_experts} counts, none below 0"
            )
    if not load.layers:
        raise BadSettings(f"{file} has no layers")
    return load
