"""What the process that speaks with Ray is told by its parent, and tells it."""

import msgspec


class PlacerStart(msgspec.Struct, frozen=True, tag="placer_start"):
    """To the process that speaks with Ray: what to place (`Settings`, as JSON), and how many copies
    are on this machine, if that is settled.
    """

    settings: bytes
    num_here: int | None = None


class Placed(msgspec.Struct, frozen=True, tag="placed"):
    """Ray has found places: what is left for this machine (`Settings`, as JSON), with so many
    copies, on these of its GPUs ("0,1"; "" = all, or none), and what was done, for people.
    """

    settings: bytes
    num_here: int
    gpus: str
    what: str
