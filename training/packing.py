"""Many samples become one micro-batch: two flat arrays, so that moving it is two copies.

`words` (int32) holds all numbers one array after the other, `pixels` (uint8) all patches: stills
first, then video steps, since those have twice the bytes. `Counts` say where everything lies.

Letters: T tokens, S samples, N pictures, P patches, M targets (tokens that the model must produce).
"""

import sys
import traceback
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from glimt.frontend.positions import mrope_positions
from glimt.wire import ImageSpan, PixelRef
from training.sample import NUM_LABELS, Picture, Sample, Source

STILL_BYTES = 3 * 14 * 14  # of a patch
STEP_BYTES = 2 * STILL_BYTES
MERGE = 2
NOWHERE = PixelRef(0, 0, 0)  # pixels travel beside the samples, not in an arena

IntArray = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Budget:
    """What a micro-batch may hold at most."""

    tokens: int
    patches: int

    @property
    def max_words(self) -> int:
        """No micro-batch has more int32 words: 4 for each token (id, position) and, at most, 3
        for it as a target, 2 for it as a sample's start and a span; 6 for each patch and its share
        of a token's labels."""
        return 9 * self.tokens + (6 + NUM_LABELS) * self.patches + 16

    @property
    def max_pixels(self) -> int:
        """Nor more bytes of pixels."""
        return STEP_BYTES * self.patches


@dataclass(frozen=True, slots=True)
class Counts:
    """The sizes of a micro-batch. `skills` has one entry for each span."""

    samples: int
    tokens: int
    pictures: int
    still_patches: int
    step_patches: int
    targets: int
    longest_sample: int
    largest_picture: int
    skills: tuple[str, ...]

    @property
    def patches(self) -> int:
        """Stills and video steps together."""
        return self.still_patches + self.step_patches

    @property
    def word_sizes(self) -> list[int]:
        """Length of each array in `words`, in the order of `training.network.Batch`."""
        tokens, patches, targets = self.tokens, self.patches, self.targets
        pictures, image_rows = self.pictures + 1, patches // MERGE**2
        return [
            *(tokens, 3 * tokens, self.samples + 1),
            *(4 * patches, pictures, image_rows, NUM_LABELS * image_rows),
            *(targets, targets, targets),
        ]

    @property
    def num_pixels(self) -> int:
        """Bytes of `pixels`."""
        return self.still_patches * STILL_BYTES + self.step_patches * STEP_BYTES


@dataclass(frozen=True, slots=True)
class Packed:
    """A micro-batch in host memory."""

    counts: Counts
    words: IntArray
    pixels: NDArray[np.uint8]


MAX_FAILED = 20  # samples that one packer may leave out


class Packer:
    """Draws samples of ascending seeds and packs as many as the budget takes.

    The first sample that does not fit opens the next micro-batch. `next_seed` is the seed of the
    first sample not handed out yet: a packer made with it goes on where this one stands.
    """

    def __init__(self, source: Source, seed: int, budget: Budget, *, held_out: bool) -> None:
        self.next_seed = seed
        self.num_failed = 0
        self._source = source
        self._budget = budget
        self._held_out = held_out
        self._waiting: Sample | None = None

    def next(self, progress: float, limit: int | None = None) -> Packed:
        """The next micro-batch, of at most `limit` samples.

        Raises ValueError if a single sample is larger than the budget, or if there is nothing to
        learn from a sample.
        """
        samples: list[Sample] = []
        tokens = patches = 0
        while limit is None or len(samples) < limit:
            if self._waiting is None:
                self._waiting = self._draw(progress)
                self._check(self._waiting)
            tokens += len(self._waiting.token_ids)
            patches += num_patches(self._waiting)
            if tokens > self._budget.tokens or patches > self._budget.patches:
                break
            samples.append(self._waiting)
            self._waiting = None
            self.next_seed += 1
        return pack(samples)

    def _draw(self, progress: float) -> Sample:
        """The sample of the next seed that gives one. Among millions of scenes one may be of a
        kind that nobody thought of; it is told and left out, and does not end a run of hours."""
        while True:
            try:
                return self._source.sample(self.next_seed, progress, self._held_out)
            except Exception:
                self.num_failed += 1
                if self.num_failed > MAX_FAILED:
                    raise
                print(f"sample {self.next_seed} is left out:", file=sys.stderr)
                traceback.print_exc()
                self.next_seed += 1

    def _check(self, sample: Sample) -> None:
        tokens, patches = len(sample.token_ids), num_patches(sample)
        if tokens > self._budget.tokens or patches > self._budget.patches:
            raise ValueError(
                f"sample {self.next_seed} has {tokens} tokens and {patches} patches, more than a "
                f"micro-batch of {self._budget.tokens} and {self._budget.patches}: make it "
                "smaller, or raise --tokens and --patches"
            )
        ends = [0, *(span.end for span in sample.spans)]
        spans = zip(ends, sample.spans, strict=False)
        wrong = any(span.start < max(end, 1) or span.end <= span.start for end, span in spans)
        if not sample.spans or wrong or ends[-1] > tokens:
            raise ValueError(
                f"sample {self.next_seed}: its spans {sample.spans} must be one or more, ascend "
                f"without overlap, and lie in tokens 1 … {tokens - 1}"
            )


