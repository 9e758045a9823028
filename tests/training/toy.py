"""A source that a network learns in seconds: what colour is the square? And which comes second?"""

import numpy as np
import torch

from glimt.media.patches import patchify
from glimt.tiny.tokenizer import control_token_ids, make_tokenizer
from training.sample import Picture, Sample, Span

COLOURS = {"red": (200, 30, 30), "green": (30, 160, 40), "blue": (40, 60, 210)}
SIDE = 56  # 4 × 4 patches, 2 × 2 tokens


class ToySource:
    """Stateless but for the tokenizer, which is the tiny checkpoints'."""

    def __init__(self) -> None:
        self.tokenizer = make_tokenizer("4.5")
        self.ids = control_token_ids(self.tokenizer, "4.5")

    def sample(self, rng_seed: int, progress: float, held_out: bool) -> Sample:
        """One or two squares; held-out ones are brighter than any in training."""
        rng = np.random.default_rng((rng_seed, held_out))
        count = int(rng.integers(1, 3))
        names = [str(rng.choice(list(COLOURS))) for _ in range(count)]
        ids = [self.ids["[gMASK]"], self.ids["<sop>"], self.ids["<|user|>"]]
        pictures = []
        for name in names:
            ids.append(self.ids["<|begin_of_image|>"])
            picture = Picture(len(ids), 4, 4, square(COLOURS[name], rng, held_out))
            ids += [self.ids["<|image|>"]] * picture.num_tokens
            ids.append(self.ids["<|end_of_image|>"])
            pictures.append(picture)
        ids += [*self.tokenizer.encode("What colour?").ids, self.ids["<|assistant|>"]]
        answer = [*self.tokenizer.encode(names[-1]).ids, self.ids["<|user|>"]]
        skill = "one" if count == 1 else "last of two"
        span = Span(len(ids), len(ids) + len(answer), skill)
        return Sample(np.array(ids + answer, np.int32), tuple(pictures), (span,))


def square(
    colour: tuple[int, int, int], rng: np.random.Generator, held_out: bool
) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """uint8 [16, 3, 1, 14, 14]."""
    shade = rng.uniform(1.0, 1.15) if held_out else rng.uniform(0.7, 1.0)
    frame = np.clip(np.array(colour) * shade + rng.normal(0, 8, (SIDE, SIDE, 3)), 0, 255)
    patches = np.empty((16, 3, 1, 14, 14), np.uint8)
    channels = torch.from_numpy(frame.astype(np.uint8)).permute(2, 0, 1)[None].contiguous()
    patchify(channels, patches, 14, 2)
    return patches


def make_source() -> ToySource:
    """As the trainer asks for it."""
    return ToySource()
