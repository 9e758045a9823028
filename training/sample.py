"""What the trainer is fed with: `Sample`, and `Source`, which makes them from seeds."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

# What may be told of a token of a picture (training/sight.py): classes of colour, kind and six
# characters, 0 being "nothing", then the four sides of a box in thousandths.
NUM_CHARACTERS = 6
LABEL_CLASSES = (12, 12, *(96,) * NUM_CHARACTERS)
NUM_LABELS = len(LABEL_CLASSES) + 4


@dataclass(frozen=True, slots=True)
class Span:
    """Tokens [start, end) that the model must produce, the token that ends the turn included.

    `skill` names the row of the accuracy table that the span counts for.
    """

    start: int
    end: int
    skill: str


@dataclass(frozen=True, slots=True)
class Picture:
    """A still, or one temporal step of a video.

    `start` is the index of its first placeholder in the sample's token_ids; there are
    grid_h · grid_w / 4 of them. `patches` is uint8 [P, 3, F, 14, 14] in merge-block order, as
    glimt/media/patches.py writes them: F = 1 for a still, 2 for a video step. `labels`, if known,
    is int16 [num_tokens, NUM_LABELS]: what each token shows.
    """

    start: int
    grid_h: int  # in patches of 14 pixels, a multiple of 2
    grid_w: int
    patches: NDArray[np.uint8]
    labels: NDArray[np.int16] | None = None

    @property
    def num_tokens(self) -> int:
        """Placeholders that it stands for: one for each block of 2 × 2 patches."""
        return self.grid_h * self.grid_w // 4


@dataclass(frozen=True, slots=True)
class Sample:
    """One conversation, placeholders already expanded; pictures ascend by start."""

    token_ids: NDArray[np.int32]
    pictures: tuple[Picture, ...]
    spans: tuple[Span, ...]


class Source(Protocol):
    """Makes samples. Stateless: the same arguments give the same sample in every process."""

    def sample(self, rng_seed: int, progress: float, held_out: bool) -> Sample:
        """The sample of a seed.

        Args:
            rng_seed: any whole number from 0 on.
            progress: share of the training that is over, 0 … 1; for a curriculum.
            held_out: from the part of the world that training never shows.
        """
        ...
