"""Made-up photographs: pictures with the statistics of photographs, so that they cost the same.

A dead-leaves picture (Lee, Mumford and Huang, 2001): shapes of all sizes that cover each other, the
radius with density r^-3, which gives the sharp edges and the 1/f^2 power spectrum of natural
scenes. Under it lies a smooth ground, over it the fine noise of a sensor. At Pillow's quality 75
such a picture takes about 0.2 bytes a pixel, as photographs do; evenly random pixels take four
times that and are the worst case of every decoder.
"""

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw

_MAX_PAINTED = 1024  # longest side on which leaves are painted, pixels
_NUM_LEAVES = 800
_NOISE_SIGMA = 6.0
_GRAIN_SIDE = 1024
_GREY = 128

ByteArray = NDArray[np.uint8]


class PhotoMaker:
    """Makes pictures of any size; the grain is drawn once."""

    def __init__(self) -> None:
        random = np.random.default_rng(7)
        grain = np.rint(random.normal(_GREY, _NOISE_SIGMA, (_GRAIN_SIDE, _GRAIN_SIDE)))
        grey = Image.fromarray(np.clip(grain, 0, 255).astype(np.uint8))
        self._grain = Image.merge("RGB", (grey, grey, grey))

    def make(self, width: int, height: int, random: np.random.Generator) -> Image.Image:
        """An RGB picture of the given size."""
        scale = min(1.0, _MAX_PAINTED / max(width, height))
        small = (max(8, round(width * scale)), max(8, round(height * scale)))
        scene = _leaves(small, random)
        if small != (width, height):
            scene = scene.resize((width, height), Image.Resampling.BICUBIC)
        return ImageChops.add(scene, self._grain_of(scene.size, random), 1, -_GREY)

    def _grain_of(self, size: tuple[int, int], random: np.random.Generator) -> Image.Image:
        """The grain, tiled from a place drawn at random."""
        left, top = (int(each) for each in random.integers(_GRAIN_SIDE, size=2))
        tiled = Image.new("RGB", size)
        for y in range(-top, size[1], _GRAIN_SIDE):
            for x in range(-left, size[0], _GRAIN_SIDE):
                tiled.paste(self._grain, (x, y))
        return tiled


def _leaves(size: tuple[int, int], random: np.random.Generator) -> Image.Image:
    """A ground with a smooth gradient, covered by shapes from the largest to the smallest."""
    width, height = size
    picture = _ground(size, random)
    draw = ImageDraw.Draw(picture)
    largest, smallest = 0.5 * min(size), max(2.0, 0.016 * min(size))
    # Inverse of the distribution with density r^-3 between the bounds.
    uniform = random.random(_NUM_LEAVES)
    low, high = smallest**-2, largest**-2
    radii = np.sort((low + uniform * (high - low)) ** -0.5)[::-1]
    centres = random.random((_NUM_LEAVES, 2)) * (width, height)
    stretch = np.exp(random.normal(0.0, 0.35, _NUM_LEAVES))
    palette = _palette(random)
    for radius, (x, y), ratio in zip(radii, centres, stretch, strict=True):
        colour = tuple(int(each) for each in palette[random.integers(len(palette))])
        half = (radius * ratio, radius / ratio)
        box = (x - half[0], y - half[1], x + half[0], y + half[1])
        if random.random() < 0.6:
            draw.ellipse(box, fill=colour)
        else:
            draw.rectangle(box, fill=colour)
    return picture


def _ground(size: tuple[int, int], random: np.random.Generator) -> Image.Image:
    coarse = np.clip(random.normal(128, 45, (4, 4, 1)) + random.normal(0, 14, (4, 4, 3)), 0, 255)
    return Image.fromarray(coarse.astype(np.uint8)).resize(size, Image.Resampling.BICUBIC)


def _palette(random: np.random.Generator) -> ByteArray:
    """Colours of one scene: spread in brightness, near each other in hue."""
    brightness = random.uniform(25, 225, (24, 1))
    tint = random.normal(0.0, 22.0, (24, 3)) + random.normal(0.0, 18.0, 3)
    return np.clip(brightness + tint, 0, 255).astype(np.uint8)
