"""Which copies go where in a Ray cluster: pure arithmetic over what its machines have.

A copy's ranks are on one machine, unless `--nnodes` says on how many. Copies that fit on the
machine with HTTP are there, where pixels need not travel; where the others go is Ray's choice.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from glimt.errors import BadSettings

Resource = Literal["GPU", "CPU"]


@dataclass(frozen=True, slots=True)
class RayMachine:
    """A machine as Ray knows it: how many GPUs (or CPUs) it has, whoever uses them."""

    id: str
    host: str
    address: str
    total: int

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.host} ({self.address})"


@dataclass(frozen=True, slots=True)
class Wish:
    """What is to be placed: `num_copies`, each on `num_parts` machines with `num_ranks` on each; if
    that is one machine, `num_together` on it.
    """

    resource: Resource
    num_copies: int
    num_parts: int
    num_ranks: int
    spreads: bool  # copies may be on other machines than this one
    num_here: int | None = None  # copies of this machine, if that is settled already
    num_together: int = 1


@dataclass(frozen=True, slots=True)
class Group:
    """The machines of one copy, or the machine of several from `copy` on: a placement group.
    `is_here`: the first of them is this one; `may_move`: unless others use this one."""

    copy: int
    is_here: bool
    bundles: tuple[dict[str, float], ...]
    may_move: bool = False


def groups_of(wish: Wish, machines: Sequence[RayMachine], here: str) -> tuple[Group, ...]:
    """One group for each copy, or for those of a machine; `here` is the id of this machine.

    Raises BadSettings if the cluster is too small, whatever else runs in it.
    """
    own = next((machine for machine in machines if machine.id == here), None)
    together = wish.num_together
    bundle: dict[str, float] = {wish.resource: float(wish.num_ranks * together)}
    bundles = (bundle,) * wish.num_parts
    slots = {machine.id: machine.total // (wish.num_ranks * together) for machine in machines}
    if wish.num_parts > 1:
        # No machine has two parts of a copy; by this count they can always be dealt out.
        parts = sum(min(count, wish.num_copies) for count in slots.values())
        able = [machine for machine in machines if slots[machine.id]]
        if own not in able or len(able) < wish.num_parts:
            raise BadSettings(_too_few_machines(wish, machines, own))
        if parts < wish.num_copies * wish.num_parts:
            raise BadSettings(_too_few_parts(wish, machines, own))
        return tuple(Group(copy, copy == 0, bundles) for copy in range(wish.num_copies))
    if sum(slots.values()) * together < wish.num_copies:
        raise BadSettings(_too_small(wish, machines, own))
    most_here = slots.get(here, 0) * together
    if not wish.spreads:
        if most_here < wish.num_copies:
            raise BadSettings(_too_small_here(wish, machines, own))
        num_here = wish.num_copies
    elif wish.num_here is None:
        num_here = min(wish.num_copies, most_here)
    else:
        num_here = wish.num_here
    may_move = wish.spreads and wish.num_here is None
    return tuple(
        Group(copy, copy < num_here, bundles, may_move and copy < num_here)
        for copy in range(0, wish.num_copies, together)
    )


def _listed(wish: Wish, machines: Sequence[RayMachine], own: RayMachine | None) -> str:
    """What the machines have, in words."""
    each = [
        f"{machine.name}{', this one,' if machine == own else ''} has {machine.total}"
        for machine in machines
    ]
    return f"of {wish.resource}s, {', '.join(each)}"


def _too_small(wish: Wish, machines: Sequence[RayMachine], own: RayMachine | None) -> str:
    size, most = wish.num_ranks, max(machine.total for machine in machines)
    listed = _listed(wish, machines, own)
    if size > most:
        text = (
            f"--tensor-parallel-size {size} does not fit one machine of the Ray cluster: {listed}"
        )
        if parts := _parts_that_fit(size, machines):
            return f"{text}; spread the ranks with --nnodes {parts}"
        return f"{text}; use a smaller one, or a larger cluster"
    each = f", {wish.num_together} together," if wish.num_together > 1 else ""
    return (
        f"{wish.num_copies} copies of {size} ranks each{each} do not fit the Ray cluster: "
        f"{listed}; use a smaller --data-parallel-size, or a larger cluster"
    )


def _too_small_here(wish: Wish, machines: Sequence[RayMachine], own: RayMachine | None) -> str:
    return (
        f"{wish.num_copies} copies of {wish.num_ranks} ranks each do not fit this machine: "
        f"{_listed(wish, machines, own)}; let Ray place copies with --data-parallel-backend ray"
    )


def _too_few_machines(wish: Wish, machines: Sequence[RayMachine], own: RayMachine | None) -> str:
    return (
        f"--nnodes {wish.num_parts} needs as many machines with {wish.num_ranks} "
        f"{wish.resource}s each, this one among them: {_listed(wish, machines, own)}"
    )


def _too_few_parts(wish: Wish, machines: Sequence[RayMachine], own: RayMachine | None) -> str:
    return (
        f"{wish.num_copies} copies of {wish.num_parts} machines each, with {wish.num_ranks} ranks "
        f"on each of these, do not fit the Ray cluster: {_listed(wish, machines, own)}; use a "
        "smaller --data-parallel-size, or a larger cluster"
    )


def _parts_that_fit(size: int, machines: Sequence[RayMachine]) -> int | None:
    """The fewest machines over which so many ranks could be spread evenly."""
    for parts in range(2, len(machines) + 1):
        able = [machine for machine in machines if machine.total >= size // parts]
        if size % parts == 0 and len(able) >= parts:
            return parts
    return None
