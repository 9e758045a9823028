"""`--dataset-name visionarena-like`: VisionArena-Chat's shape, from nothing but a seed.

Its published totals are met exactly: 90,524 text tokens in each 1000 prompts (counted by the
tokenizer that is given), 128 tokens an answer, and one image of 1.07 megapixels in the mean. The
shapes are assumptions that fit what is published of 10 to 1000 rows: log-normal text lengths with
median 25, log-normal image areas with median 0.75 megapixels. A third of the texts is not English.
The first N prompts are the same for every number of prompts.
"""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pictures
from PIL import UnidentifiedImageError

from glimt.bench.data.images import as_image, to_jpeg, to_png
from glimt.bench.data.photo import PhotoMaker
from glimt.bench.data.prompt import Image, Prompt, Turn
from glimt.bench.data.tokens import Tokens
from glimt.bench.data.writing import Writer
from glimt.bench.options import DataOptions
from glimt.errors import BadSettings

TEXT_TOKENS_PER_BLOCK = 90_524
BLOCK = 1000  # prompts
OUTPUT_LEN = 128
_MIN_TOKENS, _MAX_TOKENS = 3, 4000
_AHEAD = 8  # pictures of each thread at a time
_GRID = 28  # pixels a side that one image token of GLM-4.5V stands for


def visionarena_like_prompts(
    options: DataOptions, tokens: Tokens | None, num_prompts: int, seed: int
) -> Iterator[Prompt]:
    """Prompts with a question first and one image after it. Raises BadSettings."""
    if not 0 <= options.image_dup_ratio < 1:
        raise BadSettings("--image-dup-ratio must be at least 0 and below 1")
    writer, camera = Writer(tokens), Camera(options, seed)
    output_len = options.output_len or options.hf_output_len or OUTPUT_LEN
    for index, image in enumerate(camera.take_all(num_prompts)):
        if index % BLOCK == 0:
            lengths = text_lengths(np.random.default_rng((seed, 1, index // BLOCK)))
        num_tokens = int(lengths[index % BLOCK])
        text = writer.write(num_tokens, np.random.default_rng((seed, 2, index)))
        turn = Turn(
            parts=(text, image),
            output_tokens=output_len,
            text_tokens=num_tokens if tokens else None,
        )
        yield Prompt(turns=(turn,))


def text_lengths(random: np.random.Generator) -> NDArray[np.int64]:
    """Tokens of the texts of one block of prompts; their sum is always the published one."""
    drawn = np.clip(random.lognormal(np.log(25), 1.55, BLOCK), _MIN_TOKENS, _MAX_TOKENS)
    scaled = np.rint(drawn * TEXT_TOKENS_PER_BLOCK / drawn.sum())
    lengths: NDArray[np.int64] = np.maximum(scaled, _MIN_TOKENS).astype(np.int64)
    lengths[int(np.argmax(lengths))] += TEXT_TOKENS_PER_BLOCK - int(lengths.sum())
    return lengths


def image_size(random: np.random.Generator) -> tuple[int, int]:
    """(width, height) in pixels: 0.02 to 8 megapixels, sides at most three to one."""
    area = float(np.clip(random.lognormal(np.log(0.75e6), 0.85), 0.02e6, 8e6))
    aspect = float(np.clip(np.exp(random.normal(0.15, 0.45)), 1 / 3, 3))
    return max(1, round((area * aspect) ** 0.5)), max(1, round((area / aspect) ** 0.5))


def glm_image_tokens(width: int, height: int) -> int:
    """Image tokens of GLM-4.5V for a still image, without the two marks around them.

    Sides rounded to 28 pixels, twice the area held within 112² and 9,633,792 (the limits of the
    published image processor, which counts a still image as two frames).
    """
    rows, columns = max(1, round(height / _GRID)), max(1, round(width / _GRID))
    pixels = 2 * rows * columns * _GRID**2
    if pixels > 9_633_792:
        shrink = (2 * width * height / 9_633_792) ** 0.5
        rows = max(1, int(height / shrink / _GRID))
        columns = max(1, int(width / shrink / _GRID))
    elif pixels < 112**2:
        grow = (112**2 / (2 * width * height)) ** 0.5
        rows = -int(-height * grow // _GRID)
        columns = -int(-width * grow // _GRID)
    return rows * columns


class Camera:
    """Takes the picture of each prompt: made up, encoded, sometimes one that was seen before."""

    def __init__(self, options: DataOptions, seed: int) -> None:
        self._options = options
        self._seed = seed
        self._maker = PhotoMaker()
        self._album = None if options.image_source == "synth" else Album(options.image_source)

    def take_all(self, count: int) -> Iterator[Image]:
        """The images of the first `count` prompts, a few of them in the making at a time."""
        threads = len(os.sched_getaffinity(0))
        with ThreadPoolExecutor(threads) as pool:
            for start in range(0, count, _AHEAD * threads):
                yield from pool.map(self.take, range(start, min(start + _AHEAD * threads, count)))

    def take(self, index: int) -> Image:
        """The image of prompt `index`: the same at every call."""
        random = np.random.default_rng((self._seed, 3, index))
        if index > 0 and random.random() < self._options.image_dup_ratio:
            return self.take(int(random.integers(index)))
        if self._album is None:
            picture = self._maker.make(*image_size(random), random)
        else:
            picture = self._album.picture(index, self._seed)
        kind = self._options.image_format
        if kind == "mixed":
            kind = "png" if random.random() < 0.5 else "jpeg"
        encoded = to_png(picture) if kind == "png" else to_jpeg(picture)
        return as_image(encoded, kind, picture.width * picture.height)


class Album:
    """Pictures of a folder and the folders in it, in an order drawn from the seed."""

    def __init__(self, folder: str) -> None:
        """Find them. Raises BadSettings if there are none."""
        known = Pictures.registered_extensions()
        files = Path(folder).expanduser().rglob("*")
        self._files = sorted(file for file in files if file.suffix.lower() in known)
        if not self._files:
            raise BadSettings(
                f"--image-source {folder}: must be synth, or a folder with pictures in it"
            )

    def picture(self, index: int, seed: int) -> Pictures.Image:
        """The picture of prompt `index`; all are shown before one is shown again."""
        round_number, place = divmod(index, len(self._files))
        order = np.random.default_rng((seed, 5, round_number)).permutation(len(self._files))
        file = self._files[order[place]]
        try:
            with Pictures.open(file) as opened:
                return opened.convert("RGB")
        except (OSError, UnidentifiedImageError) as error:
            raise BadSettings(f"--image-source: {file} cannot be read: {error}") from None