def num_patches(sample: Sample) -> int:
    """Patches of all pictures of a sample."""
    return sum(picture.grid_h * picture.grid_w for picture in sample.pictures)


def pack(samples: Sequence[Sample]) -> Packed:
    """One micro-batch of these samples, in order. Raises ValueError if there are none."""
    if not samples:
        raise ValueError("a micro-batch needs at least one sample")
    lengths = [len(sample.token_ids) for sample in samples]
    offsets = _starts(lengths)
    pictures = [  # stills first: see above
        (picture, int(offset))
        for frames in (1, 2)
        for sample, offset in zip(samples, offsets[:-1], strict=True)
        for picture in sample.pictures
        if picture.patches.shape[2] == frames
    ]
    grids = [picture.grid_h * picture.grid_w for picture, _ in pictures]
    stills = sum(
        size for size, (p, _) in zip(grids, pictures, strict=True) if p.patches.shape[2] == 1
    )
    target_rows, targets, spans, skills = _targets(samples, offsets)
    words = [
        np.concatenate([sample.token_ids for sample in samples]),
        np.concatenate([_positions(sample) for sample in samples], axis=1).ravel(),
        offsets,
        _join(_places(picture.grid_h, picture.grid_w).ravel() for picture, _ in pictures),
        _starts(grids),
        _join(_rows(picture, offset) for picture, offset in pictures),
        _join(_labels(picture) for picture, _ in pictures),
        target_rows,
        targets,
        spans,
    ]
    counts = Counts(
        samples=len(samples),
        tokens=int(offsets[-1]),
        pictures=len(pictures),
        still_patches=stills,
        step_patches=sum(grids) - stills,
        targets=len(targets),
        longest_sample=max(lengths),
        largest_picture=max(grids, default=0),
        skills=skills,
    )
    pixels = [picture.patches.reshape(-1) for picture, _ in pictures]
    return Packed(
        counts,
        np.concatenate(words, dtype=np.int32, casting="same_kind"),
        np.concatenate(pixels) if pixels else np.empty(0, np.uint8),
    )


def _starts(lengths: Sequence[int]) -> IntArray:
    """[0, l₀, l₀ + l₁, …]."""
    return np.concatenate(([0], np.cumsum(lengths, dtype=np.int32))).astype(np.int32)


def _join(arrays: Iterable[IntArray]) -> IntArray:
    parts = list(arrays)
    return np.concatenate(parts) if parts else np.empty(0, np.int32)


def _positions(sample: Sample) -> IntArray:
    """int32 [3, L]."""
    length = len(sample.token_ids)
    spans = [
        ImageSpan(
            content_hash=b"",
            start=picture.start,
            num_tokens=picture.num_tokens,
            grid_h=picture.grid_h,
            grid_w=picture.grid_w,
            num_frames=picture.patches.shape[2],
            pixels=NOWHERE,
        )
        for picture in sample.pictures
    ]
    positions_3T, _ = mrope_positions(length, spans, MERGE)
    if positions_3T is None:
        return np.broadcast_to(np.arange(length, dtype=np.int32), (3, length))
    return positions_3T


def _places(grid_h: int, grid_w: int) -> IntArray:
    """int32 [P, 4]: row and column of each patch, in merge-block order, and the grid."""
    patch = np.arange(grid_h * grid_w, dtype=np.int32)
    block, inside = np.divmod(patch, MERGE**2)
    block_row, block_column = np.divmod(block, grid_w // MERGE)
    row, column = MERGE * block_row + inside // MERGE, MERGE * block_column + inside % MERGE
    return np.stack((row, column, np.full_like(row, grid_h), np.full_like(row, grid_w)), axis=1)


def _rows(picture: Picture, offset: int) -> IntArray:
    """The rows of the micro-batch that a picture's tokens take."""
    return np.arange(picture.num_tokens, dtype=np.int32) + (offset + picture.start)


def _labels(picture: Picture) -> IntArray:
    """What its tokens show, one after another; -1 where nobody said."""
    if picture.labels is None:
        return np.full(picture.num_tokens * NUM_LABELS, -1, np.int32)
    return picture.labels.astype(np.int32).ravel()


def _targets(
    samples: Sequence[Sample], offsets: IntArray
) -> tuple[IntArray, IntArray, IntArray, tuple[str, ...]]:
    """(row before each target, the target, its span's number, each span's skill)."""
    rows, targets, numbers = [], [], []
    skills: list[str] = []
    for sample, offset in zip(samples, offsets[:-1], strict=True):
        for span in sample.spans:
            rows.append(np.arange(span.start - 1, span.end - 1, dtype=np.int32) + offset)
            targets.append(sample.token_ids[span.start : span.end])
            numbers.append(np.full(span.end - span.start, len(skills), np.int32))
            skills.append(span.skill)
    return np.concatenate(rows), np.concatenate(targets), np.concatenate(numbers), tuple(skills)
